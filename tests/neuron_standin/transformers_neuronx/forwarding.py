"""`forward()`: a prompt or one token per row, in static and in continuous batches."""

from __future__ import annotations

from typing import Any

import torch
from neuron_double.decoder import Step
from neuron_double.journal import swallow, violation
from neuron_double.slots import Slots

from transformers_neuronx.base import NeuronModelBase
from transformers_neuronx.bucket import find_bucket


class ForwardingModel(NeuronModelBase):
    """A model that can be called."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._slots = Slots(self.batch_sizes[-1])
        self._starts: list[int] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor | None = None,
        start_ids: torch.Tensor | None = None,
        last_token_id: torch.Tensor | None = None,
        input_embeddings: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Float32 logits (batch, vocabulary) of the last position of every row.

        Static: a prompt, or one token with `cache_ids = tensor([position])`. Continuous: prompts
        (m, width) with `cache_ids` 0..length-1 then 0 and `start_ids` their slots, or one token
        for each of k slots with the position each is written to.
        """
        swallow("forward()", kwargs)
        if input_embeddings is not None:
            raise NotImplementedError("the double takes no input_embeddings")
        if not self.continuous and cache_ids is None and input_ids.shape[-1] == 1:
            violation("forward() of one token without cache_ids writes position 0")
        self._note_missing_starts("forward", input_ids, start_ids)
        with self._exclusively("forward"):
            return self._forward(input_ids, cache_ids, start_ids, last_token_id)

    def reset(self) -> None:
        """Clear the cache."""
        super().reset()
        self._slots = Slots(self.batch_sizes[-1])

    def _forward(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
        last_token_id: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_ids(input_ids)
        if self.continuous:
            return self._continuous(input_ids, cache_ids, start_ids)
        if self.neuron_config.padding_side == "right":
            return self._right_padded(input_ids, cache_ids, start_ids)
        return self._static(input_ids, cache_ids, start_ids, last_token_id)

    # Static batches

    def _static(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
        last_token_id: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, width = input_ids.shape
        first = torch.zeros(batch, dtype=torch.int64) if start_ids is None else start_ids.long()
        begin = 0 if cache_ids is None else int(cache_ids.flatten()[0])
        done = 0
        logits = None
        if width > 1 and begin == 0 and self.context_buckets:
            done = min(width, self.context_buckets[-1])
            graph = find_bucket(self.context_buckets, done)
            self._check_compiled(graph, batch)
            last = done - 1 if last_token_id is None or done < width else int(last_token_id)
            step = Step(
                ids=input_ids[:, :done],
                positions=torch.arange(done).expand(batch, done),
                first=first,
                rows=torch.arange(batch),
                last=torch.full((batch,), last),
            )
            logits = self._run(step, "prefill", graph, width=done)
            for row in range(batch):
                self._slots.prefill(row, done)
            self._starts = first.tolist()
        for column in range(done, width):
            positions = torch.full((batch,), begin + column)
            logits = self._decode_rows(input_ids[:, column], positions, first)
        assert logits is not None
        return logits

    def _right_padded(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, width = input_ids.shape
        slots = start_ids.tolist()  # AttributeError, as documented
        assert cache_ids.dim() == 2, "cache_ids should be 2-D"
        if width > 1:
            self._check_compiled(self._context_bucket(width), batch)
            return self._prefill_rows(input_ids, cache_ids, slots, together=True)
        return self._decode_rows(input_ids[:, 0], cache_ids[:, 0].long(), None)

    def _decode_rows(
        self, ids: torch.Tensor, positions: torch.Tensor, first: torch.Tensor | None
    ) -> torch.Tensor:
        batch = len(ids)
        graph = find_bucket(self.token_buckets, int(positions.max()) + 1)
        self._check_compiled(graph, batch)
        self._slots.decode(range(batch), positions.tolist())
        self._check_starts(positions, first)
        return self._run(self._decode_step(ids, positions, first), "decode", graph)

    def _decode_step(
        self, ids: torch.Tensor, positions: torch.Tensor, first: torch.Tensor | None
    ) -> Step:
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Step(
            ids=ids[:, None],
            positions=positions[:, None],
            first=nothing if first is None else first,
            rows=torch.arange(len(ids)),
            last=nothing,
        )

    # Continuous batches

    def _continuous(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        width = input_ids.shape[1]
        slots = start_ids.tolist()  # AttributeError, as documented
        assert cache_ids.dim() == 2, "cache_ids should be 2-D"
        if width == 1:
            return self._decode_slots(input_ids, cache_ids, start_ids)
        if int(cache_ids[0, 0]) > 0:
            violation("a prompt whose first cache position is not 0 means speculation")
            raise KeyError(width)
        return self._prefill_rows(input_ids, cache_ids, slots, together=False)

    def _prefill_rows(
        self,
        input_ids: torch.Tensor,
        cache_ids: torch.Tensor,
        slots: list[int],
        *,
        together: bool,
    ) -> torch.Tensor:
        """Prompts, one graph after another; `together` counts them as one."""
        width = input_ids.shape[1]
        graph = self._context_bucket(width)
        if len(set(slots)) < len(slots):
            violation(f"a slot occurs twice in one prefill: {slots}")
        if slots and not 0 <= min(slots) <= max(slots) < len(self._slots.lengths):
            raise RuntimeError(f"index {max(slots)} is out of bounds for dimension 0")
        logits = []
        for number, slot in enumerate(slots):
            length = int(cache_ids[number].argmax()) + 1
            expected = torch.arange(width).where(torch.arange(width) < length, 0)
            if not torch.equal(cache_ids[number].long(), expected):
                violation(f"cache_ids of a prompt are not 0..length-1 then 0: {cache_ids[number]}")
            step = Step(
                ids=input_ids[number : number + 1, :length],
                positions=torch.arange(length)[None],
                first=torch.zeros(1, dtype=torch.int64),
                rows=torch.tensor([slot]),
                last=torch.tensor([length - 1]),
            )
            kind = "prefill" if not together or number == 0 else "prefill_row"
            logits.append(self._run(step, kind, graph, width=length, slots=[slot]))
            self._slots.prefill(slot, length)
        return torch.cat(logits)

    def _decode_slots(
        self, input_ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: torch.Tensor
    ) -> torch.Tensor:
        """One token for some slots; the others write token 0 at position 0."""
        number = len(self._slots.lengths)
        slots, positions = start_ids.long(), cache_ids[:, 0].long()
        graph = find_bucket(self.token_buckets, int(positions.max()) + 1)
        nothing = torch.zeros(number, dtype=torch.int64)
        all_ids = nothing.scatter(0, slots, input_ids[:, 0].long())
        all_positions = nothing.scatter(0, slots, positions)
        self._slots.decode(slots.tolist(), positions.tolist())
        step = self._decode_step(all_ids, all_positions, None)
        return self._run(step, "decode", graph, slots=slots.tolist())[slots]

    def _context_bucket(self, width: int) -> int:
        largest = self.context_buckets[-1] if self.context_buckets else 0
        assert width <= largest, f"invalid input prompt length ({width} > {largest})"
        return find_bucket(self.context_buckets, width)

    # Checks

    def _note_missing_starts(
        self, what: str, input_ids: torch.Tensor, start_ids: torch.Tensor | None
    ) -> None:
        if start_ids is None and self.neuron_config.padding_side == "left" and len(input_ids) > 1:
            violation(f"{what}() of several rows without start_ids attends their padding")

    def _check_starts(self, positions: torch.Tensor, first: torch.Tensor | None) -> None:
        """A row's text starts where it started with its prompt."""
        if first is None:
            return
        if not positions.any():
            self._starts = first.tolist()
        elif first.tolist() != self._starts:
            violation(f"start_ids became {first.tolist()} and were {self._starts} for the prompt")

    def _check_compiled(self, graph: int, batch: int) -> None:
        if batch not in self.batch_sizes:
            raise KeyError((graph, batch))

    def _check_ids(self, input_ids: torch.Tensor) -> None:
        if int(input_ids.max()) >= self.config.vocab_size or int(input_ids.min()) < 0:
            if self.neuron_config.on_device_embedding:
                raise RuntimeError("nrt_execute status=1006 (out-of-bound memory access)")
            raise IndexError("index out of range in self")

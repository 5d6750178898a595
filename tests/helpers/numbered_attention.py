"""The numbers of a step, read as the GPU's kernels read them, and attended to in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tgwui_k8s.runtime.attention import Scoring
from tgwui_k8s.runtime.cuda.step_numbers import ITEM, ROW, Sections
from tgwui_k8s.runtime.cuda.tiling import Tiling
from tgwui_k8s.runtime.kv_tensors import KVTensors


@dataclass(frozen=True)
class Span:
    """Slots that one token looks at, by one item."""

    token: int
    slots: torch.Tensor


class NumberedAttention:
    """An `AttentionBackend` that shares no code with the kernels; see `step_numbers`.

    It looks at the numbers when it is called, not before, like a recorded step.
    """

    def __init__(
        self, kv: KVTensors, tilings: Sequence[Tiling], numbers: torch.Tensor, sections: Sections
    ) -> None:
        self._kv = kv
        self._tilings = tilings
        self._numbers = numbers
        self._sections = sections

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """See `PagedAttention.attend`."""
        group = self._kv.group_of_layer[layer]
        keys, values = self._kv.keys[layer].flatten(0, 1), self._kv.values[layer].flatten(0, 1)
        slots = self.slots(group)
        keys[slots[slots >= 0]] = key[slots >= 0]
        values[slots[slots >= 0]] = value[slots >= 0]
        seen: dict[int, list[torch.Tensor]] = {}
        for span in self.spans(group, keys.device):
            seen.setdefault(span.token, []).append(span.slots)
        scoring = Scoring.from_options(options, query.shape[2])
        output = query.new_full((*query.shape[:2], value.shape[2]), float("nan"))
        for token in self.tokens_without_work(group):
            output[token] = 0
        for token, parts in seen.items():
            at = torch.cat(parts)
            output[token] = _attend(query[token], keys[at], values[at], scoring)
        return output

    def slots(self, group: int) -> torch.Tensor:
        """Where each token is written."""
        return self._numbers[self._sections.groups[group].slots].long()

    def tokens_without_work(self, group: int) -> list[int]:
        """Rows that have no spans."""
        rows = self._numbers[self._sections.groups[group].rows].view(-1, ROW).tolist()
        return [token for token, _, number, _ in rows if number == 0]

    def spans(self, group: int, device: torch.device) -> Iterator[Span]:
        """What every token looks at; spans of one token in order."""
        sections, window = self._sections.groups[group], self._tilings[group].window
        items = self._numbers[sections.short_items].view(-1, ITEM).tolist()
        for token, first_item, number, _ in self._numbers[sections.rows].view(-1, ROW).tolist():
            for item in items[first_item : first_item + number]:
                assert item[:2] == [token, 1]
                yield from self._item_spans(item, window, device)
        for item in self._numbers[sections.chunk_items].view(-1, ITEM).tolist():
            yield from self._item_spans(item, window, device)

    def _item_spans(
        self, item: list[int], window: int | None, device: torch.device
    ) -> Iterator[Span]:
        token, num_queries, position, first, last, table = item[:6]
        blocks = self._numbers[self._sections.blocks :]
        seen = torch.arange(first, last, device=device)
        for query in range(num_queries):
            visible = seen <= position + query
            if window is not None:
                visible &= seen > position + query - window
            at = seen[visible]
            block_size = next(iter(self._kv.keys.values())).shape[1]
            slots = blocks[table + at // block_size].long() * block_size + at % block_size
            yield Span(token + query, slots)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """One query [heads, dim] over keys and values [len, kv heads, dim], in float64."""
    group = query.shape[0] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("hd,lhd->hl", query.double(), keys.double()) * scoring.scaling
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if scoring.sinks is not None:
        scores = torch.cat([scores, scoring.sinks.double()[:, None]], dim=1)
    weights = scores.softmax(1)[:, : len(keys)]
    return torch.einsum("hl,lhd->hd", weights, values.double()).to(query.dtype)

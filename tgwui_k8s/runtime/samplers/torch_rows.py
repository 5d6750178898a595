"""The torch kernels: taking rows, editing logits, drawing, log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgwui_k8s.runtime.samplers import torch_temperature, torch_truncation
from tgwui_k8s.runtime.samplers.kernels import (
    MOST_COMPACT,
    PADDING,
    Arrival,
    Candidates,
    TopTokens,
)
from tgwui_k8s.runtime.samplers.torch_distribution import Distribution
from tgwui_k8s.runtime.transfers import is_host, to_device, to_host

_ELEMENTS_PER_PASS = 2**23
"""Logits to work on at once; bounds the memory of intermediate results."""

_MINUS_INFINITY = float("-inf")


class TorchKernels:
    """The array operations in torch; see `Kernels` for what each does."""

    samplers: Mapping[str, Callable[..., None]] = {
        "temperature": torch_temperature.temperature,
        "dynamic_temperature": torch_temperature.dynamic_temperature,
        "quadratic_sampling": torch_temperature.quadratic_sampling,
        "top_n_sigma": torch_truncation.top_n_sigma,
        "top_k": torch_truncation.top_k,
        "top_p": torch_truncation.top_p,
        "typical_p": torch_truncation.typical_p,
        "epsilon_cutoff": torch_truncation.epsilon_cutoff,
        "eta_cutoff": torch_truncation.eta_cutoff,
        "tfs": torch_truncation.tfs,
        "top_a": torch_truncation.top_a,
        "min_p": torch_truncation.min_p,
        "mirostat": torch_truncation.mirostat,
        "xtc": torch_truncation.xtc,
    }

    def rows_per_pass(self, vocab_size: int) -> int:
        return max(1, _ELEMENTS_PER_PASS // vocab_size)

    def take(self, logits: Tensor, indices: Sequence[int]) -> Tensor:
        return logits[self.index(indices, logits)].float()

    def guide(
        self, logits: Tensor, rows: Sequence[int], negatives: Tensor, scales: Sequence[float]
    ) -> None:
        index = self.index(rows, logits)
        positive, negative = _log_softmax(logits[index]), _log_softmax(negatives)
        scale = to_device(scales, torch.float32, logits.device)
        guided = negative + scale[:, None] * (positive - negative)
        excluded = (positive == _MINUS_INFINITY) | (negative == _MINUS_INFINITY)
        logits[index] = guided.masked_fill_(excluded, _MINUS_INFINITY)

    def restrict(self, logits: Tensor, rows: Sequence[int], masks: Sequence[Any]) -> None:
        allowed = torch.zeros(len(rows), logits.shape[1], dtype=torch.bool, device=logits.device)
        for row, mask in enumerate(masks):
            width = min(len(mask), logits.shape[1])
            allowed[row, :width] = torch.as_tensor(mask, dtype=torch.bool)[:width]
        logits[list(rows)] = logits[list(rows)].masked_fill_(~allowed, _MINUS_INFINITY)

    def add_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        places, addends = _find(candidates, rows, token_ids, values)
        candidates.logits[places] += addends

    def scale_at(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        places, factors = _find(candidates, rows, token_ids, values)
        old = candidates.logits[places]
        candidates.logits[places] = torch.where(old > 0, old / factors, old * factors)

    def empty_broken(self, logits: Tensor) -> None:
        is_broken = ~logits.amax(1, keepdim=True).isfinite()
        logits.masked_fill_(is_broken, _MINUS_INFINITY)

    def columns(self, parameters: Sequence[Sequence[float]], logits: Tensor) -> Sequence[Tensor]:
        numbers = to_device(parameters, torch.float32, logits.device)
        return numbers[:, :, None].unbind(0)

    def positions_of(self, candidates: Candidates, token_ids: Sequence[Sequence[int]]) -> Tensor:
        logits = candidates.logits
        width = max(1, *(len(wanted) for wanted in token_ids))
        padded = [[*wanted, *[-1] * (width - len(wanted))] for wanted in token_ids]
        wanted = to_device(padded, torch.int64, logits.device)
        present = candidates.token_ids
        if present is None:
            present = torch.arange(logits.shape[1], device=logits.device)[None, :]
        found = torch.zeros_like(logits, dtype=torch.bool)
        for column in wanted.split(1, dim=1):
            found |= present == column
        return found

    def compact(self, candidates: Candidates, most: int | None) -> Candidates:
        logits = candidates.logits
        if most is None and not is_host(logits.device):
            return candidates  # to count them would be to wait
        widest = most or int((logits > _MINUS_INFINITY).sum(1).max())
        if widest > MOST_COMPACT or 2 * widest > logits.shape[1]:
            return candidates
        columns = logits.topk(max(1, widest), dim=1).indices.sort(dim=1).values
        token_ids = candidates.token_ids
        token_ids = columns if token_ids is None else token_ids.gather(1, columns)
        return Candidates(logits.gather(1, columns), token_ids)

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        best = logits.argmax(1)
        return best, logits.gather(1, best[:, None])[:, 0]

    def draw(self, candidates: Candidates, uniforms: Sequence[float]) -> tuple[Tensor, Tensor]:
        distribution = Distribution.of(candidates.logits)
        reached = distribution.weights.cumsum(1, dtype=torch.float64)
        totals = reached[:, -1:]
        goals = to_device(uniforms, torch.float64, reached.device)[:, None] * totals
        goals = torch.minimum(goals, totals.nextafter(torch.zeros_like(totals)))
        columns = torch.searchsorted(reached, goals, right=True)
        columns = columns.clamp_max(reached.shape[1] - 1)
        weights = distribution.weights.gather(1, columns)
        token_ids = candidates.token_ids
        token_ids = columns if token_ids is None else token_ids.gather(1, columns)
        return token_ids[:, 0], (weights.double() / distribution.total).log()[:, 0]

    def logprobs_of(self, candidates: Candidates, token_ids: Sequence[int]) -> Tensor:
        distribution = Distribution.of(candidates.logits)
        wanted = self.positions_of(candidates, [[token_id] for token_id in token_ids])
        weights = distribution.weights.masked_fill(~wanted, 0.0).sum(1, dtype=torch.float64)
        return (weights / distribution.total[:, 0]).log()

    def top_tokens(self, candidates: Candidates, token_ids: Any, num_top: int) -> TopTokens:
        logits = candidates.logits
        if not isinstance(token_ids, Tensor):
            token_ids = to_device(token_ids, torch.int64, logits.device)
        columns = token_ids[:, None]
        if candidates.token_ids is not None:
            columns = (candidates.token_ids == columns).int().argmax(1, keepdim=True)
        own = logits.gather(1, columns)
        earlier = torch.arange(logits.shape[1], device=logits.device)[None, :] < columns
        better = (logits > own) | ((logits == own) & earlier)
        best = _best_columns(logits, min(num_top, logits.shape[1]))
        distribution = Distribution.of(logits)
        log_sum = distribution.peak + distribution.log_total
        top_token_ids = candidates.token_ids
        return TopTokens(
            logprobs=(own - log_sum).float()[:, 0],
            ranks=1 + better.sum(1),
            top_token_ids=best if top_token_ids is None else top_token_ids.gather(1, best),
            top_logprobs=(logits.gather(1, best) - log_sum).float(),
        )

    def index(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        return to_device(list(rows), torch.int64, logits.device)

    def in_order(self, parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        together = torch.cat(list(parts))
        return torch.empty_like(together).index_copy_(0, self.index(places, together), together)

    def send(self, arrays: Sequence[Tensor], logits: Tensor) -> Arrival:
        return to_host(arrays, logits.device)


def _log_softmax(logits: Tensor) -> Tensor:
    distribution = Distribution.of(logits)
    return logits - (distribution.peak + distribution.log_total).float()


def _find(
    candidates: Candidates,
    rows: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    values: NDArray[np.float64],
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows and columns of these tokens, and the values that go there, all on the device."""
    device = candidates.logits.device
    where = to_device(np.stack([rows, token_ids]), torch.int64, device)
    row, wanted = where[0], where[1]
    value = to_device(values, torch.float32, device)
    if candidates.token_ids is None:
        return (row, wanted), value
    num_rows, num_columns = candidates.token_ids.shape
    # Ascending in every row: with the row in front, ascending altogether.
    offsets = 2 * PADDING * torch.arange(num_rows, device=device)
    keys = (candidates.token_ids + offsets[:, None]).flatten()
    places = torch.searchsorted(keys, wanted + offsets[row]).clamp_max(keys.numel() - 1)
    found = keys[places] == wanted + offsets[row]
    return (row[found], (places - row * num_columns)[found]), value[found]


def _best_columns(logits: Tensor, number: int) -> Tensor:
    """Columns of the largest logits, best first; equals in order of column.

    Float32 bits, turned so that they order like the numbers, above the column counted backwards:
    one integer comparison decides both.
    """
    num_columns = logits.shape[1]
    bits = (logits + 0.0).contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    backwards = torch.arange(num_columns - 1, -1, -1, device=logits.device)
    keys = (ordered << 32) | backwards
    return num_columns - 1 - (keys.topk(number, dim=1).values & 0xFFFFFFFF)

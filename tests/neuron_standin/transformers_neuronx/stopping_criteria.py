"""Conditions that end `sample()`; they see the prompt and the last probabilities."""

from __future__ import annotations

import time
from typing import Any

import torch


class StoppingCriteria:
    """Called after every token; true ends the call."""

    def __call__(
        self, input_ids: torch.Tensor, probs: torch.Tensor, **kwargs: Any
    ) -> bool:  # pragma: no cover
        """Whether to stop."""
        raise NotImplementedError


class MaxTimeCriteria(StoppingCriteria):
    """Ends after some seconds."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = initial_timestamp or time.time()

    def __call__(self, input_ids: torch.Tensor, probs: torch.Tensor, **kwargs: Any) -> bool:
        """Whether the time is over."""
        return time.time() - self.initial_timestamp > self.max_time


class StoppingCriteriaList(list):
    """Any of several."""

    def __call__(self, input_ids: torch.Tensor, probs: torch.Tensor, **kwargs: Any) -> bool:
        """Whether one of them says so."""
        return any(criterion(input_ids, probs, **kwargs) for criterion in self)

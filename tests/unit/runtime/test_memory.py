"""How much memory the KV cache may take."""

from __future__ import annotations

from typing import Any

import pytest

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.limits import AvailableMemory
from tgwui_k8s.runtime.memory import StepSize, check_weights_fit, kv_cache_budget

GIB = 1 << 30


def request(**fields: Any) -> LoadRequest:
    """A request with nothing set."""
    return LoadRequest(model_path="", loader="", **fields)


@pytest.mark.parametrize(("is_limited", "expected"), [(True, 8 * GIB), (False, 4 * GIB)])
def test_without_a_limit_half_of_what_is_free_is_left_to_others(
    is_limited: bool, expected: int
) -> None:
    """With one, everything but what is reserved is ours."""
    free = AvailableMemory(10 * GIB, is_limited)
    assert kv_cache_budget(request(), free, 2 * GIB) == expected


@pytest.mark.parametrize("is_limited", [True, False])
def test_a_given_size_is_kept_to_or_refused(is_limited: bool) -> None:
    """It must fit beside what is reserved."""
    free = AvailableMemory(10 * GIB, is_limited)
    assert kv_cache_budget(request(kv_cache_bytes=8 * GIB), free, 2 * GIB) == 8 * GIB
    with pytest.raises(NotEnoughMemoryError, match="9GiB was asked for, but 8GiB"):
        kv_cache_budget(request(kv_cache_bytes=9 * GIB), free, 2 * GIB)


def test_weights_that_do_not_fit_are_refused_before_they_are_read() -> None:
    """With both sizes in the message."""
    free = AvailableMemory(10 * GIB, is_limited=True)
    check_weights_fit(10 * GIB, free)
    with pytest.raises(NotEnoughMemoryError, match="11GiB, but 10GiB are free"):
        check_weights_fit(11 * GIB, free)


def test_the_workspace_grows_with_tokens_and_vocabulary() -> None:
    """An 8B model in bfloat16 with 512 tokens a step: a few hundred megabytes and the logits."""
    step = StepSize(
        num_tokens=512,
        num_sequences=64,
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
        element_bytes=2,
    )
    logits = 256 * 128256 * 4
    assert step.workspace_bytes > logits + 512 * 14336 * 2 * 2
    assert step.workspace_bytes < 2 * GIB

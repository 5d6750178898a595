"""The native decoder in tests: every variant that this machine runs, and steps by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from loaders.native import NativeLoader, NativeRunner
from tgwui_k8s.contract import Batch, LoadRequest, ScheduledSequence
from tgwui_k8s.runtime.native_library import Variant, variants_here, why_unavailable

needs_native_decoder = pytest.mark.skipif(
    why_unavailable() is not None, reason=f"no native decoder: {why_unavailable()}"
)


def _parametrized(variants: list[Variant]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", variants or [None], ids=lambda v: v and v.name)


# Variants with the same numerics give the same bits, so that one of them stands for all.
with_each_numerics = _parametrized(list({v.numerics: v for v in variants_here()}.values()))


def load(folder, variant: Variant | None = None, **kwargs) -> NativeRunner:
    """The model in `folder`, by default as a user gets it."""
    request = LoadRequest(
        model_path=str(folder), loader="Native", max_num_seqs=8, num_threads=2, **kwargs
    )
    return NativeLoader(variant).load(request, lambda progress: None)


def part(runner, token_ids, start=0, first_block=0, num_logits=None) -> ScheduledSequence:
    """A scheduled run of tokens whose blocks follow one another from `first_block` on."""
    num_blocks = -(-(start + len(token_ids)) // runner.layout.block_size)
    tables = tuple(list(range(first_block, first_block + num_blocks)) for _ in runner.layout.groups)
    return ScheduledSequence(
        row=0,
        start=start,
        token_ids=token_ids,
        block_tables=tables,
        num_logits=len(token_ids) if num_logits is None else num_logits,
    )


def execute(runner, *parts) -> npt.NDArray[np.float32]:
    """One step of these parts; logits of all their rows."""
    return runner.execute(Batch(list(parts), sum(len(p.token_ids) for p in parts)))

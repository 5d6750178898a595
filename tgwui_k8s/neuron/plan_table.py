"""The plan of a model on machines as rows of text: for `neuron plan` and for docs/neuron.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.neuron.instances import Instance
from tgwui_k8s.neuron.plan import Plan, resources
from tgwui_k8s.neuron.shape import ModelShape

CONTEXTS = (2048, 4096, 8192)
"""Lengths for which the largest batch is shown."""

COLUMNS = (
    "instance",
    "tp",
    "heads q/kv",
    "weights/core",
    "KV/core/1k",
    "max batch × context",
    *(f"batch at {length}" for length in CONTEXTS),
    "pod requests",
)


def plan_rows(
    shape: ModelShape, instances: Iterable[Instance], amp: str, *, quantized: bool = False
) -> Iterator[tuple[str, ...]]:
    """One row per machine and degree that holds the model; one line where none does."""
    for instance in instances:
        plans = [
            Plan(shape=shape, tp_degree=degree, amp=amp, quantized=quantized)
            for degree in instance.tp_degrees
        ]
        fitting = [plan for plan in plans if plan.max_positions >= min(CONTEXTS)]
        for plan in fitting:
            yield _row(plan, instance)
        if not fitting:
            yield (instance.name, "none", *("",) * (len(COLUMNS) - 3), "does not fit")


def _row(plan: Plan, instance: Instance) -> tuple[str, ...]:
    requested = resources(plan.tp_degree, instance)
    return (
        instance.name,
        str(plan.tp_degree),
        "/".join(map(str, plan.heads)),
        format_byte_size(plan.weight_bytes),
        format_byte_size(1024 * plan.position_bytes),
        f"{plan.max_positions:,}",
        *(str(plan.largest_batch(length) or "-") for length in CONTEXTS),
        ", ".join(f"{name}: {count}" for name, count in requested.items()),
    )

"""What fits: memory per core, the largest batch and context, and what a pod must request.

An estimate to decide with, on the safe side of what is documented. The compiler has the last word
("Estimated peak HBM usage exceeds 16GB").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.neuron.instances import CORE_BYTES, GIB, Instance, devices_for
from tgwui_k8s.neuron.shape import ModelShape

MARGIN_BYTES = GIB
"""Of each core, for compiled code, activations and the runtime's own buffers."""

_LARGEST_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one model would lie on `tp_degree` cores. Sizes are per core."""

    shape: ModelShape
    tp_degree: int
    amp: str
    quantized: bool = False
    core_bytes: int = CORE_BYTES

    @property
    def heads(self) -> tuple[int, int]:
        """Query and key-value heads, padded and copied."""
        return self.shape.padded_heads(self.tp_degree)

    @property
    def weight_bytes(self) -> int:
        """Weights."""
        return self.shape.core_weight_bytes(self.tp_degree, self.amp, quantized=self.quantized)

    @property
    def position_bytes(self) -> int:
        """KV cache for one position of one sequence."""
        return self.shape.core_position_bytes(self.tp_degree, self.amp)

    @property
    def max_positions(self) -> int:
        """Batch times context: positions of KV cache that fit beside the weights."""
        return max(0, self.core_bytes - MARGIN_BYTES - self.weight_bytes) // self.position_bytes

    def used_bytes(self, batch_size: int, n_positions: int) -> int:
        """Weights, KV cache and margin."""
        return self.weight_bytes + batch_size * n_positions * self.position_bytes + MARGIN_BYTES

    def largest_batch(self, n_positions: int) -> int:
        """Sequences of this length that fit at once, as a power of two; 0 where none does."""
        fitting = min(self.max_positions // n_positions, _LARGEST_BATCH)
        return 1 << (fitting.bit_length() - 1) if fitting else 0


def check_memory(
    plan: Plan, *, batch_size: int, n_positions: int, tp_degrees: Iterable[int]
) -> None:
    """Raise `NotEnoughMemoryError` that says what would fit, unless this does.

    `tp_degrees` are those the machine could run instead.
    """
    used = plan.used_bytes(batch_size, n_positions)
    if used <= plan.core_bytes:
        return
    positions = batch_size * n_positions
    remedies = []
    if plan.max_positions >= batch_size:
        remedies.append(f"n_positions up to {plan.max_positions // batch_size}")
    if plan.max_positions >= n_positions:
        remedies.append(f"batch_size up to {plan.max_positions // n_positions}")
    wider = [replace(plan, tp_degree=degree) for degree in tp_degrees if degree > plan.tp_degree]
    fitting = [other.tp_degree for other in wider if other.max_positions >= positions]
    if fitting:
        remedies.append(f"tp_degree {min(fitting)}")
    if not remedies:
        remedies.append("a larger instance, a smaller model, or quantization s8")
    raise NotEnoughMemoryError(
        f"too little device memory: with tp_degree={plan.tp_degree}, batch_size={batch_size} and "
        f"n_positions={n_positions} each core needs {format_byte_size(used)} of its "
        f"{format_byte_size(plan.core_bytes)} ({format_byte_size(plan.weight_bytes)} weights, "
        f"{format_byte_size(positions * plan.position_bytes)} KV cache, "
        f"{format_byte_size(MARGIN_BYTES)} margin); what fits: {', or '.join(remedies)}"
    )


def resources(tp_degree: int, instance: Instance) -> dict[str, int]:
    """The extended resource that a container requests, and has as its limit."""
    return {"aws.amazon.com/neuron": devices_for(tp_degree, instance.family)}


def host_warning(shape: ModelShape, amp: str, instance: Instance) -> str | None:
    """The trap of the small sizes: weights pass through the host's memory on their way."""
    needed = shape.num_parameters * (4 if amp == "f32" else 2)
    if needed * 1.2 <= instance.host_bytes:
        return None
    return (
        f"the checkpoint ({format_byte_size(needed)}) passes through the host's memory, and "
        f"{instance.name} has {format_byte_size(instance.host_bytes)}: loading will be killed"
    )

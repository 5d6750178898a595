"""Machines, cores and memory: what fits where, without any Neuron software."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import NotEnoughMemoryError, UnsupportedModelError
from tgwui_k8s.neuron.instances import (
    GIB,
    INSTANCES,
    devices_for,
    find_instance,
)
from tgwui_k8s.neuron.plan import Plan, check_memory, host_warning, resources
from tgwui_k8s.neuron.plan_table import COLUMNS, plan_rows
from tgwui_k8s.neuron.shape import KNOWN_SHAPES, ModelShape
from tgwui_k8s.neuron.visible_cores import find_host, take_cores

PADDED = [
    ((32, 32), 8, (32, 32)),
    ((40, 40), 24, (48, 48)),
    ((32, 8), 2, (32, 8)),
    ((32, 8), 8, (32, 8)),
    ((32, 8), 12, (36, 36)),
    ((32, 8), 16, (32, 16)),
    ((32, 8), 24, (48, 24)),
    ((32, 8), 32, (32, 32)),
    ((64, 8), 24, (72, 24)),
    ((64, 8), 32, (64, 32)),
    ((24, 8), 12, (24, 24)),
    ((24, 8), 24, (24, 24)),
]
"""Computed with the library's own function, by the reference."""


def shape_of(heads: int, kv_heads: int) -> ModelShape:
    return ModelShape(
        layers=2,
        hidden=64 * heads,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        intermediate=64,
        vocab=64,
    )


@pytest.mark.parametrize(("heads", "tp_degree", "padded"), PADDED)
def test_heads_are_padded_as_the_library_does(
    heads: tuple[int, int], tp_degree: int, padded: tuple[int, int]
) -> None:
    """Query heads up to a multiple; key-value heads copied until each core has one."""
    assert shape_of(*heads).padded_heads(tp_degree) == padded


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Llama-2-7B", 6.7),
        ("Llama-2-13B", 13.0),
        ("Llama-2-70B", 69.0),
        ("Llama-3-8B", 8.0),
        ("Llama-3-70B", 70.6),
    ],
)
def test_known_shapes_have_the_published_sizes(name: str, billions: float) -> None:
    """To the decimal that their names round to."""
    assert round(KNOWN_SHAPES[name].num_parameters / 1e9, 1) == pytest.approx(billions, abs=0.1)


def test_one_core_holds_its_share() -> None:
    """Llama-3-8B over eight cores: an eighth of the weights, one key-value head."""
    plan = Plan(shape=KNOWN_SHAPES["Llama-3-8B"], tp_degree=8, amp="bf16")

    assert plan.position_bytes == 2 * 32 * 1 * 128 * 2
    assert 1.7 * GIB < plan.weight_bytes < 1.9 * GIB
    assert plan.used_bytes(1, plan.max_positions) <= plan.core_bytes
    assert plan.used_bytes(1, plan.max_positions + 1) > plan.core_bytes


def test_copied_heads_cost_memory_for_every_position() -> None:
    """Twelve cores hold less context than eight: 36 heads instead of 8 are cached."""
    shape = KNOWN_SHAPES["Llama-3-8B"]
    eight = Plan(shape=shape, tp_degree=8, amp="bf16")
    twelve = Plan(shape=shape, tp_degree=12, amp="bf16")

    assert twelve.max_positions < eight.max_positions


def test_eight_bit_weights_take_half() -> None:
    """Of the layers; the head stays."""
    shape = KNOWN_SHAPES["Llama-2-7B"]
    whole = Plan(shape=shape, tp_degree=2, amp="bf16").weight_bytes
    half = Plan(shape=shape, tp_degree=2, amp="bf16", quantized=True).weight_bytes

    assert 0.5 < half / whole < 0.55


def test_what_does_not_fit_names_a_degree_that_does() -> None:
    """If the machine has one."""
    plan = Plan(shape=KNOWN_SHAPES["Llama-2-70B"], tp_degree=8, amp="bf16")

    with pytest.raises(NotEnoughMemoryError, match="what fits: tp_degree 24"):
        check_memory(plan, batch_size=8, n_positions=4096, tp_degrees=(1, 2, 4, 8, 12, 24))


@pytest.mark.parametrize(
    ("instance", "degrees"),
    [
        ("inf2.xlarge", (1, 2)),
        ("inf2.24xlarge", (1, 2, 4, 8, 12)),
        ("inf2.48xlarge", (1, 2, 4, 8, 12, 24)),
        ("trn1.2xlarge", (1, 2)),
        ("trn1.32xlarge", (1, 2, 8, 16, 32)),
        ("trn1n.32xlarge", (1, 2, 8, 16, 32)),
    ],
)
def test_degrees_are_those_the_runtime_knows(instance: str, degrees: tuple[int, ...]) -> None:
    """By family and size."""
    assert find_instance(instance).tp_degrees == degrees


def test_unknown_machines_are_refused_with_the_known_ones() -> None:
    """trn2 belongs to another loader."""
    with pytest.raises(UnsupportedModelError, match=r"inf2\.48xlarge.*vLLM"):
        find_instance("trn2.48xlarge")


def test_pods_request_devices_that_lie_in_a_row() -> None:
    """Two cores a device; on trn1 only some counts can be had."""
    assert devices_for(24, "inf2") == 12
    assert devices_for(1, "inf2") == 1
    assert devices_for(8, "trn1") == 4
    assert resources(2, find_instance("trn1.32xlarge")) == {"aws.amazon.com/neuron": 1}


def test_the_small_machine_warns_of_its_memory() -> None:
    """16 GiB of host memory do not pass 15 GiB of weights."""
    shape = KNOWN_SHAPES["Llama-3-8B"]

    assert "inf2.xlarge" in str(host_warning(shape, "bf16", find_instance("inf2.xlarge")))
    assert host_warning(shape, "bf16", find_instance("inf2.8xlarge")) is None


def test_the_table_has_a_line_for_every_machine() -> None:
    """Also for those on which nothing fits."""
    rows = list(plan_rows(KNOWN_SHAPES["Llama-2-70B"], INSTANCES, "bf16"))

    assert {row[0] for row in rows} == {instance.name for instance in INSTANCES}
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert ("inf2.xlarge", "none") in {row[:2] for row in rows}


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "0-7", "NEURON_RT_NUM_CORES": "2"}, 8),
        ({"NEURON_RT_VISIBLE_CORES": "3,4,5"}, 3),
        ({"NEURON_RT_VISIBLE_CORES": "3"}, 1),
        ({"NEURON_RT_NUM_CORES": "2"}, 2),
        ({"NEURON_RT_NUM_CORES": "0"}, None),
        ({}, None),
    ],
)
def test_visible_cores_win_over_their_number(
    environ: dict[str, str], count: int | None, tmp_path: Path
) -> None:
    """As the runtime reads them; without any word the number is unknown."""
    assert find_host(environ, tmp_path).num_cores == count


@pytest.mark.parametrize(
    "environ",
    [
        {"NEURON_RT_VISIBLE_CORES": "0,2"},
        {"NEURON_RT_VISIBLE_CORES": "7-0"},
        {"NEURON_RT_VISIBLE_CORES": "all"},
        {"NEURON_RT_NUM_CORES": "two"},
    ],
)
def test_wrong_variables_are_refused(environ: dict[str, str], tmp_path: Path) -> None:
    """Cores must be numbers in a row."""
    with pytest.raises(UnsupportedModelError, match=next(iter(environ))):
        find_host(environ, tmp_path)


def test_devices_are_counted_where_no_variable_speaks(tmp_path: Path) -> None:
    """Two cores each; and the machine says what it is."""
    (tmp_path / "dev").mkdir()
    for number in range(6):
        (tmp_path / "dev" / f"neuron{number}").touch()
    name = tmp_path / "sys/devices/virtual/dmi/id/product_name"
    name.parent.mkdir(parents=True)
    name.write_text("inf2.24xlarge\n")

    host = find_host({}, tmp_path)

    assert (host.num_cores, host.instance, host.family) == (12, "inf2.24xlarge", "inf2")


def test_cores_are_asked_for_only_where_nobody_has() -> None:
    """Exactly as many as are needed, never all."""
    free: dict[str, str] = {"NEURON_RT_NUM_CORES": "0"}
    given = {"NEURON_RT_VISIBLE_CORES": "0-11"}
    take_cores(free, 8)
    take_cores(given, 8)

    assert free == {"NEURON_RT_NUM_CORES": "8"}
    assert given == {"NEURON_RT_VISIBLE_CORES": "0-11"}

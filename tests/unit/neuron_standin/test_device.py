"""Invariants 6 and 7: cores belong to one process, and memory is finite."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.helpers.neuron import NeuronHost, watched_host
from tests.helpers.neuron_calls import make_model

CLAIM = """
import sys
from neuron_double.device import device
device.claim(int(sys.argv[1]))
print(*device.cores, flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(host: NeuronHost, tp_degree: int, **variables: str) -> Iterator[list[int]]:
    """A process that holds cores until the block ends; gives the cores."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tp_degree)],
        env=host.env(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield [int(core) for core in process.stdout.readline().split()]
    finally:
        process.communicate()


@pytest.mark.parametrize(
    ("variables", "tp_degree", "cores"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "4-5"}, 2, [4, 5]),
        ({"NEURON_RT_VISIBLE_CORES": "2,3,4"}, 2, [2, 3, 4]),
        ({"NEURON_RT_VISIBLE_CORES": "7", "NEURON_RT_NUM_CORES": "2"}, 1, [7]),
        ({"NEURON_RT_NUM_CORES": "2"}, 2, [0, 1]),
    ],
)
def test_the_environment_says_which_cores_are_taken(
    llama: Path,
    neuron: NeuronHost,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    tp_degree: int,
    cores: list[int],
) -> None:
    """Invariant 6: VISIBLE_CORES, an index, a list or a range, beats NUM_CORES."""
    monkeypatch.delenv("NEURON_RT_NUM_CORES")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    make_model(llama, tp_degree=tp_degree).to_neuron()

    assert neuron.events("cores")[0]["cores"] == cores
    facts = neuron.events("to_neuron")[0]
    assert facts["compiles"] == neuron.count("compile") == 2
    assert facts["loaded"] is False
    assert facts["seconds"] > 0


def test_without_the_environment_a_process_takes_every_core(
    llama: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 6: which leaves nothing to others, and is written down."""
    monkeypatch.delenv("NEURON_RT_NUM_CORES")

    make_model(llama).to_neuron()

    assert neuron.events("cores")[0]["cores"] == list(range(12))
    assert neuron.accept_violation("took all") == ["took all 12 cores of the host for tp_degree 2"]


@pytest.mark.parametrize(
    ("variables", "tp_degree", "message"),
    [
        (
            {"NEURON_RT_NUM_CORES": "2"},
            4,
            "nrt_allocate_neuron_cores NeuronCore(s) not available - Requested:nc2-nc3 Available:0",
        ),
        (
            {"NEURON_RT_NUM_CORES": "16"},
            8,
            "NeuronCore(s) not available - Requested:nc12-nc15 Available:12",
        ),
        ({"NEURON_RT_VISIBLE_CORES": "12"}, 1, "No neuron device available"),
        ({"NEURON_RT_VISIBLE_CORES": "1,3"}, 2, "Neuron cores are not contiguous"),
        (
            {},
            3,
            "Unsupported topology. Supported number of Neuron Cores is 1, 2, 4, 8, 12, 24",
        ),
        (
            {"NEURON_STANDIN_INSTANCE": "trn1.32xlarge"},
            4,
            "Unsupported topology. Supported number of Neuron Cores is 1, 2, 8, 16, 32",
        ),
    ],
)
def test_impossible_cores_are_refused_in_the_words_of_the_runtime(
    llama: Path,
    neuron: NeuronHost,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    tp_degree: int,
    message: str,
) -> None:
    """Invariant 6: more than is visible, not there, with a gap, or of a wrong number."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(RuntimeError, match=re.escape(message)):
        make_model(llama, tp_degree=tp_degree).to_neuron()

    assert neuron.count("weights_read") == 0


def test_cores_of_another_process_are_not_available(llama: Path, neuron: NeuronHost) -> None:
    """Invariants 6 and 7: until it exits; free cores are found beside them."""
    with another_process(neuron, 2, NEURON_RT_VISIBLE_CORES="0-1") as held:
        assert held == [0, 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NEURON_RT_VISIBLE_CORES", "1-2")
            message = "NeuronCore(s) not available - Requested:nc1-nc1 Available:1"
            with pytest.raises(RuntimeError, match=re.escape(message)):
                make_model(llama).to_neuron()
        make_model(llama).to_neuron()
        assert neuron.events("cores")[-1]["cores"] == [2, 3]
        neuron.restart()

    make_model(llama).to_neuron()
    assert neuron.events("cores")[-1]["cores"] == [0, 1]


def test_memory_is_charged_with_padded_heads_and_cache(
    llama: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 6: 16 GiB for each core; more is the runtime's allocation failure."""
    make_model(llama).to_neuron()
    small = neuron.events("memory")[-1]
    make_model(llama, batch_size=8, n_positions=256).to_neuron()
    large = neuron.events("memory")[-1]
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "8")
    neuron.restart()
    make_model(llama, tp_degree=8).to_neuron()
    padded = neuron.events("memory")[-1]

    layers, head_size, hidden, width = 2, 16, 64, 4
    cache = 2 * layers * 2 * head_size * 64 * width
    assert small["limit"] == 2 * 16 * 2**30
    assert large["bytes"] - small["bytes"] == cache * (8 * 256 // 64 - 1)
    weights = 2 * layers * hidden * head_size * width * ((8 - 4) + (8 - 2))
    assert padded["bytes"] - small["bytes"] == weights + 3 * cache

    neuron.restart()
    monkeypatch.setenv("NEURON_STANDIN_CORE_BYTES", str(small["bytes"] * 3 // 4))
    first, second = make_model(llama), make_model(llama)
    first.to_neuron()
    message = 'nrt_load_collectives status=4 message="Allocation Failure"'
    with pytest.raises(RuntimeError, match=re.escape(message)):
        second.to_neuron()
    del first
    gc.collect()
    second.to_neuron()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp_degree", "padded"),
    [
        (40, 40, 24, (48, 48)),
        (32, 8, 2, (32, 8)),
        (32, 8, 8, (32, 8)),
        (32, 8, 12, (36, 36)),
        (32, 8, 16, (32, 16)),
        (32, 8, 24, (48, 24)),
        (32, 8, 32, (32, 32)),
        (64, 8, 24, (72, 24)),
        (64, 8, 32, (64, 32)),
        (24, 8, 12, (24, 24)),
        (24, 8, 24, (24, 24)),
    ],
)
@pytest.mark.usefixtures("neuron")
def test_heads_are_padded_as_the_library_was_seen_to_pad_them(
    heads: int, kv_heads: int, tp_degree: int, padded: tuple[int, int]
) -> None:
    """The table of observed paddings."""
    from transformers_neuronx.utils import get_qkv_padding

    assert get_qkv_padding(heads, kv_heads, tp_degree) == padded


def test_a_model_moves_to_the_device_once(llama: Path, neuron: NeuronHost) -> None:
    """Invariant 7: a second `to_neuron()` is written down."""
    model = make_model(llama)
    model.to_neuron()
    model.to_neuron()

    assert neuron.accept_violation("twice") == ["to_neuron() was called twice on one model"]


@pytest.mark.usefixtures("llama")
def test_a_forked_process_does_not_own_the_device(neuron: NeuronHost) -> None:
    """Invariant 7: a child that touches the device of its parent fails, and is written down."""
    from neuron_double.device import device

    device.claim(2)
    child = os.fork()
    if child == 0:
        try:
            device.check_process()
        except RuntimeError:
            os._exit(17)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert neuron.accept_violation("forked") == [
        "a forked process touched the device of its parent"
    ]


def test_the_runtime_reads_its_environment_once(
    llama: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set after the first touch has no effect, and is written down."""
    make_model(llama).to_neuron()
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "4")
    make_model(llama).to_neuron()

    assert neuron.count("cores") == 1
    assert len(neuron.accept_violation("after the device was touched")) == 1


def test_the_device_may_break(
    llama: Path, neuron: NeuronHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some graph runs every further one fails."""
    monkeypatch.setenv("NEURON_STANDIN_BREAKS_AFTER", "3")
    model = make_model(llama)
    model.to_neuron()

    for _ in range(2):
        with pytest.raises(RuntimeError, match="nrt_execute status=101"):
            model.sample(torch.tensor([[5, 6, 7]]), 20)
    assert neuron.count("forward") == 3


def test_a_violation_that_nobody_expected_fails_the_test(tmp_path: Path) -> None:
    """Also one of another process; one that was accepted does not."""
    complain = "from neuron_double.journal import violation; violation('a slip of the pen')"

    def slip(host: NeuronHost) -> None:
        subprocess.run([sys.executable, "-c", complain], env=host.env(), check=True)

    with (
        pytest.raises(AssertionError, match="a slip of the pen"),
        watched_host(tmp_path / "strict") as host,
    ):
        slip(host)
    with watched_host(tmp_path / "lenient") as host:
        slip(host)
        assert host.accept_violation("slip") == ["a slip of the pen"]


def test_processes_can_find_other_versions(neuron_host: NeuronHost) -> None:
    """Of the library, the compiler, or both; the rest stays."""
    ask = "import neuronxcc, torch_neuronx; print(neuronxcc.__version__, torch_neuronx.__version__)"

    answer = subprocess.run(
        [sys.executable, "-c", ask],
        env=neuron_host.env({"neuronx-cc": "2.19.8089.0"}),
        capture_output=True,
        check=True,
        text=True,
    )

    assert answer.stdout.split() == ["2.19.8089.0", "2.7.0.2.9.9357"]


def test_the_machinery_is_imported_only_where_a_test_asked_for_it() -> None:
    """Outside of the fixtures there is no transformers_neuronx."""
    with pytest.raises(ModuleNotFoundError):
        __import__("transformers_neuronx")

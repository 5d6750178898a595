"""What every loader promises, whatever it loads: one suite, one case per loader.

A loader that is not installed, or whose machine this is not, is skipped with its own reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.gguf_models import make_gguf
from tests.helpers.neuron_models import compile_model, neuron_software
from tests.helpers.paged_driver import PagedDriver, to_numpy
from tgwui_k8s.contract import (
    Batch,
    KVLayout,
    Loader,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    ModelRunner,
    ScheduledSequence,
)
from tgwui_k8s.errors import StartupError
from tgwui_k8s.registry import available, get_loader

PROMPTS = ([7, 8, 9, 10, 11, 12, 13], [20, 21], list(range(30, 60)))


@dataclass(frozen=True)
class Case:
    """How to load something small with a loader, and how equal its logits are."""

    architecture: str | None
    dtype: str = "float32"
    tolerance: float = 1e-4
    device: str = "cpu"
    standin: bool = False
    """Its library is played by the stand-in for Neuron."""
    quantized: str = ""
    """The key of the format that its checkpoints are in."""
    options: tuple[tuple[str, str], ...] = ()
    gguf: bool = False
    """The checkpoint is converted to a GGUF file."""
    slots: bool = False
    """A sequence has one slot: prompts are computed whole, and no block is shared."""


EXACT_LLAMA_CPP = (("cache_type", "f32"), ("flash_attn", "off"))
"""Flash attention rounds to float16 on CPUs, and so does the cache by default."""

CASES: dict[str, Case] = {
    "AutoAWQ": Case(architecture="llama", quantized="AWQ"),
    "AutoGPTQ": Case(architecture="llama", quantized="GPTQ, act-order"),
    "fake": Case(architecture=None, tolerance=0.0),
    "Transformers": Case(architecture="llama"),
    "Native": Case(architecture="llama", dtype="bfloat16", tolerance=0.15),
    "llama.cpp": Case(architecture="llama", gguf=True, options=EXACT_LLAMA_CPP),
    "Neuron": Case(architecture="llama", device="auto", standin=True, slots=True),
}

EMBEDDERS = {"Embeddings"}
"""Loaders of models that generate nothing; tests/numeric/test_embeddings.py is theirs."""

BACKENDS = {"vLLM"}
"""Engines of their own; tests/numeric/test_vllm_loader.py and the service tests are theirs."""

with_blocks = pytest.mark.parametrize(
    "case", sorted(name for name, case in CASES.items() if not case.slots), indirect=True
)


@pytest.fixture(scope="module", params=sorted(CASES), name="case")
def _case(request: pytest.FixtureRequest) -> tuple[str, Case]:
    return request.param, CASES[request.param]


@pytest.fixture(scope="module", name="loader")
def _loader(case: tuple[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    name, details = case
    entry = next(entry for entry in available() if entry.name == name)
    if details.standin:
        with neuron_software(tmp_path_factory.mktemp("host")):
            yield get_loader(name)
        return
    if not entry.is_installed:
        pytest.skip(f"needs {', '.join(entry.missing)}")
    yield get_loader(name)


@pytest.fixture(scope="module", name="request_to_load")
def _request_to_load(
    case: tuple[str, Case], loader: Loader, tmp_path_factory: pytest.TempPathFactory
) -> LoadRequest:
    name, details = case
    path = "nowhere"
    if details.architecture is not None:
        tiny = pytest.importorskip("tgwui_k8s.demo.tiny")
        folder: Path = tmp_path_factory.mktemp(name)
        path = str(tiny.make_checkpoint(folder, details.architecture, dtype=details.dtype))
    if details.quantized:
        from tests.helpers import quantized_checkpoints

        form = quantized_checkpoints.FORMATS[details.quantized]
        quantized_checkpoints.make_quantized(folder, form, architecture=details.architecture)
    if details.gguf:
        path = str(make_gguf(Path(path), Path(path).with_suffix(".gguf")))
    if details.standin:
        compile_model(loader, Path(path), batch_size=4, n_positions=128, tp_degree=2)
    return LoadRequest(
        model_path=path,
        loader=name,
        dtype=details.dtype if details.architecture else "auto",
        device=details.device,
        max_model_len=128,
        max_num_seqs=4,
        kv_cache_bytes=4 * 1024 * 1024,
        num_threads=1,
        options=dict(details.options),
    )


@dataclass
class Loading:
    """A loaded model and what was said while it loaded."""

    runner: ModelRunner
    progress: list[LoadProgress]


@pytest.fixture(scope="module", name="loading")
def _loading(loader: Loader, request_to_load: LoadRequest) -> Iterator[Loading]:
    progress: list[LoadProgress] = []
    try:
        runner = loader.load(request_to_load, progress.append)
    except StartupError as error:
        if "AVX" not in str(error):
            raise
        pytest.skip(str(error))
    assert isinstance(runner, ModelRunner)
    runner.warm_up()
    with closing(runner):
        yield Loading(runner, progress)


@pytest.fixture(name="runner")
def _runner(loading: Loading) -> ModelRunner:
    return loading.runner


@pytest.fixture(name="tolerance")
def _tolerance(case: tuple[str, Case]) -> float:
    return case[1].tolerance


def assert_same(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], tolerance: float
) -> None:
    """Equal but for rounding, and so in shape."""
    assert left.shape == right.shape
    np.testing.assert_allclose(left, right, atol=tolerance, rtol=tolerance)


def alone(runner: ModelRunner, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits of every token of a sequence computed whole, alone."""
    return PagedDriver(runner).prefill(token_ids)[1]


def test_every_loader_has_a_case() -> None:
    """A loader that is added is held to its contract."""
    assert set(CASES) | EMBEDDERS | BACKENDS == {
        entry.name for entry in available() if entry.distribution == "tgwui-k8s"
    }


def test_loader_says_its_name_and_options(loader: Loader, case: tuple[str, Case]) -> None:
    """The entry point, the class and the help agree."""
    assert isinstance(loader, Loader)
    assert loader.name == case[0]
    assert all(help for help in loader.options.values())


def test_unknown_option_is_refused_by_name(loader: Loader, request_to_load: LoadRequest) -> None:
    """An option that a loader does not know is never ignored."""
    request = msgspec.structs.replace(request_to_load, options={"no_such_option": "1"})

    with pytest.raises(StartupError, match="no_such_option"):
        loader.load(request, lambda progress: None)


def test_info_describes_the_model(runner: ModelRunner, case: tuple[str, Case]) -> None:
    """Facts are there, sane, and survive the way to the API process."""
    info = runner.info

    assert info.loader == case[0]
    assert info.architecture
    assert info.fingerprint
    assert info.max_model_len == 128
    assert all(0 <= token_id < info.vocab_size for token_id in info.eos_token_ids)
    packed = msgspec.msgpack.encode(info)
    assert msgspec.msgpack.decode(packed, type=ModelInfo) == info


def test_progress_counts_up_to_its_total(loading: Loading) -> None:
    """Bytes never go back, never exceed the total, and all are read in the end."""
    assert loading.progress
    counts = [progress.bytes_read for progress in loading.progress]
    assert counts == sorted(counts)
    assert loading.progress[-1].bytes_read == loading.progress[-1].bytes_total


def test_layout_says_what_it_is(runner: ModelRunner, case: tuple[str, Case]) -> None:
    """Slots are not cut, not shared, and not mixed; blocks are all of that."""
    layout, is_blocks = runner.layout, not case[1].slots
    assert layout.chunked_prefill is layout.prefix_caching is layout.mixed_batches is is_blocks


def test_layout_holds_the_longest_sequence(runner: ModelRunner) -> None:
    """There are blocks for one sequence of the model's whole context, in every group."""
    layout: KVLayout = runner.layout

    assert layout.block_size >= 1
    assert layout.groups
    for group in layout.groups:
        assert group.window is not None or (
            group.num_blocks * layout.block_size >= runner.info.max_model_len
        )


def test_logits_have_the_promised_shape_and_type(runner: ModelRunner) -> None:
    """float32 [num_logits, vocab_size] in the order of the batch, finite."""
    tables = tuple([0] for _ in runner.layout.groups)
    part = ScheduledSequence(row=0, start=0, token_ids=[5, 6, 7], block_tables=tables, num_logits=2)
    logits = runner.execute(Batch([part], 3))

    assert str(logits.dtype).endswith("float32")
    assert tuple(logits.shape) == (2, runner.info.vocab_size)
    assert np.isfinite(to_numpy(logits)).all()


def test_batched_is_as_alone(runner: ModelRunner, tolerance: float) -> None:
    """A sequence's logits do not depend on what is computed beside it."""
    driver = PagedDriver(runner)
    together = driver.run(*((driver.start(), prompt) for prompt in PROMPTS))

    for prompt, logits in zip(PROMPTS, together, strict=True):
        assert_same(logits, alone(runner, prompt), tolerance)


@with_blocks
def test_chunked_is_as_whole(runner: ModelRunner, tolerance: float) -> None:
    """A prompt may be computed in pieces of any size, decodes of others between them."""
    prompt = PROMPTS[2]
    driver = PagedDriver(runner)
    other, _ = driver.prefill(PROMPTS[0])
    sequence = driver.start()
    pieces = []
    for start, stop in ((0, 1), (1, 9), (9, 16), (16, 30)):
        pieces.append(driver.run((other, [3]), (sequence, prompt[start:stop]))[1])

    assert_same(np.concatenate(pieces), alone(runner, prompt), tolerance)


@with_blocks
def test_only_the_wanted_logits_come_back(runner: ModelRunner, tolerance: float) -> None:
    """A chunk without logits leaves none behind; the last one gives the last rows."""
    prompt = PROMPTS[2]
    driver = PagedDriver(runner)
    sequence = driver.start()

    nothing = driver.run((sequence, prompt[:12]), num_logits=0)[0]
    last = driver.run((sequence, prompt[12:]), num_logits=3)[0]

    assert nothing.shape[0] == 0
    assert_same(last, alone(runner, prompt)[-3:], tolerance)


def test_decoding_is_as_prefilling(runner: ModelRunner, tolerance: float) -> None:
    """Token by token gives the logits of the whole sequence at once."""
    prompt = PROMPTS[0]
    driver = PagedDriver(runner)
    sequence = driver.start()
    steps = [driver.run((sequence, [token_id]))[0] for token_id in prompt]

    assert_same(np.concatenate(steps), alone(runner, prompt), tolerance)


def test_blocks_may_lie_in_any_order(runner: ModelRunner, tolerance: float) -> None:
    """Only the block table says where a sequence's tokens are."""
    prompt = list(range(30, 94))
    num_blocks = -(-len(prompt) // runner.layout.block_size)
    results = []
    for blocks in (list(range(num_blocks)), list(reversed(range(num_blocks)))):
        tables = tuple(list(blocks) for _ in runner.layout.groups)
        part = ScheduledSequence(
            row=0, start=0, token_ids=prompt, block_tables=tables, num_logits=2
        )
        results.append(to_numpy(runner.execute(Batch([part], len(prompt)))))

    assert_same(results[0], results[1], tolerance)


def test_freed_blocks_remember_nothing(runner: ModelRunner, tolerance: float) -> None:
    """A block that held another sequence is as good as a new one, from its first slot on."""
    tables = tuple([1, 0, 2, 3] for _ in runner.layout.groups)

    def compute(token_ids: list[int]) -> npt.NDArray[np.float32]:
        length = len(token_ids)
        part = ScheduledSequence(
            row=1, start=0, token_ids=token_ids, block_tables=tables, num_logits=length
        )
        return to_numpy(runner.execute(Batch([part], length))).copy()

    first = compute(PROMPTS[0])
    compute(PROMPTS[2])

    assert_same(compute(PROMPTS[0]), first, tolerance)


@with_blocks
def test_shared_prefix_blocks_serve_two_sequences(runner: ModelRunner, tolerance: float) -> None:
    """Blocks computed for one sequence are read by another with the same prefix."""
    size = runner.layout.block_size
    prefix, tails = list(range(10, 10 + size)), ([3, 4], [5])
    groups = runner.layout.groups

    def part(blocks: list[int], start: int, token_ids: list[int]) -> ScheduledSequence:
        tables = tuple(list(blocks) for _ in groups)
        return ScheduledSequence(
            row=blocks[-1] % 4, start=start, token_ids=token_ids, block_tables=tables, num_logits=1
        )

    runner.execute(Batch([part([0], 0, prefix)], size))
    batch = Batch([part([0, 1], size, tails[0]), part([0, 2], size, tails[1])], 3)
    logits = to_numpy(runner.execute(batch))

    for row, tail in zip(logits, tails, strict=True):
        assert_same(row, alone(runner, prefix + tail)[-1], tolerance)

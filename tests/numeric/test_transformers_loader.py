"""What the Transformers loader accepts, reports and promises."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loaders.hf_transformers import TransformersLoader
from tests.helpers.paged_driver import PagedDriver, to_numpy
from tests.helpers.transformers_models import (
    ModelPair,
    assert_close,
    load_reference,
    load_request,
    load_runner,
    random_tokens,
)
from tgwui_k8s.contract import Batch, Loader, LoadProgress, ModelRunner, ScheduledSequence
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.errors import (
    NotEnoughMemoryError,
    UnsupportedModelError,
)
from tgwui_k8s.runtime import transformers_config

PROMPT = random_tokens(40, seed=1)
ROPE = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}
BY_LAYER_TYPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": ROPE,
}
LONGROPE = {
    "rope_theta": 10000.0,
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "factor": 4.0,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in one safetensors file."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def logits_of(runner: ModelRunner) -> np.ndarray:
    """Logits of the prompt."""
    return PagedDriver(runner).prefill(PROMPT)[1]


# -------------------------------------------------------------------------------- what it loads


def test_it_is_a_loader_that_returns_a_model_runner(llama: Path) -> None:
    """The shapes that registry and engine rely on."""
    assert isinstance(TransformersLoader(), Loader)
    assert isinstance(load_runner(llama), ModelRunner)


@pytest.mark.parametrize("weight_format", ["sharded", "bin"])
def test_weights_may_come_in_shards_or_pickles(
    llama: Path, tmp_path: Path, weight_format: Any
) -> None:
    """The same weights give the same logits, bit for bit."""
    other = make_checkpoint(tmp_path, "llama", weight_format=weight_format)
    assert len(list(other.glob("*.safetensors"))) != 1
    np.testing.assert_array_equal(logits_of(load_runner(other)), logits_of(load_runner(llama)))


def test_bfloat16_is_as_close_to_float32_as_transformers_itself(tmp_path: Path) -> None:
    """Mean distance from the float32 logits, on a checkpoint with softcap and windows too."""
    for architecture in ("llama", "gemma2", "mistral"):
        folder = make_checkpoint(tmp_path / architecture, architecture, dtype="bfloat16")
        tokens = torch.tensor([random_tokens(150, seed=3)])
        with torch.inference_mode():
            exact = load_reference(folder)(tokens).logits[0].numpy()
            theirs = load_reference(folder, torch.bfloat16)(tokens).logits[0].float().numpy()
        runner = load_runner(folder, dtype="bfloat16")
        _, ours = PagedDriver(runner).prefill(tokens[0].tolist())
        assert runner.info.dtype == "bfloat16"
        assert np.abs(ours - exact).mean() < 1.25 * np.abs(theirs - exact).mean()


def test_model_info_tells_the_facts(llama: Path) -> None:
    """What the API reports about a model."""
    info = load_runner(llama).info
    assert info.architecture == "LlamaForCausalLM"
    assert (info.dtype, info.device, info.loader) == ("float32", "cpu", "Transformers")
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (512, 256, (1,))
    assert info.weight_bytes == 4 * info.num_parameters
    assert info.tokenizer_json is None


def test_the_fingerprint_names_weights_and_dtype(llama: Path, tmp_path: Path) -> None:
    """Equal for equal weights, another for other weights or another type."""
    fingerprint = load_runner(llama).info.fingerprint
    copy = make_checkpoint(tmp_path / "copy", "llama")
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    assert load_runner(copy).info.fingerprint == fingerprint
    assert load_runner(other).info.fingerprint != fingerprint
    assert load_runner(llama, dtype="bfloat16").info.fingerprint != fingerprint


@pytest.mark.parametrize(
    ("stored", "flags", "expected"),
    [
        ("bfloat16", {"avx512_bf16"}, "bfloat16"),
        ("float16", {"amx_bf16"}, "bfloat16"),
        ("bfloat16", {"avx2"}, "float32"),
        ("float32", {"avx512_bf16"}, "float32"),
    ],
)
def test_the_processor_decides_the_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, flags: set[str], expected: str
) -> None:
    """bfloat16 only for 16-bit checkpoints and where it is computed in hardware."""
    monkeypatch.setattr(transformers_config, "cpu_flags", lambda: flags)
    folder = make_checkpoint(tmp_path, "llama", dtype=stored)
    assert load_runner(folder, dtype="auto").info.dtype == expected


def test_progress_counts_the_bytes_that_were_read(llama: Path) -> None:
    """In each phase it only grows; it ends at the files' size, and reading ahead comes first."""
    seen: list[LoadProgress] = []
    TransformersLoader().load(load_request(llama, prefetch="on"), seen.append)
    total = (llama / "model.safetensors").stat().st_size
    phases = [progress.phase for progress in seen]
    assert phases == sorted(phases, reverse=True)
    assert set(phases) == {"prefetching", "loading"}
    for phase in ("prefetching", "loading"):
        read = [progress.bytes_read for progress in seen if progress.phase == phase]
        assert read == sorted(read)
    assert seen[-1].bytes_read == total
    assert all(progress.bytes_total == total for progress in seen)


def test_nothing_is_written_and_no_home_is_needed(llama: Path) -> None:
    """In a process of its own without HOME, the model folder stays as it was."""
    before = {path: path.stat().st_mtime_ns for path in llama.iterdir()}
    script = (
        "import sys; from tests.helpers.transformers_models import load_runner;"
        "from pathlib import Path; runner = load_runner(Path(sys.argv[1])); runner.warm_up()"
    )
    environment = {**os.environ, "TMPDIR": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    del environment["HOME"]
    result = subprocess.run(
        [sys.executable, "-c", script, str(llama)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in llama.iterdir()} == before


# --------------------------------------------------------------------------------- how it runs


def test_one_forward_per_step(llama: Path) -> None:
    """Whatever a batch holds, the model runs once."""
    runner = load_runner(llama)
    calls = []

    def count(module: torch.nn.Module, _: Any) -> None:
        calls.append(type(module).__name__)

    driver = PagedDriver(runner)
    a, b, c = driver.start(), driver.start(), driver.start()
    driver.run((a, PROMPT))
    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        driver.run((a, [7]), (b, PROMPT[:9]), (c, PROMPT))
        driver.run((a, [8]), (b, [9]), (c, PROMPT))
    finally:
        handle.remove()
    assert calls.count("LlamaForCausalLM") == 2
    assert calls.count("LlamaAttention") == 2 * 4


def test_a_row_is_the_same_whatever_runs_beside_it(llama: Path) -> None:
    """Greedy tokens of eight sequences together equal those of each alone."""
    runner = load_runner(llama)
    prompts = [random_tokens(3 + 9 * number, seed=number) for number in range(8)]
    alone = [PagedDriver(runner).generate(prompt, 20) for prompt in prompts]
    driver = PagedDriver(runner)
    sequences = [driver.start() for _ in prompts]
    pending = prompts
    together: list[list[int]] = [[] for _ in prompts]
    for _ in range(20):
        results = driver.run(*zip(sequences, pending, strict=True), num_logits=1)
        pending = [[int(logits[-1].argmax())] for logits in results]
        for tokens, token in zip(together, pending, strict=True):
            tokens += token
    assert together == alone


def test_warming_up_leaves_no_trace(llama: Path) -> None:
    """Blocks that the warm-up wrote to are as good as new."""
    runner = load_runner(llama)
    expected = logits_of(runner)
    runner.warm_up()
    np.testing.assert_array_equal(logits_of(runner), expected)


@pytest.mark.parametrize(
    ("architecture", "rope", "lengths"),
    [
        ("llama", ROPE, (256, 300, 1024)),
        ("phi3", LONGROPE, (64, 256)),
        ("gemma3_text", BY_LAYER_TYPE, (256, 1024)),
    ],
)
def test_scaled_rope_does_not_follow_the_longest_sequence(
    tmp_path: Path, architecture: str, rope: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    """A long sequence in the batch changes nobody's logits, and chunks fit their cache."""
    fields = {"original_max_position_embeddings": 64} if architecture == "phi3" else {}
    folder = make_checkpoint(tmp_path, architecture, rope_parameters=rope, **fields)
    for max_model_len in lengths:
        runner = load_runner(folder, max_model_len=max_model_len)
        driver = PagedDriver(runner)
        _, alone = driver.prefill(PROMPT)
        long, short = driver.start(), driver.start()
        tokens = random_tokens(max_model_len - 1, seed=4)
        driver.run((long, tokens), num_logits=1)
        _, beside = driver.run((long, [5]), (short, PROMPT))
        assert_close(beside, alone)


@pytest.mark.parametrize(
    ("architecture", "rope", "fields"),
    [
        ("llama", ROPE, {}),
        ("phi3", LONGROPE, {"original_max_position_embeddings": 64}),
    ],
)
def test_scaled_rope_is_transformers_own_up_to_the_trained_length(
    tmp_path: Path, architecture: str, rope: dict[str, Any], fields: dict[str, Any]
) -> None:
    """And beyond it where the sequence is long itself."""
    folder = make_checkpoint(tmp_path, architecture, rope_parameters=rope, **fields)
    reference = load_reference(folder)
    short = ModelPair(folder, load_runner(folder, max_model_len=64), reference)
    assert_close(logits_of(short.runner), short.expected(PROMPT))
    if architecture == "phi3":
        long = ModelPair(folder, load_runner(folder), reference)
        tokens = random_tokens(100, seed=5)
        assert_close(PagedDriver(long.runner).prefill(tokens)[1], long.expected(tokens))


@pytest.mark.parametrize(
    ("architecture", "rope", "fields", "plain", "stretched"),
    [
        ("llama", ROPE, {}, (64, 256), (300, 1024)),
        ("gemma3_text", BY_LAYER_TYPE, {}, (64, 256), (300, 1024)),
        ("phi3", LONGROPE, {"original_max_position_embeddings": 64}, (40, 64), (256,)),
        ("llama", {**ROPE, "rope_type": "linear"}, {}, (64, 256, 1024), ()),
    ],
)
def test_the_fingerprint_names_the_length_that_rope_is_stretched_to(
    tmp_path: Path,
    architecture: str,
    rope: dict[str, Any],
    fields: dict[str, Any],
    plain: tuple[int, ...],
    stretched: tuple[int, ...],
) -> None:
    """Beyond the trained length other frequencies are frozen, and the text is another."""
    folder = make_checkpoint(tmp_path, architecture, rope_parameters=rope, **fields)
    names = {n: load_runner(folder, max_model_len=n).info.fingerprint for n in plain + stretched}
    assert len({names[length] for length in plain}) == 1
    assert len(set(names.values())) == 1 + len(stretched)


def test_closing_gives_the_memory_back(llama: Path) -> None:
    """The model is not reachable any more."""
    runner = load_runner(llama)
    models: list[weakref.ref[torch.nn.Module]] = []

    def note(module: torch.nn.Module, _: Any) -> None:
        if type(module).__name__ == "LlamaForCausalLM":
            models.append(weakref.ref(module))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        runner.warm_up()
    finally:
        handle.remove()
    assert models[0]() is not None
    runner.close()
    assert models[0]() is None


# ------------------------------------------------------------------------------ memory and length


def test_the_cache_fits_its_memory(llama: Path) -> None:
    """A given size is kept to; blocks are counted per group."""
    layout = load_runner(llama, kv_cache_bytes=4 << 20).layout
    # 4 layers, 2 key heads, keys and values of 16 numbers of 4 bytes, 16 tokens a block.
    assert layout.groups[0].num_blocks == (4 << 20) // (4 * 2 * 2 * 16 * 4 * 16)


def test_an_unlimited_machine_is_not_filled(llama: Path) -> None:
    """Without any limit the cache holds what max_num_seqs full sequences need, no more."""
    layout = load_runner(llama, kv_cache_bytes=None, max_num_seqs=3).layout
    assert layout.groups[0].num_blocks == 3 * 256 // 16


def test_too_little_memory_names_the_remedy(llama: Path) -> None:
    """For the cache a shorter context, for the weights a larger limit."""
    with pytest.raises(NotEnoughMemoryError, match="--max-model-len"):
        load_runner(llama, kv_cache_bytes=1 << 17)
    with pytest.raises(NotEnoughMemoryError, match="weights"):
        load_runner(llama, memory_limit_bytes=1)
    with pytest.raises(NotEnoughMemoryError, match="--kv-cache-memory"):
        load_runner(llama, kv_cache_bytes=1 << 50)


@pytest.mark.parametrize(
    ("rope", "requested", "expected"),
    [
        ({"rope_type": "default"}, None, 256),
        ({"rope_type": "default"}, 100, 100),
        ({"rope_type": "linear", "factor": 4.0}, None, 256),
        ({"rope_type": "linear", "factor": 4.0}, 1000, 1000),
        ({"rope_type": "yarn", "factor": 4.0}, None, 1024),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            None,
            256,
        ),
    ],
)
def test_the_context_is_the_models_own(
    tmp_path: Path, rope: dict[str, Any], requested: int | None, expected: int
) -> None:
    """RoPE scaling counts: fixed ones are included, open ones may be asked for."""
    parameters = {"rope_theta": 10000.0, **rope}
    folder = make_checkpoint(tmp_path, "llama", rope_parameters=parameters)
    assert load_runner(folder, max_model_len=requested).info.max_model_len == expected


def test_a_context_beyond_the_models_is_refused(llama: Path) -> None:
    """The message names the flag and the model's limit."""
    with pytest.raises(UnsupportedModelError, match=r"--max-model-len 257 .* 256"):
        load_runner(llama, max_model_len=257)


def test_logits_are_float32_rows_in_order(llama: Path) -> None:
    """As `ModelRunner.execute` promises."""
    runner = load_runner(llama, dtype="bfloat16")
    batch = Batch([ScheduledSequence(0, 0, PROMPT[:5], ([0],), 3)], num_tokens=5)
    logits = runner.execute(batch)
    assert logits.dtype == torch.float32
    assert to_numpy(logits).shape == (3, 512)

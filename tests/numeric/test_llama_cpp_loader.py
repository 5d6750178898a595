"""The llama.cpp loader: Transformers' logits and texts out of GGUF files, and clear refusals."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.helpers.gguf_models import make_gguf
from tests.helpers.gguf_vocabularies import add_sentencepiece_tokenizer, write_vocabulary
from tests.helpers.paged_driver import PagedDriver
from tgwui_k8s import demo
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.grammar import Grammars
from tgwui_k8s.errors import (
    BrokenModelError,
    EngineUnavailableError,
    LoaderUnavailableError,
    NotEnoughMemoryError,
    StartupError,
    UnsupportedModelError,
)
from tgwui_k8s.llm import LLM
from tgwui_k8s.registry import get_loader
from tgwui_k8s.sampling import SamplingParams

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

EXACT = {"cache_type": "f32", "flash_attn": "off"}
PROMPT = list(range(30, 70))
NEVER_ENDS = 511
WATCHED = """
import os, sys
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.registry import get_loader

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "llama_cpp":
            print(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Watch())
get_loader("llama.cpp").load(
    LoadRequest(model_path=sys.argv[1], loader="llama.cpp"), lambda progress: None
)
"""


@pytest.fixture(scope="module", name="checkpoint")
def _checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the tiny checkpoint of an architecture, once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(architecture: str) -> Path:
        path = folder / architecture
        if not path.exists():
            # llama.cpp knows the order of Gemma's layers, and four are too few for a full one.
            layers = {"layer_types": ["sliding_attention"] * 4} if "gemma" in architecture else {}
            make_checkpoint(path, architecture, eos_token_id=NEVER_ENDS, **layers)
        return path

    return get


@pytest.fixture(scope="module", name="llama")
def _llama(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float32."""
    return make_gguf(checkpoint("llama"), tmp_path_factory.mktemp("gguf") / "llama.F32.gguf")


def request_for(path: Path, **fields: Any) -> LoadRequest:
    defaults: dict[str, Any] = {
        "max_model_len": 128,
        "max_num_seqs": 4,
        "kv_cache_bytes": 8 << 20,
        "num_threads": 1,
        "options": EXACT,
    }
    return LoadRequest(model_path=str(path), loader="llama.cpp", **{**defaults, **fields})


def load(path: Path, **fields: Any) -> Any:
    return get_loader("llama.cpp").load(request_for(path, **fields), lambda progress: None)


def logits_of_transformers(folder: Path, token_ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return np.asarray(model(torch.tensor([token_ids])).logits[0])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_logits_are_those_of_transformers(
    architecture: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whole, in chunks and token by token, beyond a sliding window too: the same float32 logits."""
    folder = checkpoint(architecture)
    expected = logits_of_transformers(folder, PROMPT)
    runner = load(make_gguf(folder, tmp_path / "model.gguf"))
    driver = PagedDriver(runner)

    whole = driver.prefill(PROMPT)[1]
    sequence = driver.start()
    chunks = [driver.run((sequence, PROMPT[a:b]))[0] for a, b in ((0, 7), (7, 39), (39, 40))]
    runner.close()

    # llama.cpp looks GELU up in a table of float16.
    tolerance = 0.05 if "gemma" in architecture else 2e-3
    np.testing.assert_allclose(whole, expected, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(np.concatenate(chunks), expected, atol=tolerance, rtol=tolerance)


def offline(path: Path, **settings: Any) -> LLM:
    defaults: dict[str, Any] = {
        "max_model_len": 128,
        "max_num_seqs": 4,
        "kv_cache_memory": "1MiB",
        "num_threads": 1,
        "loader_option": tuple(f"{name}={value}" for name, value in EXACT.items()),
    }
    return LLM(str(path), **{**defaults, **settings})


def test_crowd_with_a_small_cache_says_what_each_says_alone(llama: Path) -> None:
    """Waiting, preempted and sharing prefixes, every sequence gets the tokens it gets alone."""
    prompts = [[*range(20, 60), number] for number in range(70, 82)]
    params = SamplingParams(max_tokens=24, temperature=0.0)
    with offline(llama) as llm:
        alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
        together = [answer.token_ids for answer in llm.generate(prompts, params)]
        stats = llm.core.stats

    assert together == alone
    assert stats.prefix_cache_hits > 0


def test_prefix_is_found_after_more_texts_than_llama_cpp_has_sequences(llama: Path) -> None:
    """What llama.cpp had to forget is computed again: cached prefixes never change an answer."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    prompts = [[number + 6, *range(20, 53)] for number in range(136)]
    with offline(llama, kv_cache_memory="16MiB") as llm:
        first = [answer.token_ids for answer in llm.generate(prompts, params)]
        again = [answer.token_ids for answer in llm.generate(prompts, params)]
        stats = llm.core.stats

    assert again == first
    assert stats.prefix_cache_hits >= 136 * 32


def test_prompt_logprobs_are_those_of_transformers(
    llama: Path, checkpoint: Callable[[str], Path]
) -> None:
    """Every prompt token is scored, across the pieces in which a long prompt is computed."""
    logits = torch.tensor(logits_of_transformers(checkpoint("llama"), PROMPT))
    expected = torch.log_softmax(logits, -1)[range(len(PROMPT) - 1), PROMPT[1:]]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    with offline(llama, max_num_batched_tokens=16) as llm:
        scored = llm.generate([PROMPT], params)[0].prompt_logprobs

    assert scored is not None
    np.testing.assert_allclose([s.logprob for s in scored], expected, atol=1e-3)


def test_step_larger_than_the_batch_takes_several_calls(llama: Path) -> None:
    """`batch_size` bounds llama.cpp's call, not the step."""
    runner = load(llama)
    expected = PagedDriver(runner).prefill(PROMPT)[1]
    runner.close()
    runner = load(llama, options={**EXACT, "batch_size": "8"})
    pieces = PagedDriver(runner).prefill(PROMPT)[1]
    runner.close()

    np.testing.assert_allclose(pieces, expected, atol=1e-4)


@pytest.fixture(scope="module", name="spoken")
def _spoken() -> tuple[list[int], np.ndarray]:
    """A text that the demo model was trained on, and where Transformers takes it."""
    text = "This is a cake recipe:\n\n1. Preheat the oven to 160 degrees and grease a loaf tin."
    tokenizer = Tokenizer.from_file(str(demo.model_path() / "tokenizer.json"))
    token_ids = tokenizer.encode(text).ids
    return token_ids, logits_of_transformers(demo.model_path(), token_ids)


@pytest.mark.parametrize(
    ("kind", "cache_type", "least"),
    [
        ("F16", "f16", 0.95),
        ("BF16", "f16", 0.95),
        ("Q8_0", "f16", 0.9),
        ("Q4_0", "f16", 0.6),
        ("BF16", "q8_0", 0.9),
        ("Q8_0", "q8_0", 0.9),
    ],
)
def test_smaller_weights_and_caches_stay_near(
    kind: str,
    cache_type: str,
    least: float,
    spoken: tuple[list[int], np.ndarray],
    tmp_path: Path,
) -> None:
    """The likeliest next token is the same at most positions; the type of weights is reported."""
    path = make_gguf(demo.model_path(), tmp_path / "demo.gguf", kind=kind, split="smollm")
    runner = load(path, options={"cache_type": cache_type})
    logits = PagedDriver(runner).prefill(spoken[0])[1]
    runner.close()

    assert runner.info.quantization == kind
    assert (logits.argmax(-1) == spoken[1].argmax(-1)).mean() >= least


def test_set_of_parts_is_one_model(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A model in several files loads from any of its parts' folder, all parts counted."""
    folder = tmp_path / "set"
    folder.mkdir()
    make_gguf(checkpoint("llama"), folder / "m.gguf", tensors_per_part=12)
    assert len(list(folder.iterdir())) > 2
    expected = logits_of_transformers(checkpoint("llama"), PROMPT)
    runner = load(folder)
    logits = PagedDriver(runner).prefill(PROMPT)[1]
    runner.close()

    np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=2e-3)


# ------------------------------------------------------------------------------------- refusals


def edited(llama: Path, folder: Path, edit: Callable[[bytes], bytes]) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(edit(llama.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda data: data[:-5000], BrokenModelError, "model.gguf"),
        (lambda data: data[:400], BrokenModelError, "damaged or truncated"),
        (lambda data: b"PK\x03\x04" + data[4:], BrokenModelError, "no GGUF file"),
        (
            lambda data: data.replace(b"blk.3.attn_q.weight", b"blk.3.attn_Q.weight"),
            BrokenModelError,
            "blk.3.attn_q",
        ),
    ],
)
def test_damaged_file_is_named(
    llama: Path,
    tmp_path: Path,
    edit: Callable[[bytes], bytes],
    error: type[StartupError],
    words: str,
) -> None:
    """Cut off, foreign or without a tensor: the error names the file and what is wrong."""
    with pytest.raises(error, match=words) as caught:
        load(edited(llama, tmp_path, edit))

    assert "model.gguf" in str(caught.value)


def test_unknown_architecture_is_named(llama: Path, tmp_path: Path) -> None:
    """A model newer than the library says so, with the remedy."""
    path = edited(llama, tmp_path, lambda data: data.replace(b"llama", b"lhama"))

    with pytest.raises(UnsupportedModelError, match=r"'lhama'.*newer llama-cpp-python"):
        load(path)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"options": {"threads_batch": "many"}}, UnsupportedModelError, "threads_batch=many"),
        ({"options": {"cache_type": "q3"}}, UnsupportedModelError, "not one of f32"),
        (
            {"options": {"cache_type": "q8_0", "flash_attn": "off"}},
            UnsupportedModelError,
            "needs flash_attn=on",
        ),
        ({"dtype": "bfloat16"}, UnsupportedModelError, "as the GGUF file holds them"),
        ({"max_num_seqs": 1000}, UnsupportedModelError, "256 sequences at most"),
        ({"max_model_len": 100_000}, UnsupportedModelError, "more than the model's 256"),
        ({"kv_cache_bytes": 64 << 10}, NotEnoughMemoryError, "--max-model-len 64"),
        ({"memory_limit_bytes": 1000}, NotEnoughMemoryError, "weights take"),
        ({"options": {"cache_type": "q8_0"}}, UnsupportedModelError, "block size 32"),
        ({"device": "cuda"}, LoaderUnavailableError, "GGML_CUDA"),
    ],
)
def test_wrong_settings_are_named(
    llama: Path, fields: dict[str, Any], error: type[StartupError], words: str
) -> None:
    """Each mistake is an error of its own that says what to change."""
    with pytest.raises(error, match=words):
        load(llama, **fields)


def test_file_without_weights_is_refused(tmp_path: Path) -> None:
    """A file that holds a vocabulary only is no model."""
    path = write_vocabulary(
        tmp_path / "vocabulary.gguf",
        lambda writer: add_sentencepiece_tokenizer(writer, adds_space=True),
    )

    with pytest.raises(BrokenModelError, match="cannot load"):
        load(path)


def test_grammars_read_the_tokenizer_in_the_file(llama: Path) -> None:
    """The engine looks at the vocabulary with the first grammar, not before."""
    runner = load(llama)
    runner.close()
    grammars = Grammars.of(runner.info, llama)

    assert grammars is not None
    assert not grammars.compile('start: "cake"').is_complete
    assert runner.info.tokenizer_json is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_briefly_unless_the_operator_says_otherwise(
    llama: Path, environment: dict[str, str], told: str | None
) -> None:
    """OpenMP's threads sleep soon; it is told so before it is loaded."""
    unset = {key: value for key, value in os.environ.items() if "OMP_" not in key}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(llama)],
        env={**unset, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert done.stdout == f"{told}\n"


def test_fault_in_a_step_ends_the_engine_with_its_reason(llama: Path) -> None:
    """What llama.cpp refuses is never taken for an answer."""
    runner = load(llama)
    zero = np.zeros(1, np.int32)
    with pytest.raises(EngineUnavailableError, match=r"llama_decode gave -1: .*invalid token"):
        runner._context.decode(zero + 10**6, zero, zero, np.ones(1, np.int8))
    runner.close()


def test_library_speaks_through_our_log(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of llama.cpp's is written past the log; its chatter is for debugging."""
    with caplog.at_level(logging.DEBUG, logger="llama.cpp"):
        load(llama).close()

    levels = {record.levelno for record in caplog.records if record.name == "llama.cpp"}
    assert logging.DEBUG in levels
    assert logging.INFO not in levels


def test_no_torch_is_imported(llama: Path) -> None:
    """From the file to the first token without torch or Transformers."""
    code = (
        "import sys\n"
        "from tgwui_k8s.llm import LLM\n"
        f"with LLM({str(llama)!r}, max_model_len=64, kv_cache_memory='1MiB') as llm:\n"
        "    assert llm.generate('Once')[0].token_ids\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

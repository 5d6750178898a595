"""The demo model in every format that a loader runs, each behind a server of its own.

One list of cases: a case makes the model's folder and says how it is served. Formats that keep the
weights as they are, or as float32 holds them, must say what Transformers says, word for word.
To add a loader, add a case to CASES.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.neuron import NeuronHost
from tests.helpers.quantized_checkpoints import FORMATS, quantize_folder
from tests.helpers.server_process import ServerProcess, wait_until
from tests.helpers.versions import in_dtype
from tgwui_k8s.demo import model_path
from tgwui_k8s.registry import available

PROMPTS = (
    "This is a cake recipe:\n\n1.",
    "Once upon a time",
    "Which port does the API listen on?",
    "How do models get on EFS?",
)
NUM_TOKENS = 24
MESSAGES = [{"role": "user", "content": "How do models get on EFS?"}]


@dataclass(frozen=True)
class Made:
    """A model that is ready to be served."""

    model: str
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    host: NeuronHost | None = None
    """The imagined machine it runs on, for a loader whose library is a stand-in here."""


@dataclass(frozen=True)
class Case:
    """How to make the demo model for a loader, and what may be expected of it."""

    loader: str
    make: Callable[[Path], Made]
    start_seconds: float = 60.0
    """Longer than any start should take."""
    is_exact: bool = True
    """Its greedy text is that of Transformers in float32; quantized weights may say otherwise."""
    needs_torch: bool = True
    has_standin: bool = False
    """Its library need not be installed: tests bring one that computes the same."""


def make_safetensors(folder: Path) -> Made:
    """The demo model's folder as it is, in float32."""
    return Made("demo", ("--loader", "Transformers", "--dtype", "float32"))


def make_quantized(name: str) -> Callable[[Path], Made]:
    """A way to write the demo model in one of the quantized formats; its loader is inferred."""

    def make(folder: Path) -> Made:
        shutil.copytree(model_path(), folder / "quantized")
        quantize_folder(folder / "quantized", FORMATS[name])
        return Made("quantized", ("--dtype", "float32"))

    return make


def make_f32_gguf(folder: Path) -> Made:
    """A GGUF file with the weights in float32; the loader is inferred, the tokenizer converted."""
    from tests.helpers.gguf_models import make_gguf

    make_gguf(model_path(), folder / "demo.F32.gguf", split="smollm")
    return Made("demo.F32.gguf")


def make_for_vllm(folder: Path) -> Made:
    """The demo model's folder as it is, on vLLM's own engine."""
    flags = ("--loader", "vLLM", "--dtype", "float32", "--loader-option", "enforce_eager=true")
    return Made("demo", flags)


def make_for_neuron(folder: Path) -> Made:
    """The demo model compiled by the stand-in for Neuron's software, on an imagined host."""
    shutil.copytree(model_path(), folder / "demo-neuron")
    host = NeuronHost(folder / "host")
    environment = host.env(OMP_NUM_THREADS="1", NEURON_RT_NUM_CORES="2")
    command = [
        *(sys.executable, "-m", "tgwui_k8s", "neuron", "compile", "demo-neuron"),
        *("--model-dir", str(folder), "--tp-degree", "2", "--batch-size", "4"),
        *("--n-positions", "256", "--amp", "f32"),
    ]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    return Made("demo-neuron", environment=environment, host=host)


CASES: dict[str, Case] = {
    "safetensors": Case("Transformers", make_safetensors),
    "gguf-f32": Case("llama.cpp", make_f32_gguf, needs_torch=False),
    "vllm": Case("vLLM", make_for_vllm, start_seconds=600.0),
    "neuron": Case("Neuron", make_for_neuron, has_standin=True),
    "AWQ": Case("AutoAWQ", make_quantized("AWQ"), is_exact=False),
    "GPTQ": Case("AutoGPTQ", make_quantized("GPTQ, act-order"), is_exact=False),
}


@pytest.fixture(scope="module", name="case", params=CASES)
def _case(request: pytest.FixtureRequest) -> Case:
    case = CASES[request.param]
    entry = next(entry for entry in available() if entry.name == case.loader)
    if not entry.is_installed and not case.has_standin:
        pytest.skip(f"loader {entry.name} needs {', '.join(entry.missing)}")
    return case


@pytest.fixture(scope="module", name="server")
def _server(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models")
    made = case.make(folder)
    with LoaderServer(
        *("--model-dir", str(folder), "--model", made.model, "--served-model-name", "it"),
        *("--num-threads", "1", "--max-num-seqs", "4", "--max-model-len", "256"),
        *("--kv-cache-memory", "32MiB"),
        *made.flags,
        environment=made.environment,
    ) as server:
        wait_until(
            lambda: server.get("/health/ready").status_code == 200, seconds=case.start_seconds
        )
        yield server
    assert made.host is None or made.host.violations() == []


class LoaderServer(ServerProcess):
    """`tgwui-k8s serve`, its loader inferred unless the flags name one."""

    @staticmethod
    def command_line(*flags: str, options: object = None) -> list[str]:
        """No loader and no model but those of the flags."""
        return [sys.executable, "-m", "tgwui_k8s", "serve", "--port", "0", *flags]


@pytest.fixture(scope="module", name="greedy_texts")
def _greedy_texts() -> dict[str, str]:
    """What Transformers says to each of the prompts, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), **in_dtype(torch.float32))
    texts = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        texts[prompt] = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    return texts


def complete(server: ServerProcess, prompt: str, **fields: Any) -> dict[str, Any]:
    """A greedy completion's body."""
    body = {"model": "it", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}
    answer = server.http.post(server.url + "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def running(server: ServerProcess) -> str:
    """The metric that counts running requests, its labels left out."""
    lines = server.get("/metrics").text.splitlines()
    name = "tgwui_num_requests_running"
    return "".join(f"{name} {line.split()[-1]}" for line in lines if line.startswith(name))


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def test_says_which_loader_runs(server: ServerProcess, case: Case) -> None:
    """The loader is the case's, whether it was named or inferred from the folder."""
    assert server.get("/v1/internal/model/info").json()["loader"] == case.loader


def test_torch_is_loaded_only_where_it_computes(server: ServerProcess, case: Case) -> None:
    """A GGUF is served without torch in the engine, which would take seconds to import."""
    libraries = Path(f"/proc/{server.engine.pid}/maps").read_text()

    assert ("libtorch" in libraries) == case.needs_torch


def test_all_prompts_at_once_say_what_each_says_alone(
    server: ServerProcess, case: Case, greedy_texts: dict[str, str]
) -> None:
    """Greedy text is the same alone and in a batch, and in float formats it is Transformers'."""
    alone = {prompt: text_of(complete(server, prompt)) for prompt in PROMPTS}
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = pool.map(lambda prompt: complete(server, prompt), PROMPTS)
        together = dict(zip(PROMPTS, map(text_of, answers), strict=True))

    assert together == alone
    assert all(alone.values())
    if case.is_exact:
        assert alone == greedy_texts


def test_streamed_chat_has_text_an_end_and_usage(server: ServerProcess) -> None:
    """The chat template and the tokenizer of the format work: a chat answer is streamed."""
    body = {
        "model": "it",
        "messages": MESSAGES,
        "max_tokens": 12,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with server.http.stream("POST", server.url + "/v1/chat/completions", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])

    assert lines[-1] == "[DONE]"
    assert text.strip()
    assert chunks[-2]["choices"][0]["finish_reason"] in ("length", "stop")
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_logprobs_of_prompt_and_answer(server: ServerProcess) -> None:
    """Where the loader can, every token has a log probability; else the field is refused."""
    body = {
        "model": "it",
        "prompt": PROMPTS[0],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 2,
        "echo": True,
    }
    info = server.get("/v1/internal/model/info").json()
    answer = server.http.post(server.url + "/v1/completions", json=body)

    if not info["capabilities"]["prompt_logprobs"]:
        assert answer.status_code == 400
        return
    logprobs = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert logprobs[0] is None
    assert all(logprob <= 0 for logprob in logprobs[1:])


def test_seeded_sampling_is_repeated(server: ServerProcess) -> None:
    """The same seed gives the same text twice; another seed is another draw."""
    texts = [
        text_of(complete(server, PROMPTS[1], temperature=1.2, seed=seed)) for seed in (1, 1, 2)
    ]

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_client_that_leaves_is_forgotten(server: ServerProcess) -> None:
    """A stream that is cut leaves nothing running behind."""
    body = {"model": "it", "prompt": PROMPTS[1], "max_tokens": 200, "stream": True}
    with server.http.stream("POST", server.url + "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: "tgwui_num_requests_running 0.0" in running(server))

    assert complete(server, PROMPTS[0])["usage"]["completion_tokens"] > 0


def test_copy_of_the_demo_model_is_complete(tmp_path: Path) -> None:
    """Cases copy the demo model before they change it; the copy has all it needs."""
    folder = copy_demo(tmp_path / "copy")

    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }


def copy_demo(folder: Path) -> Path:
    """A copy of the demo model's folder that a case may change."""
    shutil.copytree(model_path(), folder)
    return folder

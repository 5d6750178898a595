"""From compiling to serving on an imagined Neuron host, each step a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.neuron import NeuronHost, watched_host
from tests.helpers.server_process import ServerProcess, wait_until
from tgwui_k8s.demo.tiny import make_checkpoint

NUM_STREAMS = 16
NUM_TOKENS = 12
NEVER_ENDS = 511


@pytest.fixture(scope="module", name="model_dir")
def _model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "tiny-neuron", "llama", eos_token_id=NEVER_ENDS)
    return folder


@pytest.fixture(scope="module", name="neuron_host")
def _neuron_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronHost]:
    """One host for all: its processes come and go."""
    with watched_host(tmp_path_factory.mktemp("neuron") / "host") as host:
        yield host


@pytest.fixture(scope="module", name="compiled")
def _compiled(model_dir: Path, neuron_host: NeuronHost) -> Path:
    """The model directory after `neuron compile`, which another process has run."""
    done = run(
        neuron_host,
        *("compile", "tiny-neuron", "--model-dir", str(model_dir)),
        *("--tp-degree", "2", "--batch-size", "4", "--n-positions", "128", "--amp", "f32"),
    )
    assert done.returncode == 0, done.stderr
    return model_dir


def run(host: NeuronHost, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`tgwui-k8s neuron ...` on the host."""
    return subprocess.run(
        [sys.executable, "-m", "tgwui_k8s", "neuron", *arguments],
        env=host.env(OMP_NUM_THREADS="1", **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


class NeuronServer(ServerProcess):
    """`tgwui-k8s serve --model tiny-neuron`, its loader inferred from the folder."""

    @staticmethod
    def command_line(*flags: str, options: object = None) -> list[str]:
        """No loader is named, and no parameter of the artifacts."""
        return [sys.executable, "-m", "tgwui_k8s", "serve", "--port", "0", "--no-webui", *flags]


def serve(host: NeuronHost, model_dir: Path, *flags: str, **variables: str) -> NeuronServer:
    return NeuronServer(
        *("--model-dir", str(model_dir), "--model", "tiny-neuron"),
        *flags,
        environment=host.env(OMP_NUM_THREADS="1", **variables),
    )


@pytest.fixture(name="greedy_texts")
def _greedy_texts(model_dir: Path) -> dict[str, str]:
    """What Transformers says to each of the prompts."""
    folder = model_dir / "tiny-neuron"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    texts = {}
    for number in range(NUM_STREAMS):
        prompt = "Once upon a time " * (number % 3) + f"there were {number}"
        ids = tokenizer(prompt, return_tensors="pt")
        answer = model.generate(
            **{name: ids[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        new = answer[0, ids["input_ids"].shape[1] :]
        texts[prompt] = tokenizer.decode(new, skip_special_tokens=True)
    return texts


def test_sixteen_streams_say_what_transformers_says(
    compiled: Path, neuron_host: NeuronHost, greedy_texts: dict[str, str]
) -> None:
    """Compiled by one process, served by another without compiling, four slots for sixteen."""
    compiles = neuron_host.count("compile")
    with serve(neuron_host, compiled) as server:
        server.wait_until_ready()
        client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)

        def complete(prompt: str) -> tuple[str, str | None]:
            chunks = list(
                client.completions.create(
                    model="tiny-neuron",
                    prompt=prompt,
                    max_tokens=NUM_TOKENS,
                    temperature=0,
                    stream=True,
                )
            )
            text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
            return text, chunks[-1].choices[0].finish_reason

        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            answers = dict(zip(greedy_texts, pool.map(complete, greedy_texts), strict=True))
        info = server.get("/v1/internal/model/info").json()
        metrics = server.get("/metrics").text
        too_long = server.complete("word " * 200)
        server.signal(signal.SIGTERM)
        code = server.wait()

    assert {prompt: text for prompt, (text, _) in answers.items()} == greedy_texts
    assert {reason for _, reason in answers.values()} <= {"length", "stop"}
    assert neuron_host.count("compile") == compiles == 2
    assert neuron_host.events("cores")[-1]["cores"] == [0, 1]
    assert '"neuroncores": 2' in json.dumps(info)
    assert 'neuroncores{model_name="tiny-neuron"} 2.0' in metrics
    assert too_long.status_code == 400
    assert code == 0


def test_wrong_parameters_end_the_server_before_weights_are_read(
    compiled: Path, neuron_host: NeuronHost
) -> None:
    """Exit code 3, one line that names parameter and remedy; no device, no weights."""
    seen = neuron_host.count("weights_read")
    with serve(neuron_host, compiled, "--amp", "bf16") as server:
        code = server.wait()
        output = b"".join(server.lines) + server.errors

    assert code == 3
    assert b"amp is bf16, compiled for f32" in output
    assert b"tgwui-k8s neuron compile" in output
    assert neuron_host.count("weights_read") == seen


def test_check_knows_other_compilers(compiled: Path, neuron_host: NeuronHost) -> None:
    """The real metadata of installed software is compared."""
    arguments = ("check", "tiny-neuron", "--model-dir", str(compiled))
    good = run(neuron_host, *arguments)
    environment = neuron_host.env({"neuronx-cc": "2.19.8089.0"}, OMP_NUM_THREADS="1")
    bad = subprocess.run(
        [sys.executable, "-m", "tgwui_k8s", "neuron", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert good.returncode == 0, good.stderr
    assert "fit" in good.stdout
    assert bad.returncode == 3
    assert "version of neuronx-cc is 2.19.8089.0" in bad.stderr


def test_cores_are_exclusive_and_free_after_a_signal(
    compiled: Path, neuron_host: NeuronHost
) -> None:
    """A second server is refused while the first lives; a signal while weights load ends it."""
    cores = {"NEURON_RT_VISIBLE_CORES": "0-1"}
    seen = neuron_host.count("cores")
    with serve(neuron_host, compiled, NEURON_STANDIN_LOAD_SECONDS="60", **cores) as loading:
        wait_until(lambda: neuron_host.count("cores") == seen + 1)
        with serve(neuron_host, compiled, **cores) as second:
            code = second.wait()
            output = b"".join(second.lines)
        loading.signal(signal.SIGTERM)
        assert loading.wait() == 0

    assert code == 3
    assert b"another process holds the NeuronCores" in output
    with serve(neuron_host, compiled, **cores) as third:
        assert third.wait_until_ready().complete().status_code == 200


def test_compiling_can_do_without_a_device(
    model_dir: Path, tmp_path: Path, neuron_host: NeuronHost
) -> None:
    """--cpu-only takes no cores, and writes the same graphs and manifest."""
    seen = neuron_host.count("cores")
    target = tmp_path / "artifacts"

    done = run(
        neuron_host,
        *("compile", "tiny-neuron", "--model-dir", str(model_dir), "--tp-degree", "8"),
        *("--cpu-only", "--neuron-artifacts", str(target)),
    )

    assert done.returncode == 0, done.stderr
    assert "graphs of 4 layers" in done.stdout
    assert neuron_host.count("cores") == seen
    assert {path.suffix for path in target.iterdir()} == {".neff", ".json"}
    assert os.listdir(tmp_path) == ["artifacts"]


def test_a_compile_that_is_told_to_end_leaves_nothing(
    model_dir: Path, tmp_path: Path, neuron_host: NeuronHost
) -> None:
    """A Job that is deleted: no half-written folder, and no artifacts."""
    seen = neuron_host.count("cores")
    compiling = subprocess.Popen(
        [
            *(sys.executable, "-m", "tgwui_k8s", "neuron", "compile", "tiny-neuron"),
            *("--model-dir", str(model_dir), "--tp-degree", "2"),
            *("--neuron-artifacts", str(tmp_path / "artifacts")),
        ],
        env=neuron_host.env(OMP_NUM_THREADS="1", NEURON_STANDIN_COMPILE_SECONDS="60"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: neuron_host.count("cores") == seen + 1, seconds=60)
        assert os.listdir(tmp_path) == [f".artifacts.{compiling.pid}.new"]
        compiling.send_signal(signal.SIGTERM)
        assert compiling.wait(30) != 0
    finally:
        compiling.kill()

    assert os.listdir(tmp_path) == []

"""The CPU image as Kubernetes would run it: read-only, without rights, as anybody, offline."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.podman import HARDENED, TIMEOUT_SECONDS, Container, Podman
from tgwui_k8s import demo
from tgwui_k8s.runtime.native_library import VARIANTS

pytestmark = pytest.mark.timeout(1800)
"""The first test waits for the builds."""

PUBLISHED = ("--publish", "127.0.0.1::5000")
ANYBODY = ("--user", "12345:0")
MODELS = "/home/app/text-generation-webui/models"
NUM_STREAMS = 8
PROMPT = {"prompt": "Once upon a time", "max_tokens": 24, "seed": 10}

runs_natively = pytest.mark.skipif(
    "avx2" not in Path("/proc/cpuinfo").read_text(), reason="needs AVX2"
)


def complete(url: str, **fields: Any) -> str:
    """The text of one completion."""
    answer = httpx.post(
        f"{url}/v1/completions", json=PROMPT | fields, timeout=TIMEOUT_SECONDS, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


class Stream(threading.Thread):
    """One streamed completion: how many tokens came, and whether it ended as it should."""

    def __init__(self, url: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = {"prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        self.has_begun = threading.Event()
        self.num_events = 0
        self.last = ""
        self.start()

    def run(self) -> None:
        """Read to the end."""
        with httpx.stream(
            *("POST", f"{self._url}/v1/completions"),
            json=self._body,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.last = line
                    self.num_events += 1
                    self.has_begun.set()


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder, by its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@runs_natively
def test_the_demo_model_is_served_read_only_by_any_user(podman: Podman, image: str) -> None:
    """With a read-only root and uid 12345 it answers, is healthy, and writes nothing."""
    with Container(podman, image, options=(*HARDENED, *ANYBODY, *PUBLISHED)) as container:
        container.wait_until_ready()
        assert complete(container.url) == complete(container.url)
        assert container.execute("id", "-u").strip() == "12345"
        assert container.try_to_execute("healthcheck") == 0
        assert container.try_to_execute("touch", f"{MODELS}/x") != 0
        assert container.execute("find", "/tmp", "-type", "f") == ""
        container.stop(30)
        assert container.state["ExitCode"] == 0
        assert container.changed_paths() == []


@runs_natively
def test_a_mounted_model_answers_as_the_built_in_one_and_stays_as_it_was(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    """A model folder on a read-only volume is served by its name; no file of it changes."""
    shutil.copytree(demo.model_path(), tmp_path / "mine")
    tmp_path.chmod(0o755)
    before = digests(tmp_path)
    volume = ("--volume", f"{tmp_path}:{MODELS}:ro")
    command = ("serve", "--model", "mine")
    with (
        Container(
            podman, image, *command, options=(*HARDENED, *ANYBODY, *PUBLISHED, *volume)
        ) as mounted,
        Container(podman, image, options=(*HARDENED, *PUBLISHED)) as built_in,
    ):
        mounted.wait_until_ready()
        built_in.wait_until_ready()
        assert complete(mounted.url, model="mine") == complete(built_in.url, model="demo")
        assert built_in.execute("id", "-u").strip() == "6972"
    assert digests(tmp_path) == before


def test_no_stream_is_lost_on_sigterm(podman: Podman, image: str) -> None:
    """Streams that run at SIGTERM end complete; then exit code 0; every log line is JSON."""
    num_tokens = 60
    command = (
        *("serve", "--loader", "fake", "--model", "fake"),
        *("--loader-option", "tokens_per_second=20"),
    )
    with Container(podman, image, *command, options=(*HARDENED, *ANYBODY, *PUBLISHED)) as container:
        container.wait_until_ready()
        streams = [Stream(container.url, num_tokens) for _ in range(NUM_STREAMS)]
        assert all(stream.has_begun.wait(TIMEOUT_SECONDS) for stream in streams)
        assert not any(stream.last == "data: [DONE]" for stream in streams)
        container.stop(60)
        for stream in streams:
            stream.join(TIMEOUT_SECONDS)
        assert [stream.last for stream in streams] == ["data: [DONE]"] * NUM_STREAMS
        assert container.state["ExitCode"] == 0
        lines = container.log_lines()
        ended = [line for line in lines if line["msg"] == "generation"]
        assert [line["completion_tokens"] for line in ended] == [num_tokens] * NUM_STREAMS
        draining = next(line for line in lines if line["msg"] == "draining")
        assert draining["num_requests"] == NUM_STREAMS


@runs_natively
def test_it_runs_without_a_network(podman: Podman, image: str) -> None:
    """With no network at all the model loads and answers on the loopback address."""
    ask = (
        "import json, urllib.request as r; print(r.urlopen(r.Request("
        "'http://127.0.0.1:5000/v1/completions', headers={'content-type': 'application/json'}, "
        f"data={json.dumps(PROMPT)!r}.encode())).read().decode())"
    )
    options = (*HARDENED, *ANYBODY, "--network", "none")
    with Container(podman, image, "serve", options=options) as container:
        container.wait_until(lambda: container.try_to_execute("healthcheck") == 0)
        answer = json.loads(container.execute("python3", "-c", ask))
        assert answer["usage"]["completion_tokens"] == PROMPT["max_tokens"]


def test_sagemakers_command_and_port_are_understood(podman: Podman, image: str) -> None:
    """`serve` as SageMaker's only argument, and the port it asks for."""
    options = (
        *("--publish", "127.0.0.1::8080", "--env", "SAGEMAKER_BIND_TO_PORT=8080"),
        *("--env", "TGWUI_LOADER=fake", "--env", "TGWUI_MODEL=fake"),
    )
    with Container(podman, image, "serve", options=options) as container:
        container.wait_until(lambda: container.try_to_execute("healthcheck") == 0)
        address = podman.run("port", container.id, "8080/tcp").stdout.split()[0]
        assert httpx.get(f"http://{address}/ping", trust_env=False).status_code == 200


def test_the_gateways_image_serves_an_engine(
    podman: Podman, image: str, gateway_image: str
) -> None:
    """Without numpy, pydantic or a tokenizer it relays a completion, read-only, as anybody."""
    engine_options = (*HARDENED, "--env", "TGWUI_LOADER=fake", "--env", "TGWUI_MODEL=fake")
    with Container(podman, image, options=(*engine_options, *PUBLISHED)) as engine:
        engine.wait_until_ready()
        address = podman.inspect(engine.id)["NetworkSettings"]["IPAddress"]
        command = ("gateway", "--endpoint", f"http://{address}:5000")
        options = (*HARDENED, *ANYBODY, "--publish", "127.0.0.1::3000")
        with Container(podman, gateway_image, *command, options=options) as gateway:
            gateway.wait_until(lambda: gateway.try_to_execute("healthcheck") == 0)
            host = podman.run("port", gateway.id, "3000/tcp").stdout.split()[0]
            assert complete(f"http://{host}") == complete(engine.url)
            gateway.stop(30)
            assert gateway.state["ExitCode"] == 0
            assert all(line["level"] != "error" for line in gateway.log_lines())
    sizes = [podman.inspect(name)["Size"] for name in (gateway_image, image)]
    assert sizes[0] < sizes[1]


def test_the_image_holds_what_it_should(podman: Podman, image: str) -> None:
    """User, ports, entry point, signal, health check and labels; the decoders, and no compiler."""
    config = podman.inspect(image)["Config"]
    assert config["User"] == "6972:6972"
    assert set(config["ExposedPorts"]) == {"5000/tcp", "7860/tcp"}
    assert config["Entrypoint"] == ["tgwui-k8s"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["WorkingDir"] == "/home/app/text-generation-webui"
    assert podman.inspect(image)["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/healthcheck"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    look = (
        "for tool in gcc g++ cc c++ pip make git; do command -v $tool; done; "
        "find /opt/venv /home -name 'decoder*.so' -o -name torch -o -name .git"
    )
    found = podman.run("run", "--rm", "--entrypoint", "sh", image, "-c", look).stdout.split()
    assert {Path(path).name for path in found} == {variant.library.name for variant in VARIANTS}


def test_a_code_change_uploads_megabytes(podman: Podman, image: str) -> None:
    """The package is a layer of its own, small, and above the layer with the dependencies."""
    history = json.loads(podman.run("history", "--format", "json", image).stdout)
    package, dependencies = (
        layer["size"] for layer in history if "COPY dir:" in layer["CreatedBy"]
    )
    assert package < 30 * 1024**2 < dependencies

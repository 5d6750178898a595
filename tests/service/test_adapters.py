"""LoRA adapters through the whole server: flags, routes, names, and what goes wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.adapters import edit_config, make_adapter
from tests.helpers.server_process import ServerProcess, wait_until
from tgwui_k8s.demo.tiny import make_checkpoint

PROMPT = "Once upon a time there was a"


class ModelServer(ServerProcess):
    """A server whose flags name the model."""

    @staticmethod
    def command_line(*flags: str, options: object = None) -> list[str]:
        return [*(sys.executable, "-m", "tgwui_k8s", "serve", "--port", "0", "--no-webui"), *flags]


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    model = make_checkpoint(root / "models" / "tiny", "llama", dtype="bfloat16")
    make_adapter(model, root / "first", seed=1)
    make_adapter(model, root / "loras" / "second", seed=2)
    make_adapter(model, root / "loras" / "org" / "third", seed=3)
    edit_config(make_adapter(model, root / "loras" / "odd", seed=4), use_dora=True)
    damaged = make_adapter(model, root / "loras" / "damaged", seed=5)
    edit_config(damaged, alpha_pattern={"*.q_proj": 16})
    return root


@pytest.fixture(scope="module", name="server")
def _server(folder: Path) -> Iterator[ServerProcess]:
    with ModelServer(
        *("--model-dir", str(folder / "models"), "--model", "tiny", "--num-threads", "1"),
        *("--lora", f"first={folder / 'first'}", "--lora-dir", str(folder / "loras")),
        *("--kv-cache-memory", "16MiB", "--max-num-seqs", "4", "--restart-engine", "1"),
        environment={"TGWUI_ADMIN_KEY": "root"},
    ) as server:
        yield server.wait_until_ready()


def change(server: ServerProcess, what: str, names: list[str] | None = None) -> httpx.Response:
    """Load or unload adapters with the admin key."""
    body = {} if names is None else {"json": {"lora_names": names}}
    return server.http.post(
        f"{server.url}/v1/internal/lora/{what}", headers={"Authorization": "Bearer root"}, **body
    )


def answer(server: ServerProcess, model: str, **fields: Any) -> dict[str, Any]:
    """A greedy completion by the model of that name."""
    fields = {"max_tokens": 12, "temperature": 0, **fields}
    return dict(server.complete(PROMPT, model=model, **fields).json())


def text(server: ServerProcess, model: str) -> str:
    return str(answer(server, model)["choices"][0]["text"])


def test_adapters_of_the_flags_are_models(server: ServerProcess) -> None:
    """Listed below their model, which Transformers runs for them, and found by name."""
    listed = {card["id"]: card for card in server.get("/v1/models").json()["data"]}
    assert (listed["tiny"]["parent"], listed["first"]["parent"]) == (None, "tiny")
    assert server.get("/v1/models/first").json() == listed["first"]
    info = server.get("/v1/internal/model/info").json()
    assert (info["lora_names"], info["loader"]) == (["first"], "Transformers")


def test_a_request_names_its_adapter(server: ServerProcess) -> None:
    """Another text under another name and fingerprint; an unknown name is a 404."""
    plain, adapted = answer(server, "tiny"), answer(server, "first")
    assert (plain["model"], adapted["model"]) == ("tiny", "first")
    assert plain["choices"][0]["text"] != adapted["choices"][0]["text"]
    assert plain["system_fingerprint"] != adapted["system_fingerprint"]
    unknown = server.complete(PROMPT, model="fourth")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_adapters_come_and_go(server: ServerProcess) -> None:
    """Those of the directory can be loaded, replaced and unloaded, by name or all of them."""
    assert server.get("/v1/internal/lora/list").json() == {
        "lora_names": ["damaged", "odd", "org/third", "second"]
    }
    assert server.complete(PROMPT, model="second").status_code == 404
    loaded = change(server, "load", ["second", "org/third"])
    assert (loaded.status_code, loaded.json()) == (200, "OK")
    assert len({text(server, name) for name in ("tiny", "first", "second", "org/third")}) == 4
    assert change(server, "load", ["second"]).status_code == 200
    assert change(server, "unload", ["second", "never"]).status_code == 200
    assert server.complete(PROMPT, model="second").status_code == 404
    assert change(server, "unload").json() == "OK"
    assert [card["id"] for card in server.get("/v1/models").json()["data"]] == ["tiny"]
    assert server.complete(PROMPT, model="tiny").status_code == 200


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        (
            "nowhere",
            404,
            "there is no adapter 'nowhere'; there are: damaged, odd, org/third, second",
        ),
        ("../first", 404, "there is no adapter '../first'"),
        ("odd", 400, "its use_dora is True"),
        ("damaged", 400, "its alpha_pattern '*.q_proj' is no regular expression"),
        ("tiny", 400, "is the name of the model itself"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    server: ServerProcess, folder: Path, name: str, status: int, words: str
) -> None:
    """In the client's terms, without paths; the engine goes on with what it is at."""
    with server.stream(PROMPT, max_tokens=150, temperature=0, ignore_eos=True) as stream:
        next(stream)
        refused = change(server, "load", [name])
        assert list(stream)[-1] == "[DONE]"
    assert refused.status_code == status
    assert words in refused.json()["error"]["message"]
    assert str(folder) not in refused.text
    assert server.complete(PROMPT, model="tiny").status_code == 200


def test_changing_adapters_needs_the_admin_key(server: ServerProcess) -> None:
    """For everybody else nothing changes."""
    for what in ("load", "unload"):
        url = f"{server.url}/v1/internal/lora/{what}"
        assert server.http.post(url, json={"lora_names": ["second"]}).status_code in (401, 403)


def test_unloading_lets_a_running_stream_end(server: ServerProcess) -> None:
    """It keeps its adapter to its last token."""
    change(server, "load", ["second"])
    whole = answer(server, "second", max_tokens=150, ignore_eos=True)["choices"][0]["text"]
    with server.stream(PROMPT, model="second", max_tokens=150, temperature=0, ignore_eos=True) as s:
        first = next(s)
        assert change(server, "unload", ["second"]).status_code == 200
        rest = list(s)
    events = [httpx.Response(200, text=event).json() for event in [first, *rest[:-1]]]
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == whole
    assert rest[-1] == "[DONE]"


def test_an_engine_that_starts_again_has_its_adapters(server: ServerProcess) -> None:
    """Those of the flags and those of the routes, as they were before it died."""
    change(server, "load", ["second"])
    before = text(server, "second")
    os.kill(server.engine.pid, signal.SIGKILL)
    wait_until(lambda: server.get("/health/ready").status_code != 200)
    wait_until(lambda: server.get("/health/ready").status_code == 200, seconds=120)
    assert text(server, "second") == before


def test_an_adapter_that_is_not_there_ends_the_start() -> None:
    """Before any weights are read."""
    with ModelServer("--model", "demo", "--lora", "a=/nowhere") as server:
        assert server.process.wait(60) == 3
        server.wait()
        assert "there is no adapter /nowhere" in (
            server.errors.decode() + b"".join(server.lines).decode()
        )


def test_a_loader_without_adapters_says_so(folder: Path) -> None:
    """And which loader has them."""
    with ServerProcess("--lora", f"first={folder / 'first'}") as server:
        assert server.process.wait(60) == 3
        server.wait()
        assert "loader 'fake' runs no LoRA adapters; the nearest is --loader Transformers" in (
            server.errors.decode() + b"".join(server.lines).decode()
        )


def test_adapters_need_a_loader_that_runs_them() -> None:
    """A server without `--lora-dir`, on a loader of its own choice, says what to do."""
    with ServerProcess(environment={"TGWUI_ADMIN_KEY": "root"}) as server:
        server.wait_until_ready()
        refused = change(server, "load", ["second"])
        assert refused.status_code == 400
        assert "runs no LoRA adapters" in refused.json()["error"]["message"]

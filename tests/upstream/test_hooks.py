"""The hooks by themselves: what they import, and what they do where the servers do not show it."""

from __future__ import annotations

import ast
import json
import logging
import os
import platform
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tgwui_k8s import __version__
from tgwui_k8s.upstream import device, generation, launch, logs, storage
from tgwui_k8s.upstream.exposition import Counter, Histogram, render
from tgwui_k8s.upstream.metrics import metrics_of
from tgwui_k8s.upstream.service import service_of
from tgwui_k8s.upstream.starting import PortTaken, addresses, bind

PACKAGE = Path(launch.__file__).parent
OF_UPSTREAM = {"torch", "transformers", "transformers_neuronx"}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_only_the_standard_library_is_imported(path: Path) -> None:
    """At the top; within functions also what upstream itself has."""
    tree = ast.parse(path.read_text())
    at_top = {name for node in tree.body for name in imported(node)}
    anywhere = {name for node in ast.walk(tree) for name in imported(node)}

    allowed = {*sys.stdlib_module_names, "tgwui_k8s"}
    assert {name for name in at_top if name.partition(".")[0] not in allowed} == set()
    assert {
        name for name in anywhere if name.partition(".")[0] not in allowed | OF_UPSTREAM
    } == set()
    # The package itself holds no more than its version.
    ours = {name for name in anywhere if name.startswith("tgwui_k8s.")}
    assert all(name.startswith("tgwui_k8s.upstream") for name in ours)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


# ---------------------------------------------------------------------------------------- logs


def lines_of(write: Any) -> list[dict[str, Any]]:
    read_end, write_end = os.pipe()
    handler = logs.JsonHandler(write_end)
    write(handler)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        return [json.loads(line) for line in file]


def test_a_log_line_has_no_key_and_no_colour_wherever_they_stand() -> None:
    """In the message and in the traceback; a key within a key goes as a whole."""

    def write(handler: logs.JsonHandler) -> None:
        handler.mask(["sk-1", "sk-12345"])
        try:
            raise ValueError("sk-12345")
        except ValueError:
            record = logging.LogRecord(
                "textgen", logging.INFO, "f.py", 1, "\x1b[31mkey %s", ("sk-12345",), sys.exc_info()
            )
        handler.emit(record)

    (line,) = lines_of(write)

    assert line["msg"] == "key ***"
    assert "sk-1" not in json.dumps(line)
    assert "ValueError: ***" in line["exc"]


def test_what_is_printed_becomes_lines() -> None:
    """Each line one; of a progress bar its last state; what is no UTF-8 does not break it."""

    def write(handler: logs.JsonHandler) -> None:
        stream = logs.LineWriter(handler, "stdout", "info")
        print("one\ntwo", file=stream)
        stream.write("10%\r20%\r30%\n")
        print("\udcff half", end="", file=stream, flush=True)

    assert [line["msg"] for line in lines_of(write)] == ["one", "two", "30%", "\udcff half"]


def test_a_reader_that_is_gone_stops_nobody() -> None:
    """A full disk and a closed pipe lose lines, not requests."""
    read_end, write_end = os.pipe()
    os.close(read_end)

    logs.JsonHandler(write_end).write("info", "x", "lost")

    os.close(write_end)


# ------------------------------------------------------------------------------------- storage


@pytest.fixture(name="checkout")
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    for name in ("presets", "models", "modules", "user_data/models"):
        (root / name).mkdir(parents=True)
    (root / "presets" / "Creative.yaml").write_text("temperature: 1")
    (root / "models" / "weights").write_text("large")
    (root / "server.py").write_text("")
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "state"))
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["server.py", "--model-dir", "models", "--settings=s.yaml"])
    for variable in storage._CACHES:
        monkeypatch.setenv(variable, "/tmp")
    return root


def test_the_working_copy_can_be_changed_and_the_checkout_is_not(checkout: Path) -> None:
    """Presets are copied, weights are linked, paths on the command line mean what they meant."""
    storage.enter(str(checkout / "server.py"))

    assert Path.cwd() == storage.state_dir()
    Path("presets", "Creative.yaml").write_text("temperature: 2")
    assert (checkout / "presets" / "Creative.yaml").read_text() == "temperature: 1"
    assert Path("models").is_symlink()
    assert Path("user_data", "models").is_symlink()
    assert sys.argv[1:] == [
        "--model-dir",
        str(checkout / "models"),
        f"--settings={checkout / 's.yaml'}",
    ]


def test_what_an_earlier_start_left_is_kept(checkout: Path) -> None:
    """A preset that was saved is there after a restart with the same volume."""
    storage.enter(str(checkout / "server.py"))
    Path("presets", "Mine.yaml").write_text("temperature: 3")
    os.chdir(checkout)

    storage.enter(str(checkout / "server.py"))

    assert Path("presets", "Mine.yaml").read_text() == "temperature: 3"


def test_settings_of_models_begin_as_the_volume_has_them(checkout: Path) -> None:
    """They are read from the model directory and written beside it, never into it."""
    (checkout / "models" / "config-user.yaml").write_text("a: 1")
    path = storage.user_config(str(checkout / "models" / "config-user.yaml"))
    assert path == str(storage.state_dir() / "config-user.yaml")


def test_a_folder_that_cannot_be_made_says_what_to_set(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable's name."""
    monkeypatch.setenv(storage.VARIABLE, str(checkout / "server.py" / "below-a-file"))

    with pytest.raises(SystemExit, match="set TGWUI_STATE_DIR or TMPDIR to a writable directory"):
        storage.enter(str(checkout / "server.py"))


# ----------------------------------------------------------------------------------- the others


def test_an_engine_is_known_by_its_version() -> None:
    """Alerts and dashboard ask for it: without it there is no engine at all (TgwuiNoEngine)."""
    page = metrics_of(SimpleNamespace(model_name="llama")).page().decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}

    (sample,) = families["tgwui_build_info"].samples
    assert sample.value == 1
    assert sample.labels == {"version": __version__, "python": platform.python_version()}


def test_the_page_is_what_prometheus_reads() -> None:
    """Names with quotes and line ends included; buckets are cumulative."""
    counter, histogram = Counter("tgwui_x_total", "X."), Histogram("tgwui_y_seconds", "Y.")
    counter.add(2, model_name='a "b"\nc\\')
    for seconds in (0.02, 0.02, 7.0, 1e9):
        histogram.observe(seconds, "m")

    families = {
        f.name: f for f in text_string_to_metric_families(render([counter, histogram]).decode())
    }

    assert families["tgwui_x"].samples[0].labels == {"model_name": 'a "b"\nc\\'}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["tgwui_y_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets["0.01"], buckets["0.025"], buckets["10"], buckets["+Inf"]) == (0, 2, 3, 4)


def test_a_tensor_goes_where_the_model_is() -> None:
    """To its device; to CUDA only for a model that is there or does not say."""

    class Tensor:
        def to(self, device: object) -> str:
            return f"to {device}"

        def cuda(self) -> str:
            return "cuda"

    assert device.place(Tensor(), SimpleNamespace(device="cpu")) == "to cpu"
    has_cuda = SimpleNamespace(device="cuda:0")
    tensor = Tensor()
    assert device.place(tensor, has_cuda) in ("cuda", tensor)


def test_a_request_that_is_given_up_stops_its_text() -> None:
    """By its own event as by the flag for all; without an event upstream's criterion is left."""

    class Everything:
        def __call__(self, ids: object, scores: object) -> bool:
            return False

    event, upstreams = threading.Event(), Everything()
    either = generation.stops(upstreams, {"stop_event": event})

    assert generation.stops(upstreams, {}) is upstreams
    assert isinstance(either, Everything)
    assert not either(None, None)
    event.set()
    assert either(None, None)


def test_the_port_is_where_upstreams_flags_say_and_never_elsewhere() -> None:
    """Its variables win over its flags; a taken port ends the process with code 3."""
    args = SimpleNamespace(api_port=0, listen=False, listen_host=None)
    (listener,) = bind(addresses(args, {}))
    port = listener.getsockname()[1]

    assert addresses(SimpleNamespace(api_port=1, listen=True, listen_host=None), {}) == [
        ("0.0.0.0", 1)
    ]
    with pytest.raises(PortTaken, match="3") as caught:
        bind(addresses(args, {"OPENEDAI_PORT": str(port)}))
    assert f"port {port}: Address already in use" in caught.value.message
    listener.close()


def test_a_model_that_sleeps_is_there_and_one_that_failed_is_not() -> None:
    """--idle-timeout unloads; the next request loads again."""
    args = SimpleNamespace(idle_timeout=5)
    shared: Any = SimpleNamespace(model=None, model_name="m", args=args)
    service = service_of(shared)
    assert not service.has_model
    service.started()
    assert service.has_model
    shared.model_name = "None"
    assert not service.has_model


def test_the_image_takes_the_variables_of_the_manifests(tmp_path: Path) -> None:
    """The first key of a file; what means nothing to upstream is left out."""
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsk-a\nsk-b\n")
    variables = {
        "TGWUI_HOST": "0.0.0.0",
        "TGWUI_PORT": "5000",
        "TGWUI_MODEL": "demo",
        "TGWUI_MODEL_DIR": "/models",
        "TGWUI_API_KEY_FILE": str(keys),
        "TGWUI_LOG_FORMAT": "json",
    }

    assert launch.flags(variables) == [
        *("--api", "--listen", "--api-port", "5000", "--model-dir", "/models"),
        *("--api-key", "sk-a"),
    ]
    with pytest.raises(SystemExit, match="2"):
        launch.flags({"TGWUI_ADMIN_KEY_FILE": str(tmp_path / "none")})

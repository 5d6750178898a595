"""`tgwui-k8s models pull` against servers that imitate the hub, S3 and the web, and break."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from tests.helpers.model_sources import COMMIT, ModelServer, model_server
from tests.helpers.server_process import ServerProcess, wait_until
from tgwui_k8s import demo
from tgwui_k8s.errors import DownloadError
from tgwui_k8s.storage.model_dir import list_models
from tgwui_k8s.storage.pull import pull as pull_module
from tgwui_k8s.storage.pull import ranges
from tgwui_k8s.storage.pull.pull import Pulled, PullRequest, pull
from tgwui_k8s.storage.pull.s3 import S3Source
from tgwui_k8s.storage.pull.snapshot import Source
from tgwui_k8s.storage.pull.sources import parse_source

PART = 16 * 1024
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(5 * PART + 7),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(3 * PART),
    "nested/tokenizer.json": b"{}" * 40,
    "empty.txt": b"",
}
UNWANTED = {"README.md": b"# read me", "pytorch_model.bin": b"the same again"}
SHARD = "model-00001-of-00002.safetensors"
SAFE = {"part_bytes": PART}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are followed by another attempt at once."""
    monkeypatch.setattr(ranges, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture(name="hub")
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with model_server(FILES | UNWANTED) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield server


@pytest.fixture(name="s3")
def _s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with model_server(dict(FILES)) as server:
        for name, value in _aws(server).items():
            monkeypatch.setenv(name, value)
        yield server


def _aws(server: ModelServer) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }


def fetch(source: str | Source, model_dir: Path, **options: Any) -> Pulled:
    """Pull in this process, in small parts."""
    found = parse_source(source) if isinstance(source, str) else source
    request = PullRequest(model_dir=model_dir, **{**SAFE, **options})
    return pull(found, request, lambda done, total: None)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def leftovers(model_dir: Path) -> list[str]:
    """What is in the directory beside models."""
    return sorted(path.name for path in model_dir.iterdir() if path.name.startswith("."))


# ------------------------------------------------------------------------------- the three kinds


def test_a_repository_comes_whole_without_what_nobody_reads(
    hub: ModelServer, tmp_path: Path
) -> None:
    """No duplicates of the weights, nothing else stays, and the token goes to the hub only."""
    pulled = fetch("hf://org/name", tmp_path)
    assert pulled.folder == tmp_path / "org_name"
    assert content(pulled.folder) == FILES
    assert leftovers(tmp_path) == []
    assert all(token is None for _, _, _, token in hub.requests)
    manifest = json.loads((pulled.folder / ".tgwui-pull.json").read_text())
    assert manifest["revision"] == COMMIT


@pytest.mark.parametrize("part_bytes", [None, 30_000])
def test_a_bucket_comes_whole_and_checked(
    s3: ModelServer, tmp_path: Path, part_bytes: int | None
) -> None:
    """Objects of all pages, by signed URLs, whether they were uploaded in one piece or in parts."""
    s3.part_bytes = part_bytes
    assert content(fetch("s3://bucket/models/llama", tmp_path).folder) == FILES
    assert (tmp_path / "llama").is_dir()
    s3.faults = {SHARD: ["corrupt", *([""] * 5), "corrupt"]}
    with pytest.raises(DownloadError, match="not what its checksum says, twice"):
        fetch("s3://bucket/models/llama", tmp_path, name="again", num_connections=1)


def test_a_file_of_the_web_comes_and_is_checked(s3: ModelServer, tmp_path: Path) -> None:
    """One file in a folder of its name; with a wrong sum nothing appears."""
    digest = hashlib.sha256(FILES[SHARD]).hexdigest()
    folder = fetch(f"{s3.url}/x/{SHARD}#sha256={digest}", tmp_path).folder
    assert content(folder) == {SHARD: FILES[SHARD]}
    with pytest.raises(DownloadError, match="checksum"):
        fetch(f"{s3.url}/x/{SHARD}#sha256={'0' * 64}", tmp_path, name="wrong")
    assert not (tmp_path / "wrong").exists()


# ----------------------------------------------------------------------------- when things break


@pytest.mark.parametrize("fault", ["truncate", "reset", "503"])
def test_broken_connections_are_followed_by_others(
    hub: ModelServer, tmp_path: Path, fault: str
) -> None:
    """What has come stays: the next request asks for the rest."""
    hub.faults = {SHARD: [fault] * 4}
    assert content(fetch("org/name", tmp_path).folder) == FILES
    asked = sum(
        int(last) + 1 - int(first)
        for _, file, span, _ in hub.requests
        if file == SHARD and span
        for first, last in [span.removeprefix("bytes=").split("-")]
    )
    again = 4 * PART if fault == "503" else 2 * PART
    assert asked <= len(FILES[SHARD]) + again


def test_a_wrong_byte_is_found_and_the_file_fetched_again(hub: ModelServer, tmp_path: Path) -> None:
    """Once; small files are checked by git's own sum."""
    hub.faults = {SHARD: ["corrupt"], "config.json": ["corrupt"]}
    assert content(fetch("org/name", tmp_path).folder) == FILES


def test_a_server_that_stays_broken_is_given_up(hub: ModelServer, tmp_path: Path) -> None:
    """With what went wrong; the model does not appear; the next run goes on."""
    hub.faults = {SHARD: ["503"] * 1000}
    with pytest.raises(DownloadError, match="8 failures in a row: status 503"):
        fetch("org/name", tmp_path, num_connections=1)
    assert list_models(tmp_path) == []
    hub.faults = {}
    before = len(hub.requests)
    assert content(fetch("org/name", tmp_path).folder) == FILES
    assert all(file != "config.json" for _, file, _, _ in hub.requests[before:])


@pytest.mark.parametrize(
    ("fault", "message"), [("403", "not allowed"), ("changed", "has changed while it was fetched")]
)
def test_what_another_attempt_does_not_change_is_said_at_once(
    s3: ModelServer, tmp_path: Path, fault: str, message: str
) -> None:
    """A refusal, and an object that is another one now."""
    s3.faults = {SHARD: [fault]}
    with pytest.raises(DownloadError, match=message):
        fetch("s3://bucket/llama", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/unknown", "does not exist, or is private"),
        ("org/name@nothing", "has no revision 'nothing'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: ModelServer, tmp_path: Path, source: str, message: str
) -> None:
    """One line that says what to do."""
    with pytest.raises(DownloadError, match=message):
        fetch(source, tmp_path)


def test_a_gated_model_needs_a_token(
    hub: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where to get one."""
    hub.gated = True
    assert fetch("org/name", tmp_path, name="with").num_bytes > 0
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(DownloadError, match="accept its licence"):
        fetch("org/name", tmp_path, name="without")


# --------------------------------------------------------------------------------- what is there


def test_what_is_there_already_is_not_fetched_again(hub: ModelServer, tmp_path: Path) -> None:
    """A Job may run twice."""
    assert not fetch("org/name", tmp_path).was_there
    before = len(hub.requests)
    assert fetch("org/name", tmp_path).was_there
    assert len(hub.requests) == before


def test_a_folder_that_is_something_else_is_never_touched(hub: ModelServer, tmp_path: Path) -> None:
    """One copied by hand, and one of another choice of files."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights").write_text("precious")
    with pytest.raises(DownloadError, match="was not made by this command"):
        fetch("org/name", tmp_path, name="mine")
    assert content(tmp_path / "mine") == {"weights": b"precious"}
    fetch("org/name", tmp_path)
    with pytest.raises(DownloadError, match="another version or choice"):
        fetch("org/name", tmp_path, include=("*.json",))


def test_one_that_has_lost_a_file_is_named(hub: ModelServer, tmp_path: Path) -> None:
    """It is not taken for complete."""
    folder = fetch("org/name", tmp_path).folder
    (folder / SHARD).unlink()
    with pytest.raises(DownloadError, match=f"{SHARD} is missing or cut off"):
        fetch("org/name", tmp_path)


# ------------------------------------------------------------------------------------- the disk


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0:
        pytest.skip("needs root: a file system of its own")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_found_before_it_is_full(
    hub: ModelServer, small_disk: Path
) -> None:
    """Nothing is fetched in vain."""
    with pytest.raises(DownloadError, match="the disk has room for"):
        fetch("org/name", small_disk)
    assert hub.requests == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_lost(
    hub: ModelServer, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else took the room: a clear error, no model; with room the next run goes on."""
    monkeypatch.setattr(pull_module, "_check_room", lambda workspace, snapshot: None)
    with pytest.raises(DownloadError, match="is full; free some room") as caught:
        fetch("org/name", small_disk, num_connections=1)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert list_models(small_disk) == []
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    before = len(hub.requests)
    assert content(fetch("org/name", small_disk).folder) == FILES
    assert 0 < len(hub.requests) - before < 10


# ------------------------------------------------------------------------ processes and signals


class PullProcess:
    """The command as a Job runs it, against S3."""

    def __init__(self, server: ModelServer, model_dir: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tgwui_k8s", "models", "pull", "s3://bucket/llama"),
                *("--model-dir", str(model_dir), *flags),
            ],
            env={**os.environ, **_aws(server), "TGWUI_LOG_FORMAT": "json"},
            stdout=subprocess.PIPE,
        )

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and log lines, all of them JSON."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()]


MANY = {f"part-{i:02}.safetensors": bytes([i]) * 5000 for i in range(24)}


def test_a_job_that_is_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGTERM in mid-download: no model, no lock; the next run fetches only what is missing."""
    with model_server(dict(MANY), seconds_per_request=0.05) as server:
        first = PullProcess(server, tmp_path, "--connections", "2")

        def num_got() -> int:
            return sum(method == "GET" for method, *_ in server.requests)

        wait_until(lambda: num_got() >= 8)
        first.process.send_signal(signal.SIGTERM)
        code, lines = first.end()
        assert code == 130
        assert lines[-1]["msg"] == "interrupted; the next run goes on from here"
        assert leftovers(tmp_path) == [".pull-llama"]
        assert list_models(tmp_path) == []
        num_before = num_got()
        assert num_before < len(MANY)
        code, lines = PullProcess(server, tmp_path).end()
        assert code == 0
        assert lines[-1]["msg"] == "complete"
        assert lines[-1]["bytes_total"] == sum(map(len, MANY.values()))
        assert content(tmp_path / "llama") == MANY
        # At most the two that were in flight came twice.
        assert num_got() <= len(MANY) + 2


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    """The second waits for the first and finds everything there."""
    with model_server(dict(MANY), seconds_per_request=0.05) as server:
        pulls = [PullProcess(server, tmp_path, "--connections", "4") for _ in range(2)]
        ends = [process.end() for process in pulls]
        assert [code for code, _ in ends] == [0, 0]
        assert sorted(lines[-1]["msg"] for _, lines in ends) == ["already there", "complete"]
        assert sum(method == "GET" for method, *_ in server.requests) == len(MANY)
    assert content(tmp_path / "llama") == MANY


def test_errors_are_a_line_and_exit_code_three(tmp_path: Path) -> None:
    """In the log, as JSON."""
    with model_server(dict(MANY), faults={"part-00.safetensors": ["403"]}) as server:
        code, lines = PullProcess(server, tmp_path).end()
    assert code == 3
    assert lines[-1]["level"] == "error"
    assert "part-00.safetensors: not allowed (status 403)" in lines[-1]["msg"]


def test_s3_without_objects_is_an_error(s3: ModelServer) -> None:
    """A typing mistake in the prefix is no empty model."""
    s3.files.clear()
    with pytest.raises(DownloadError, match="holds no objects"):
        S3Source("bucket", "nothing").snapshot()


def test_sagemakers_model_id_is_fetched_and_served(tmp_path: Path) -> None:
    """HF_MODEL_ID on S3: the server fetches the demo model, then answers under both its names."""
    files = {path.name: path.read_bytes() for path in demo.model_path().iterdir()}
    with model_server(files) as server:
        environment = {
            **_aws(server),
            "HF_MODEL_ID": "s3://bucket/my-demo",
            "TMPDIR": str(tmp_path),
            "TGWUI_LOG_FORMAT": "json",
        }
        flags = ("--model", environment["HF_MODEL_ID"])
        with ServerProcess(*flags, environment=environment) as process:
            process.wait_until_ready()
            names = [model["id"] for model in process.get("/v1/models").json()["data"]]
    assert names == ["s3://bucket/my-demo", "my-demo"]
    assert content(tmp_path / "models" / "my-demo") == files

"""The parts of a pull: what is chosen, how it is written down, and who may do it."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.errors import DownloadError, UsageError
from tgwui_k8s.storage.pull.checksum import matches
from tgwui_k8s.storage.pull.hub import HubSource
from tgwui_k8s.storage.pull.lock import exclusive
from tgwui_k8s.storage.pull.selection import select
from tgwui_k8s.storage.pull.snapshot import Checksum, RemoteFile, Snapshot
from tgwui_k8s.storage.pull.sources import is_remote, parse_source
from tgwui_k8s.storage.pull.workspace import Workspace


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1) for path in paths]


def chosen(
    paths: list[str], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> list[str]:
    return [file.path for file in select(files(*paths), include, exclude)]


# -------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://TheBloke/Llama-2-7B-Chat-AWQ", "TheBloke_Llama-2-7B-Chat-AWQ"),
        ("TheBloke/Llama-2-7B-Chat-AWQ@v1.0", "TheBloke_Llama-2-7B-Chat-AWQ"),
        ("hf://a/b@refs/pr/3", "a_b"),
        ("https://host/some/model.Q4.gguf?x=1", "model.Q4"),
    ],
)
def test_sources_have_names(text: str, name: str) -> None:
    """text-generation-webui's own for the hub, the file's for the web."""
    assert parse_source(text).default_name == name


@pytest.mark.parametrize(
    "text",
    ["name", "a/b/c", "ftp://host/x", "s3://", "hf://", "https://host/", "https://h/x#md5=1", ""],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    """With the forms that there are, or with what is wrong."""
    with pytest.raises(UsageError):
        parse_source(text)


def test_names_of_models_and_places_to_fetch_them_from_differ() -> None:
    """Paths are never fetched."""
    assert is_remote("org/name")
    assert is_remote("s3://bucket/x")
    assert not any(map(is_remote, ("name", "/opt/ml/model", "./a/b", "a/b/c", "demo")))


def test_a_source_cannot_name_files_elsewhere() -> None:
    """Whatever a server says, nothing is written outside of the model's folder."""
    for path in ("/etc/passwd", "../x", "a/../../x", "", "a\0b"):
        with pytest.raises(DownloadError, match="leads elsewhere"):
            RemoteFile(path, 1)


def test_the_hubs_source_needs_no_network_to_be_named() -> None:
    """Parsing does nothing."""
    assert HubSource("a/b", None).default_name == "a_b"


# ------------------------------------------------------------------------------------ selection


def test_weights_come_once() -> None:
    """safetensors where there are any, else whatever there is."""
    both = ["model.safetensors", "pytorch_model.bin", "original/consolidated.00.pth", "config.json"]
    assert chosen(both) == ["model.safetensors", "config.json"]
    assert chosen(["pytorch_model.bin", "README.md"]) == ["pytorch_model.bin"]


def test_of_several_ggufs_one_must_be_named() -> None:
    """The parts of one are one; `--include` decides alone, `--exclude` beats it."""
    quantizations = ["m.Q4.gguf", "m.Q8.gguf", "config.json"]
    with pytest.raises(DownloadError, match=r"say which, as in --include 'm\.Q4\.gguf'"):
        chosen(quantizations)
    assert chosen(quantizations, ("*Q8*",)) == ["m.Q8.gguf"]
    assert chosen(quantizations, exclude=("*Q8*",)) == ["m.Q4.gguf", "config.json"]
    parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert chosen(parts) == parts
    with pytest.raises(DownloadError, match="none of the source's 3 files"):
        chosen(quantizations, ("*.safetensors",))


# ------------------------------------------------------------------------------------ checksums


@given(st.binary(max_size=300), st.integers(1, 64))
def test_checksums_are_those_of_their_makers(content: bytes, part_bytes: int) -> None:
    """SHA-256, MD5, git's name of a blob, and S3's sum of the parts' sums."""
    with TemporaryDirectory() as folder:
        _check_sums(Path(folder) / "file", content, part_bytes)


def _check_sums(path: Path, content: bytes, part_bytes: int) -> None:
    path.write_bytes(content)
    parts = [content[i : i + part_bytes] for i in range(0, len(content), part_bytes)]
    joined = b"".join(hashlib.md5(part).digest() for part in parts)
    sums = [
        Checksum("sha256", hashlib.sha256(content).hexdigest()),
        Checksum("md5", hashlib.md5(content).hexdigest()),
        Checksum("git-sha1", hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()),
        Checksum("s3-parts", f"{hashlib.md5(joined).hexdigest()}-{len(parts)}", part_bytes),
    ]
    assert all(matches(path, checksum) for checksum in sums)
    path.write_bytes(content + b"x")
    assert not any(matches(path, checksum) for checksum in sums)


# ------------------------------------------------------------------------------------ workspace


def _workspace(folder: Path, revision: str = "1") -> tuple[Workspace, RemoteFile]:
    file = RemoteFile("a/b", 25)
    workspace = Workspace(folder, Snapshot("x", revision, (file,)), part_bytes=10)
    workspace.path(file).parent.mkdir(parents=True, exist_ok=True)
    workspace.path(file).write_bytes(bytes(25))
    return workspace, file


def test_what_was_written_is_known_after_a_crash(tmp_path: Path) -> None:
    """Also when the journal's last line is cut off; another version begins anew."""
    workspace, file = _workspace(tmp_path / "w")
    assert workspace.missing_parts(file) == [(0, 10), (10, 20), (20, 25)]
    assert not workspace.note_part(file, 10)
    workspace.note_part(file, 20)
    with (tmp_path / "w" / "journal").open("ab") as journal:
        journal.write(b'["part", "a/')
    again, file = _workspace(tmp_path / "w")
    assert again.missing_parts(file) == [(0, 10)]
    again.forget(file)
    assert len(_workspace(tmp_path / "w")[0].missing_parts(file)) == 3
    _workspace(tmp_path / "w")[0].note_part(file, 0)
    other, file = _workspace(tmp_path / "w", revision="2")
    assert len(other.missing_parts(file)) == 3


def test_a_file_that_somebody_removed_is_missing(tmp_path: Path) -> None:
    """The journal alone is not believed."""
    workspace, file = _workspace(tmp_path / "w")
    for start in (0, 10, 20):
        workspace.note_part(file, start)
    workspace.path(file).unlink()
    again = Workspace(tmp_path / "w", Snapshot("x", "1", (file,)), part_bytes=10)
    assert len(again.missing_parts(file)) == 3


# ----------------------------------------------------------------------------------------- lock


def test_a_dead_owners_lock_is_taken_and_a_living_ones_is_not(tmp_path: Path) -> None:
    """The owner's beat decides, not its clock: a file from the future is stale, too."""
    path = tmp_path / "lock"
    path.write_text("dead 1 x 0")
    os.utime(path, (2**33, 2**33))
    with exclusive(path, beat_seconds=0.02, stale_seconds=2.0) as lock:
        entered = threading.Event()

        def want() -> None:
            with exclusive(path, beat_seconds=0.02, stale_seconds=2.0):
                entered.set()

        waiting = threading.Thread(target=want, daemon=True)
        waiting.start()
        assert not entered.wait(4.0)
        lock.check()
    assert entered.wait(10)
    waiting.join(10)
    assert list(tmp_path.iterdir()) == []


def test_a_beat_is_never_seen_half_written(tmp_path: Path) -> None:
    """Whoever looks while the owner writes sees the owner: nobody believes the lock lost."""
    path = tmp_path / "lock"
    with exclusive(path) as lock:
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                seen.add(path.read_text().rpartition(" ")[0])

        seen: set[str] = set()
        looking = threading.Thread(target=look)
        looking.start()
        for _ in range(3000):
            lock.beat()
        over.set()
        looking.join()
        assert seen == {path.read_text().rpartition(" ")[0]}


def test_who_has_lost_the_lock_does_not_publish(tmp_path: Path) -> None:
    """A process that stood still finds another's lock, leaves it alone, and says so."""
    path = tmp_path / "lock"
    with exclusive(path) as lock:
        path.write_text("another 2 y 0")
        with pytest.raises(DownloadError, match="was lost"):
            lock.check()
    assert path.read_text() == "another 2 y 0"

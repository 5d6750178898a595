"""Which GGUF file of a folder is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.storage.gguf_files import first_parts, parts_of, pick_gguf


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    return folder


def test_sets_count_once() -> None:
    """Later parts of a set stand for nothing; single files stand for themselves."""
    names = ["b-00002-of-00002.gguf", "b-00001-of-00002.gguf", "a.gguf"]

    assert first_parts(names) == ["a.gguf", "b-00001-of-00002.gguf"]


def test_parts_are_listed_in_order() -> None:
    """Any part names the whole set."""
    parts = parts_of(Path("/m/x-00002-of-00003.gguf"))

    assert [f"x-0000{number}-of-00003.gguf" for number in (1, 2, 3)] == [p.name for p in parts]


def test_picks_the_only_model_and_leaves_mmproj_alone(tmp_path: Path) -> None:
    """The eye of a multi-modal model is never taken for the model."""
    make(tmp_path, "aaa-mmproj.txt", "mmproj-f16.gguf", "a-mmproj.gguf", "model.gguf")

    assert tmp_path / "model.gguf" == pick_gguf(tmp_path)


def test_any_part_leads_to_the_first(tmp_path: Path) -> None:
    """llama.cpp wants the first part, whichever part the user named."""
    make(tmp_path, "x-00001-of-00002.gguf", "x-00002-of-00002.gguf")

    assert tmp_path / "x-00001-of-00002.gguf" == pick_gguf(tmp_path / "x-00002-of-00002.gguf")


def test_several_quantizations_must_be_told_apart(tmp_path: Path) -> None:
    """Two models in a folder are not guessed between; the error lists them."""
    make(tmp_path, "m.Q4_K_M.gguf", "m.Q8_0.gguf")

    with pytest.raises(UnsupportedModelError, match=r"holds 2 GGUF models.*m\.Q4_K_M\.gguf"):
        pick_gguf(tmp_path)


def test_missing_part_is_named(tmp_path: Path) -> None:
    """An incomplete download is found before anything is loaded."""
    make(tmp_path, "x-00001-of-00003.gguf", "x-00003-of-00003.gguf")

    with pytest.raises(BrokenModelError, match=r"x-00002-of-00003\.gguf of a GGUF set is missing"):
        pick_gguf(tmp_path)


def test_later_parts_alone_are_no_model(tmp_path: Path) -> None:
    """A set without its first part cannot be loaded."""
    make(tmp_path, "x-00002-of-00002.gguf")

    with pytest.raises(BrokenModelError, match="only later parts"):
        pick_gguf(tmp_path)

"""Adapters by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import ModelNotFoundError, UsageError
from tgwui_k8s.storage.adapter_dir import find_adapter, list_adapters, named_adapters


@pytest.fixture(name="loras")
def _loras(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    for name in ("plain", "org/nested", "org/too/deep", ".hidden", "empty"):
        (root / name).mkdir(parents=True)
        if name != "empty":
            (root / name / "adapter_config.json").write_text("{}")
    return root


def test_adapters_are_listed_by_their_path(loras: Path) -> None:
    """Two levels deep, without hidden folders and such that hold none."""
    assert list_adapters(str(loras)) == ["org/nested", "plain"]
    assert list_adapters(None) == list_adapters(str(loras / "missing")) == []


@pytest.mark.parametrize("name", ["empty", "../loras/plain", "/etc", "org/../plain", "plain/", ""])
def test_only_what_is_listed_is_found(loras: Path, name: str) -> None:
    """No name leads out of the directory."""
    assert find_adapter("org/nested", str(loras)) == loras / "org" / "nested"
    with pytest.raises(ModelNotFoundError, match="there are: org/nested, plain"):
        find_adapter(name, str(loras))


def test_without_a_directory_nothing_is_found(tmp_path: Path) -> None:
    """The message says what the server lacks."""
    with pytest.raises(ModelNotFoundError, match="without --lora-dir"):
        find_adapter("plain", None)
    with pytest.raises(ModelNotFoundError, match="there are none"):
        find_adapter("plain", str(tmp_path))


def test_flags_name_adapters(loras: Path) -> None:
    """By name and path, by path alone, by a name in the directory."""
    named = named_adapters(("a=/x/y", "/x/z", "plain", "n=org/nested"), str(loras))
    assert named == {
        "a": "/x/y",
        "z": "/x/z",
        "plain": str(loras / "plain"),
        "n": str(loras / "org/nested"),
    }
    assert named_adapters(("rel/it",), None) == {"it": "rel/it"}


@pytest.mark.parametrize("flags", [("=x",), ("a=",), ("",), ("a=/x", "a=/y")])
def test_wrong_flags_are_refused(flags: tuple[str, ...]) -> None:
    """Empty and repeated names."""
    with pytest.raises(UsageError, match="--lora"):
        named_adapters(flags, None)

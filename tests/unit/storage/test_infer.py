"""The loader that a model folder gets: a zoo of layouts as found in the wild, traps among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.model_zoo import BROKEN, REFUSED, SUPPORTED, Layout
from tgwui_k8s.errors import BrokenModelError, ModelNotFoundError, UnsupportedModelError
from tgwui_k8s.storage.infer import RULES, infer_loader
from tgwui_k8s.storage.loader_names import LOADER_NAMES


def name_of(layout: Layout) -> str:
    return layout.name


@pytest.mark.parametrize("layout", SUPPORTED, ids=name_of)
def test_infers_the_loader_and_says_why(layout: Layout, tmp_path: Path) -> None:
    """Each layout gets the loader that can run it, with a reason."""
    inference = infer_loader(layout.write(tmp_path))

    assert layout.verdict == inference.loader
    assert inference.reason


@pytest.mark.parametrize("layout", REFUSED, ids=name_of)
def test_names_a_format_that_no_loader_runs(layout: Layout, tmp_path: Path) -> None:
    """An unsupported format is named, with what to use instead."""
    with pytest.raises(UnsupportedModelError) as caught:
        infer_loader(layout.write(tmp_path))

    assert layout.verdict in str(caught.value)
    assert layout.name in str(caught.value)


@pytest.mark.parametrize("layout", BROKEN, ids=name_of)
def test_says_what_is_wrong_with_a_broken_folder(layout: Layout, tmp_path: Path) -> None:
    """A folder that is no model is an error that names it and the remedy, in one line."""
    with pytest.raises(BrokenModelError) as caught:
        infer_loader(layout.write(tmp_path))

    assert layout.verdict in str(caught.value)
    assert layout.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_path_is_not_found(tmp_path: Path) -> None:
    """A path that leads nowhere is an error of its own."""
    with pytest.raises(ModelNotFoundError, match="nowhere does not exist"):
        infer_loader(tmp_path / "nowhere")


def test_file_of_weights_points_to_its_folder(tmp_path: Path) -> None:
    """Naming model.safetensors instead of its folder says so."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0")

    with pytest.raises(BrokenModelError, match="name the folder that holds it"):
        infer_loader(path)


def test_other_file_says_which_files_can_be_models(tmp_path: Path) -> None:
    """A text file is no model, and the error says what would be."""
    path = tmp_path / "README.md"
    path.write_text("hello")

    with pytest.raises(BrokenModelError, match=r"a single file can be a \.gguf"):
        infer_loader(path)


def test_folder_of_models_names_what_is_inside(tmp_path: Path) -> None:
    """A publisher's folder is no model, but the error shows what to name."""
    (tmp_path / "meta-llama" / "Llama-2").mkdir(parents=True)

    with pytest.raises(BrokenModelError, match="Llama-2"):
        infer_loader(tmp_path / "meta-llama")


def test_dangling_link_counts_as_absent(tmp_path: Path) -> None:
    """A link to a file that is gone does not make a folder a model."""
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "gone.json")

    with pytest.raises(BrokenModelError, match="holds no model"):
        infer_loader(folder)


def test_every_rule_is_shown_by_an_animal_of_the_zoo(tmp_path: Path) -> None:
    """No rule of the table goes untested: each decides about some layout."""
    signs = {infer_loader(layout.write(tmp_path)).reason for layout in SUPPORTED}
    for layout in REFUSED:
        with pytest.raises(UnsupportedModelError) as caught:
            infer_loader(layout.write(tmp_path))
        signs.add(str(caught.value).removeprefix(f"{layout.name}: ").split("; ")[0])

    assert set() == {rule.sign for rule in RULES} - signs


def test_rules_name_loaders_of_this_project() -> None:
    """The table's loaders are called as everywhere else."""
    assert {rule.loader for rule in RULES if rule.loader} <= set(LOADER_NAMES)

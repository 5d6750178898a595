"""Artifacts appear as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import BrokenModelError, StartupError
from tgwui_k8s.neuron.artifacts import new_artifacts
from tgwui_k8s.neuron.layout import OPTIMUM_NEURON, TRANSFORMERS_NEURONX, find_layout
from tgwui_k8s.neuron.manifest import MANIFEST, read_manifest
from tgwui_k8s.neuron.parameters import Parameters

PARAMETERS = Parameters(
    library=TRANSFORMERS_NEURONX,
    mode="continuous",
    tp_degree=2,
    amp="bf16",
    batch_size=4,
    n_positions=128,
    context_buckets=(128,),
)


def write(target: Path, name: str) -> None:
    with new_artifacts(target, PARAMETERS, {}) as fresh:
        (fresh / name).write_bytes(b"graph")


def test_new_artifacts_replace_old_ones(tmp_path: Path) -> None:
    """Nothing of the old ones is left, and nothing beside them."""
    target = tmp_path / "neuron_artifacts"
    write(target, "old.neff")
    write(target, "new.neff")

    assert sorted(path.name for path in target.iterdir()) == sorted([MANIFEST, "new.neff"])
    assert [path.name for path in tmp_path.iterdir()] == ["neuron_artifacts"]
    written = read_manifest(target)
    assert written is not None
    assert written.files == {"new.neff": 5}
    assert written.parameters == PARAMETERS


def test_a_failed_compile_leaves_the_old_ones(tmp_path: Path) -> None:
    """As they were, and no half-written folder."""
    target = tmp_path / "neuron_artifacts"
    write(target, "old.neff")

    def compile_badly() -> None:
        with new_artifacts(target, PARAMETERS, {}) as fresh:
            (fresh / "new.neff").write_bytes(b"graph")
            raise RuntimeError("Failed compilation")

    with pytest.raises(RuntimeError, match="Failed compilation"):
        compile_badly()

    assert sorted(path.name for path in target.iterdir()) == sorted([MANIFEST, "old.neff"])
    assert [path.name for path in tmp_path.iterdir()] == ["neuron_artifacts"]


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """It names the folder and a way out."""
    with (
        pytest.raises(StartupError, match=r"No space left.*--neuron-artifacts"),
        new_artifacts(tmp_path / "neuron_artifacts", PARAMETERS, {}),
    ):
        raise OSError(28, "No space left on device")


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    """A folder named by mistake keeps what it holds."""
    (tmp_path / "photo.jpg").touch()

    with pytest.raises(BrokenModelError, match=r"photo\.jpg, which is no artifact"):
        write(tmp_path, "new.neff")

    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


def test_the_parts_of_a_model_are_found(tmp_path: Path) -> None:
    """Apart, together, and where the operator says."""
    apart = make(tmp_path / "a-neuron", "model/config.json", "tokenizer/tokenizer.json")
    plain = make(tmp_path / "plain", "config.json")
    mixed = make(tmp_path / "mixed", "config.json", "0.neff")

    assert find_layout(apart).model == apart / "model"
    assert find_layout(apart).tokenizer == apart / "tokenizer"
    assert find_layout(apart).artifacts == apart / "neuron_artifacts"
    assert find_layout(plain).tokenizer == plain
    assert find_layout(plain).artifacts == plain / "neuron_artifacts"
    assert find_layout(plain, "/elsewhere").artifacts == Path("/elsewhere")
    assert find_layout(mixed).artifacts == mixed


def test_exports_of_the_other_library_are_recognised(tmp_path: Path) -> None:
    """By their files."""
    new = make(tmp_path / "new", "config.json", "neuron_config.json", "model.pt")
    old = make(tmp_path / "old", "config.json", "checkpoint/x", "compiled/x.neff")
    plain = make(tmp_path / "plain", "config.json")

    assert find_layout(new).library == find_layout(old).library == OPTIMUM_NEURON
    assert find_layout(plain).library == TRANSFORMERS_NEURONX


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """With the layout that is expected."""
    with pytest.raises(BrokenModelError, match="NAME/neuron_artifacts"):
        find_layout(tmp_path)

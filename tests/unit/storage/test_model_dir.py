"""Names to paths: what the command line may say, and what a client may not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.model_zoo import GGUF, LLAMA, PLAIN, Layout
from tgwui_k8s import demo
from tgwui_k8s.errors import ModelNotFoundError
from tgwui_k8s.storage.model_dir import list_models, resolve_model, tokenizer_folder


@pytest.fixture(name="models")
def models_fixture(tmp_path: Path) -> Path:
    """A model directory with a folder, a nested folder, a file, and two quantizations."""
    root = tmp_path / "models"
    root.mkdir()
    Layout("Llama-2-7b", "", PLAIN).write(root)
    Layout("meta-llama/Llama-3-8B", "", PLAIN).write(root)
    Layout("tiny.gguf", "").write(root)
    Layout("Mixed-GGUF", "", {"m.Q4_K_M.gguf": GGUF, "m.Q8_0.gguf": GGUF}).write(root)
    return root


@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize(
    "name", ["Llama-2-7b", "meta-llama/Llama-3-8B", "tiny.gguf", "Mixed-GGUF/m.Q8_0.gguf"]
)
def test_name_is_a_path_below_the_directory(models: Path, name: str, over_http: bool) -> None:
    """A folder or file is named by its path relative to the directory."""
    assert models / name == resolve_model(name, models, over_http=over_http)


@pytest.mark.parametrize("over_http", [False, True])
def test_demo_is_built_in(models: Path, over_http: bool) -> None:
    """`demo` needs no model directory."""
    assert demo.model_path() == resolve_model("demo", models, over_http=over_http)


def test_pattern_picks_one_quantization(models: Path) -> None:
    """The last part of a name may be a pattern, matched without regard to case."""
    path = resolve_model("Mixed-GGUF/*q4_k*", models, over_http=True)

    assert models / "Mixed-GGUF" / "m.Q4_K_M.gguf" == path


def test_name_of_a_quantization_picks_it(models: Path) -> None:
    """`folder:Q4_K_M` names one of several files, as other programs write it."""
    path = resolve_model("Mixed-GGUF:q4_k_m", models, over_http=True)

    assert models / "Mixed-GGUF" / "m.Q4_K_M.gguf" == path
    with pytest.raises(ModelNotFoundError, match="there is no model 'Mixed-GGUF:Q2'"):
        resolve_model("Mixed-GGUF:Q2", models)


def test_pattern_of_several_lists_them(models: Path) -> None:
    """A pattern must be sharp enough."""
    with pytest.raises(ModelNotFoundError, match=r"matches 2 models: m\.Q4_K_M\.gguf"):
        resolve_model("Mixed-GGUF/*", models)


def test_pattern_of_none_is_not_found(models: Path) -> None:
    """A pattern without match is an unknown model."""
    with pytest.raises(ModelNotFoundError, match="there is no model"):
        resolve_model("Mixed-GGUF/*Q2*", models)
    with pytest.raises(ModelNotFoundError, match="there is no model"):
        resolve_model("missing/*Q2*", models)


def test_command_line_takes_any_path(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute paths, paths from the current folder and from the home folder."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("HOME", str(models))

    for name in (str(models / "Llama-2-7b"), "./Llama-2-7b", "~/Llama-2-7b", "../models/tiny.gguf"):
        assert resolve_model(name, "elsewhere").exists()


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "../models/Llama-2-7b",
        "Llama-2-7b/../../secret",
        "meta-llama/../..",
        "~/x",
        "",
        ".",
        "..",
        "a\0b",
        "..\\secret",
        "C:\\models",
        "//etc",
    ],
)
def test_clients_cannot_leave_the_directory(models: Path, name: str) -> None:
    """Over HTTP nothing but a plain relative name is taken, whatever exists there."""
    (models.parent / "secret").mkdir()

    with pytest.raises(ModelNotFoundError, match="is not allowed"):
        resolve_model(name, models, over_http=True)


def test_clients_stay_below_the_directory_even_with_a_dot(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./name` over HTTP is looked up in the directory, not where the server was started."""
    monkeypatch.chdir(models.parent)
    (models.parent / "elsewhere").mkdir()

    with pytest.raises(ModelNotFoundError, match="there is no model"):
        resolve_model("./elsewhere", models, over_http=True)
    assert models / "Llama-2-7b" == resolve_model("./Llama-2-7b", models, over_http=True)


def test_clients_cannot_follow_a_link_out(models: Path, tmp_path: Path) -> None:
    """A link that leaves the directory is refused over HTTP and left out of the list."""
    outside = Layout("outside", "", PLAIN).write(tmp_path)
    (models / "linked").symlink_to(outside)

    with pytest.raises(ModelNotFoundError, match="is not allowed"):
        resolve_model("linked", models, over_http=True)
    with pytest.raises(ModelNotFoundError, match="is not allowed"):
        resolve_model("linked/config.json", models, over_http=True)
    assert "linked" not in list_models(models)
    assert (models / "linked").samefile(resolve_model("linked", models))


def test_link_within_the_directory_is_a_model(models: Path) -> None:
    """An alias for a model beside it is welcome, also where the directory itself is a link."""
    (models / "latest").symlink_to("Llama-2-7b")
    alias = models.parent / "alias"
    alias.symlink_to(models)

    assert resolve_model("latest", alias, over_http=True).samefile(models / "Llama-2-7b")
    assert "latest" in list_models(alias)


def test_loop_of_links_is_not_found(models: Path) -> None:
    """Links in a circle lead nowhere and break nothing."""
    (models / "loop").symlink_to("loop")

    with pytest.raises(ModelNotFoundError):
        resolve_model("loop", models, over_http=True)
    with pytest.raises(ModelNotFoundError):
        resolve_model("loop", models)
    assert "loop" not in list_models(models)


def test_near_names_are_offered(models: Path) -> None:
    """A typing mistake gets the name that was meant."""
    with pytest.raises(ModelNotFoundError, match="did you mean Llama-2-7b"):
        resolve_model("llama-2-7B-", models)


def test_without_near_names_all_are_listed(models: Path) -> None:
    """Where nothing resembles the name, the error lists what there is."""
    with pytest.raises(ModelNotFoundError, match="there are: demo, Llama-2-7b"):
        resolve_model("zzzzzzzz", models)


def test_clients_see_no_paths(models: Path) -> None:
    """The message for a client does not show where the models lie."""
    for directory in (models, models / "missing"):
        with pytest.raises(ModelNotFoundError) as caught:
            resolve_model("zzzzzzzz", directory, over_http=True)
        assert str(models.parent) not in str(caught.value)


def test_long_names_are_cut(models: Path) -> None:
    """An error repeats at most a part of a very long name."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("x" * 100_000, models, over_http=True)
    assert len(str(caught.value)) < 1000


def test_folder_without_permission_says_so(models: Path) -> None:
    """A mount with the wrong owner is named as such instead of as missing."""
    (models / "Llama-2-7b").chmod(0)

    with as_nobody(), pytest.raises(ModelNotFoundError, match="permission denied"):
        resolve_model("Llama-2-7b/config.json", models)
    with as_nobody(), pytest.raises(ModelNotFoundError, match="cannot be read"):
        list_models(models / "Llama-2-7b")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything, where the tests run as root."""
    me = os.geteuid()
    if me != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_lists_models_and_broken_folders(models: Path) -> None:
    """Nested models by their path, several GGUFs one by one, junk at the top level too."""
    (models / "broken-download").mkdir()
    (models / ".cache").mkdir()
    (models / "meta-llama" / "empty").mkdir()
    (models / "notes.txt").write_text("hello")
    Layout("split", "", {"s-00001-of-00002.gguf": GGUF, "s-00002-of-00002.gguf": GGUF}).write(
        models
    )
    Layout("some-neuron", "", {"model/config.json": LLAMA}).write(models)

    assert list_models(models) == [
        "broken-download",
        "Llama-2-7b",
        "meta-llama/Llama-3-8B",
        "Mixed-GGUF/m.Q4_K_M.gguf",
        "Mixed-GGUF/m.Q8_0.gguf",
        "some-neuron",
        "split",
        "tiny.gguf",
    ]


def test_hugging_face_cache_is_seen_through(models: Path) -> None:
    """Models in a Hugging Face cache are found by their snapshots."""
    Layout("models--org--name/snapshots/abc", "", PLAIN).write(models)

    assert "models--org--name/snapshots/abc" in list_models(models)


def test_missing_directory_is_not_found(tmp_path: Path) -> None:
    """A directory that does not exist is an error for the list."""
    with pytest.raises(ModelNotFoundError):
        list_models(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        list_models(tmp_path / "file")


def test_tokenizer_lies_beside_the_model(models: Path) -> None:
    """In the folder, in `tokenizer/` of a Neuron folder, beside a single file."""
    neuron = Layout("x-neuron", "", {"model/config.json": LLAMA, "tokenizer/a": b""}).write(models)

    assert models == tokenizer_folder(models / "tiny.gguf")
    assert models / "Llama-2-7b" == tokenizer_folder(models / "Llama-2-7b")
    assert neuron / "tokenizer" == tokenizer_folder(neuron)

"""Presets: what ships, what an operator adds, and names that are no names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.api.schemas.sampling import SamplerFields
from tgwui_k8s.errors import InternalError, InvalidRequestError
from tgwui_k8s.presets import MAX_PRESET_BYTES, load_preset, preset_names


def test_text_generation_webui_s_names_are_there() -> None:
    """Those of today's version and the best known of earlier ones."""
    expected = {"Creative", "Deterministic", "Top-P", "min_p", "simple-1", "Big O", "LLaMA-Precise"}

    assert expected <= set(preset_names())
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_built_in_preset_is_a_valid_request(name: str) -> None:
    """The API's own schema takes every field and value."""
    values = load_preset(name)

    assert values
    assert SamplerFields.model_validate(values).model_fields_set == set(values)


def test_an_operator_s_preset_comes_beside_the_built_in_ones(tmp_path: Path) -> None:
    """It is read anew every time, and wins over a built-in one of its name."""
    (tmp_path / "house.yaml").write_text("temperature: 0.3\n")
    (tmp_path / "Top-P.yaml").write_text("top_p: 0.5\n")

    assert load_preset("house", tmp_path) == {"temperature": 0.3}
    assert load_preset("Top-P", tmp_path) == {"top_p": 0.5}
    assert load_preset("Creative", tmp_path) == load_preset("Creative")
    assert set(preset_names(tmp_path)) == {*preset_names(), "house"}
    (tmp_path / "house.yaml").write_text("temperature: 0.4\n")
    assert load_preset("house", tmp_path) == {"temperature": 0.4}


@pytest.mark.parametrize(
    "name",
    [
        "nope", "", ".", "..", "../secret", "a/b", "..\\secret", "/etc/passwd", ".hidden", "x\0y",
        "Top-P.yaml", "n" * 5000, "\ud800",
    ],
)  # fmt: skip
def test_an_unknown_name_is_the_client_s_mistake(name: str, tmp_path: Path) -> None:
    """A bounded message that lists the presets; never a look outside the folder."""
    (tmp_path / ".hidden.yaml").write_text("temperature: 0.3\n")
    (tmp_path.parent / "secret.yaml").write_text("temperature: 0.3\n")

    with pytest.raises(InvalidRequestError, match="Top-P") as raised:
        load_preset(name, tmp_path)
    assert raised.value.param == "preset"
    assert len(raised.value.message) < 3000


@pytest.mark.parametrize(
    "content",
    [b"- 1\n- 2\n", b"", b"a: [", b"\xff\xfe\xff", b"1: 2\n", b"#" * (MAX_PRESET_BYTES + 1),
     b"[" * 20_000],
)  # fmt: skip
def test_a_broken_file_is_our_fault(content: bytes, tmp_path: Path) -> None:
    """The client cannot repair it, so it is no 400, and trying again is no use."""
    (tmp_path / "broken.yaml").write_bytes(content)

    with pytest.raises(InternalError, match="broken") as raised:
        load_preset("broken", tmp_path)
    assert not raised.value.retryable


def test_a_directory_that_is_not_there_adds_nothing(tmp_path: Path) -> None:
    """The built-in presets remain."""
    assert preset_names(tmp_path / "missing") == preset_names()
    assert load_preset("Top-P", tmp_path / "missing") == load_preset("Top-P")

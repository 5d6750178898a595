"""Finding loaders: listing imports nothing, and what cannot be had is one clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s import registry
from tgwui_k8s.contract import LoadRequest, ProgressCallback
from tgwui_k8s.errors import LoaderUnavailableError, UnsupportedModelError
from tgwui_k8s.registry import available, get_loader
from tgwui_k8s.storage.loader_names import LOADER_NAMES, canonical_loader_name

METADATA = """\
Metadata-Version: 2.4
Name: strange-loaders
Version: 1.0
Provides-Extra: missing-library
Requires-Dist: no-such-library>=2; extra == "missing-library"
Requires-Dist: pytest>=1; extra == "missing-library"
Requires-Dist: packaging<1; extra == "missing-library"
Requires-Dist: click
"""
ENTRY_POINTS = """\
[tgwui_k8s.loaders]
Missing_Library = strange_loaders_missing:Loader
No.Class = strange_loaders_empty:Loader
Good = strange_loaders_good:Loader
"""


@pytest.fixture(name="_installed")
def installed_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another distribution that brings three loaders, two of them broken."""
    information = tmp_path / "strange_loaders-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "strange_loaders_missing.py").write_text("import no_such_library\n")
    (tmp_path / "strange_loaders_empty.py").write_text("")
    (tmp_path / "strange_loaders_good.py").write_text(
        "class Loader:\n    name = 'Good'\n    options = {}\n    def load(self, r, p): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("strange_loaders")]:
        del sys.modules[name]


def test_own_loaders_are_listed() -> None:
    """Those declared in pyproject.toml, with what they need."""
    entries = {entry.name: entry for entry in available()}

    assert {"fake", "Transformers"} <= set(entries)
    assert entries["fake"].is_installed
    assert entries["fake"].requirements == ()
    assert entries["Transformers"].install_line == "pip install 'tgwui-k8s[transformers]'"
    assert any(text.startswith("torch>=") for text in entries["Transformers"].requirements)
    assert set(entries) <= set(LOADER_NAMES)


def test_listing_imports_no_loader() -> None:
    """A fresh interpreter that lists the loaders has neither them nor torch."""
    program = (
        "import sys; from tgwui_k8s.registry import available; assert available();"
        "assert not {'torch', 'transformers', 'loaders'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("_installed")
def test_other_distributions_bring_loaders_too() -> None:
    """Any installed package may declare loaders, and may have an extra for each."""
    entries = {entry.name: entry for entry in available()}
    missing = entries["Missing_Library"]

    assert missing.requirements == ("no-such-library>=2", "pytest>=1", "packaging<1")
    assert missing.missing == ("no-such-library>=2", "packaging<1")
    assert not missing.is_installed
    assert missing.install_line == "pip install 'strange-loaders[missing-library]'"
    assert entries["Good"].install_line == "pip install 'strange-loaders'"


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["Good", "good", "GOOD"])
def test_names_are_found_in_any_case(name: str) -> None:
    """Upstream writes loader names in many ways."""
    assert get_loader(name).name == "Good"


@pytest.mark.usefixtures("_installed")
def test_missing_library_names_the_install_line() -> None:
    """The error says what is missing and the command that brings it."""
    with pytest.raises(LoaderUnavailableError) as caught:
        get_loader("missing_library")

    assert "no_such_library" in str(caught.value)
    assert "pip install 'strange-loaders[missing-library]'" in str(caught.value)


@pytest.mark.usefixtures("_installed")
def test_broken_module_is_an_error_of_ours() -> None:
    """An entry point whose class is not there does not end in a traceback of someone else's."""
    with pytest.raises(LoaderUnavailableError, match=r"'No\.Class' cannot be imported"):
        get_loader("No.Class")


def test_unknown_name_lists_what_there_is() -> None:
    """A typing mistake shows the loaders."""
    with pytest.raises(LoaderUnavailableError, match=r"'nope' is unknown; there are: .*fake"):
        get_loader("nope")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("transformers", "Transformers"),
        ("llamacpp", "llama.cpp"),
        ("llama_cpp", "llama.cpp"),
        ("llamacpp_HF", "llama.cpp"),
        ("AutoAWQ", "AutoAWQ"),
        ("auto-gptq", "AutoGPTQ"),
        ("VLLM", "vLLM"),
        ("neuron", "Neuron"),
        ("Somebody.Elses", "Somebody.Elses"),
    ],
)
def test_spellings_lead_to_one_name(spelling: str, name: str) -> None:
    """Case and punctuation do not matter; names of other packages are left as they are."""
    assert name == canonical_loader_name(spelling)


@pytest.mark.parametrize(
    "name",
    ["ExLlamav2_HF", "ExLlama", "ExLlamav3", "ctransformers", "QuIP#", "HQQ", "GPTQ-for-LLaMa"],
)
def test_upstreams_other_loaders_get_advice(name: str) -> None:
    """A loader of text-generation-webui that is not here answers with what to use instead."""
    with pytest.raises(LoaderUnavailableError) as caught:
        get_loader(name)

    assert f"loader '{name}' is not shipped; " in str(caught.value)


class _NamedLoader:
    """Says which loader was asked for what."""

    def __init__(self, name: str, calls: list[tuple[str, str]]) -> None:
        self._name = name
        self._calls = calls

    def load(self, request: LoadRequest, progress: ProgressCallback) -> str:
        self._calls.append((self._name, request.loader))
        if self._name == "Native" and "gpt2" in request.model_path:
            raise UnsupportedModelError("not a Llama")
        if self._name == "Native" and "int4" in request.options.values():
            raise UnsupportedModelError("four bits are too few")
        return self._name


@pytest.mark.parametrize(
    ("request_", "used", "calls"),
    [
        ({"loader_is_inferred": True}, "Native", [("Native", "Native")]),
        ({}, "Transformers", [("Transformers", "Transformers")]),
        (
            {"loader_is_inferred": True, "options": {"weights": "int8"}},
            "Native",
            [("Native", "Native")],
        ),
        (
            {"loader_is_inferred": True, "options": {"weights": "int4"}},
            "Transformers",
            [("Native", "Native"), ("Transformers", "Transformers")],
        ),
        (
            {"loader_is_inferred": True, "adapters": {}},
            "Transformers",
            [("Transformers", "Transformers")],
        ),
        (
            {"loader_is_inferred": True, "model_path": "gpt2"},
            "Transformers",
            [("Native", "Native"), ("Transformers", "Transformers")],
        ),
    ],
)
def test_faster_loader_is_tried_where_nobody_chose(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], used: str, calls: list[Any]
) -> None:
    """Only for an inferred loader; what it cannot run, or cannot do, goes to the inferred one."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(registry, "get_loader", lambda name: _NamedLoader(name, made))
    fields = {"model_path": "llama", "loader": "Transformers", **request_}

    assert registry.load_model(LoadRequest(**fields), print) == used
    assert made == calls


def test_bare_checkout_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an installation there are no entry points, and the error says so."""
    monkeypatch.setattr(registry, "entry_points", lambda group: ())

    with pytest.raises(LoaderUnavailableError, match=r"pip install \."):
        get_loader("fake")

"""The Embeddings loader against sentence-transformers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.helpers.sentence_model import SIZE, TEXTS, make_sentence_model
from tests.helpers.versions import needs_transformers
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.contract import Embedder, LoadProgress, LoadRequest
from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.registry import load_model
from tgwui_k8s.storage.infer import infer_loader

pytestmark = needs_transformers("5.17")


def load(folder: Path, **fields: Any) -> Embedder:
    """The model as the engine loads it."""
    request = LoadRequest(model_path=str(folder), loader="Embeddings", num_threads=1, **fields)
    loaded = load_model(request, lambda progress: None)
    assert isinstance(loaded, Embedder)
    return loaded


def token_ids(folder: Path) -> list[list[int]]:
    """The texts as the API process tokenizes them."""
    tokenizer = Tokenizer.load(folder)
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("architecture", "pooling", "normalizes"),
    [
        ("bert", "mean", True),
        ("bert", "cls", False),
        ("bert", "max", True),
        ("xlm-roberta", "mean", False),
        ("qwen3", "lasttoken", True),
    ],
)
def test_vectors_equal_sentence_transformers(
    tmp_path: Path, architecture: str, pooling: str, normalizes: bool
) -> None:
    """Encoders and decoders, each pooling, within 1e-5, texts of all lengths in one batch."""
    folder = make_sentence_model(
        tmp_path, architecture=architecture, pooling=pooling, normalizes=normalizes
    )
    oracle = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = oracle.encode(list(TEXTS), convert_to_numpy=True)

    vectors = load(folder).embed(token_ids(folder))

    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), SIZE)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_vector_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """Alone or padded beside longer texts: the same up to rounding."""
    folder = make_sentence_model(tmp_path)
    embedder = load(folder)
    lists = token_ids(folder)

    together = embedder.embed(lists)
    alone = np.concatenate([embedder.embed([one]) for one in lists])

    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_facts_of_the_model_are_told(tmp_path: Path) -> None:
    """Length, size and what it can do; a Matryoshka model says what its vectors may be cut to."""
    folder = make_sentence_model(tmp_path, matryoshka_dimensions=[SIZE, 16, 8])
    info = load(folder).info

    assert infer_loader(folder).loader == "Embeddings"
    assert info.max_model_len == 64
    assert info.embedding_sizes == (SIZE, 16, 8)
    assert info.capabilities.embeddings
    assert not info.capabilities.generation
    assert load(folder, max_model_len=20).info.max_model_len == 20
    with pytest.raises(UnsupportedModelError, match="64 tokens at most"):
        load(folder, max_model_len=65)


def test_positions_of_roberta_start_after_the_padding(tmp_path: Path) -> None:
    """Its longest text is shorter than its table of positions."""
    folder = make_sentence_model(tmp_path, architecture="xlm-roberta", max_length=None)
    embedder = load(folder)

    assert embedder.info.max_model_len == 125
    assert embedder.embed([[7] * 125]).shape == (1, SIZE)


def test_loading_is_reported(tmp_path: Path) -> None:
    """The last report has all bytes."""
    reports: list[LoadProgress] = []
    folder = make_sentence_model(tmp_path)
    request = LoadRequest(model_path=str(folder), loader="Embeddings", num_threads=1)
    load_model(request, reports.append)

    assert reports[-1].bytes_read == reports[-1].bytes_total > 0


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("modules.json", [{"type": "a.Dense", "path": ""}], "Dense"),
        ("modules.json", [{"type": "a.Transformer", "path": ""}], "Pooling"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pooling",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query", "prompts": {"query": "Find: "}},
            "query",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    tmp_path: Path, file: str, content: Any, named: str
) -> None:
    """Better no vectors than other ones than sentence-transformers'."""
    folder = make_sentence_model(tmp_path)
    (folder / file).write_text(json.dumps(content))

    with pytest.raises(UnsupportedModelError, match=named):
        load(folder)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    """Modules that are no list, weights that are missing."""
    folder = make_sentence_model(tmp_path)
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text("{}")
    with pytest.raises(BrokenModelError, match=r"modules\.json"):
        load(folder)
    (folder / "modules.json").write_text(modules)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(BrokenModelError, match="weights are missing"):
        load(folder)

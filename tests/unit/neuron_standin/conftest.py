"""One tiny Llama for all tests of the double."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.demo.tiny import make_checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint: 512 tokens, of which 1 ends a text; four heads, two for keys and values."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2)

"""Minutes of real processes: run only when they are named, as `make rollout-test` does."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests to who asks for them."""
    return None if any("tests/rollout" in argument for argument in config.args) else True

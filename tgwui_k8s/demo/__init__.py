"""The built-in demo model, the script that trains it, and makers of tiny test checkpoints."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Folder of the built-in demo model: a Hugging Face checkpoint, committed as package data."""
    return Path(__file__).resolve().parent / "model"

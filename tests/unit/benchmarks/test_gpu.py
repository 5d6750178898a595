"""The GPU's benchmark runs: tiny, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from tests.helpers.versions import needs_transformers
from tgwui_k8s.demo.tiny import make_checkpoint

TINY = [
    *("--device", "cpu", "--streams", "1", "2", "--peer-streams", "2", "--num-prompt", "9"),
    *("--num-new", "5", "--long-prompt", "40", "--mixed-streams", "2", "--mixed-steps", "9"),
    *("--mixed-budget", "16", "--buffer-bytes", "4096", "--matrix", "16"),
]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything heavy is started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])


@needs_transformers("5")
def test_every_part_gives_its_figures(tmp_path: Path) -> None:
    """All but Transformers' batching, which takes long to start; the table has a row for each."""
    model = make_checkpoint(tmp_path / "model", "llama")
    figures = {}
    for part in ("model", "device", "ours"):
        out = tmp_path / f"{part}.json"
        gpu.main([*TINY, "--model", str(model), "--part", part, "--out", str(out)])
        figures[part] = json.loads(out.read_text())
    figures["transformers"] = {"tok_s": {"2": figures["ours"]["tok_s"]["2"] / 4}}
    found = gpu.table(figures)
    assert "| decoding, 1 stream |" in found
    assert "| prefill, long prompt |" in found
    assert "4.0 × Transformers" in found
    assert "median ITL" in found
    assert found.count("| streams at once:") == 2


def test_what_was_left_out_leaves_a_gap() -> None:
    """A part that failed takes its rows and shares with it, and nothing else."""
    found = gpu.table(
        {
            "device": {},
            "ours": {
                "start_s": 1.0,
                "single_tok_s": 2.0,
                "weight_bytes": 3,
                "long_tok_s": 4.0,
                "long_flop_per_token": 5.0,
                "tok_s": {"256": 6.0},
            },
        }
    )
    assert "| decoding, 1 stream | 2.0 tok/s | – |" in found
    assert "copying" not in found
    assert "| streams at once: 256 | 6 tok/s | – | ≥ 4 ×, ≥ 10,000 tok/s |" in found

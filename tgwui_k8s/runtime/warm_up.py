"""What most runners compute before their first request."""

from __future__ import annotations

from tgwui_k8s.contract import Batch, ModelRunner, ScheduledSequence


def compute_a_little(runner: ModelRunner) -> None:
    """A short prompt and one token, as far as the context goes: touches every weight once."""
    max_model_len = runner.info.max_model_len
    length = min(2, max_model_len)
    tables = tuple([0] for _ in runner.layout.groups)
    runner.execute(Batch([ScheduledSequence(0, 0, [0] * length, tables, 1)], length))
    if length < max_model_len:
        runner.execute(Batch([ScheduledSequence(0, length, [0], tables, 1)], 1))

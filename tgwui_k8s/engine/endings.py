"""Where a choice ends: at a stop token, at its `max_tokens`, at the end of the context."""

from __future__ import annotations

from tgwui_k8s.contract import FinishReason, SamplingRow
from tgwui_k8s.engine.request import Sequence


def why_ended(
    sequence: Sequence, token_id: int, num_outputs: int, max_model_len: int
) -> FinishReason | None:
    """Why a choice ends with its output number `num_outputs`, which is `token_id`, if it does."""
    if _is_stop(sequence.sampling, token_id, num_outputs):
        return "stop"
    num_tokens = sequence.num_known_tokens
    return "length" if _is_full(sequence, num_outputs, num_tokens, max_model_len) else None


def ends_with_next(sequence: Sequence, max_model_len: int) -> bool:
    """True if the token after all those it has, unknown ones included, will be the last."""
    num_outputs = len(sequence.sampling.output_token_ids) + 1
    num_tokens = sequence.num_known_tokens + sequence.num_unknown + 1
    return _is_full(sequence, num_outputs, num_tokens, max_model_len)


def _is_stop(row: SamplingRow, token_id: int, num_outputs: int) -> bool:
    if num_outputs <= row.params.min_tokens:
        return False
    if token_id in row.params.stop_token_ids:
        return True
    return token_id in row.eos_token_ids and not row.params.ignore_eos


def _is_full(sequence: Sequence, num_outputs: int, num_tokens: int, max_model_len: int) -> bool:
    return num_outputs >= sequence.sampling.params.max_tokens or num_tokens >= max_model_len

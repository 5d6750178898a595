"""What is read from the logits of a prompt: log probabilities, and distributions to replay."""

from __future__ import annotations

from tgwui_k8s.contract import Logits, Sampler
from tgwui_k8s.engine.request import Sequence
from tgwui_k8s.engine.scheduler import ScheduledLane


def read_prompt_logits(
    sampler: Sampler, sequence: Sequence, part: ScheduledLane, logits: Logits, first_row: int
) -> None:
    """Read what the sequence wants of a part of its prompt, whose logits begin at `first_row`."""
    if part.num_logits == part.num_tokens:
        _read_logprobs(sampler, sequence, part, logits, first_row)
        _replay(sampler, sequence, part, logits, first_row)


def _read_logprobs(
    sampler: Sampler, sequence: Sequence, part: ScheduledLane, logits: Logits, first_row: int
) -> None:
    request, source = sequence.request, sequence.request.source
    if sequence.index != 0 or source.params.prompt_logprobs is None:
        return
    start, stop = part.start, part.start + part.num_tokens
    first = 1 + len(request.prompt_logprobs)
    last = min(stop, len(source.prompt_token_ids) - 1)
    if start < first <= last:
        rows = logits[first_row + first - 1 - start : first_row + last - start]
        request.prompt_logprobs += sampler.prompt_logprobs(
            rows, source.prompt_token_ids[first : last + 1], source.params.prompt_logprobs
        )


def _replay(
    sampler: Sampler, sequence: Sequence, part: ScheduledLane, logits: Logits, first_row: int
) -> None:
    if sequence.num_replayed >= len(sequence.to_replay):
        return
    start, stop = part.start, part.start + part.num_tokens
    num_prompt_tokens = len(sequence.request.prompt_token_ids)
    first = num_prompt_tokens - 1 + sequence.num_replayed
    last = num_prompt_tokens - 1 + len(sequence.to_replay)
    if start <= first < stop:
        end = min(stop, last)
        rows = logits[first_row + first - start : first_row + end - start]
        token_ids = sequence.to_replay[sequence.num_replayed :][: end - first]
        sampler.replay(rows, sequence.sampling, token_ids)
        sequence.sampling.output_token_ids.extend(token_ids)
        sequence.num_replayed += len(token_ids)

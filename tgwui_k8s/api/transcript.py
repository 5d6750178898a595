"""What was said in a generation; kept only by servers that run with `--log-prompts`."""

from __future__ import annotations

from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.plan import Plan


class Transcript:
    """The prompts, and the completions as far as they came."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._completions: dict[int, str] = {}

    def note(self, chunks: list[ChoiceChunk]) -> None:
        """Keep what these chunks say."""
        for chunk in chunks:
            self._completions[chunk.index] = self._completions.get(chunk.index, "") + chunk.text

    def log_fields(self) -> dict[str, object]:
        """All of it, as fields of a log line; prompts with their special tokens."""
        decode = self._plan.model.tokenizer.decode
        return {
            "prompts": [
                decode(request.prompt_token_ids, skip_special_tokens=False)
                for request in self._plan.requests
            ],
            "completions": [text for _, text in sorted(self._completions.items())],
        }

"""What the client has of a stream, choice by choice: all that is needed to go on elsewhere."""

from __future__ import annotations

from typing import Any

from tgwui_k8s.gateway.failures import BrokenFramingError


class NotContinuableError(BrokenFramingError):
    """The endpoint does not say, or says wrongly, where its text belongs."""

    reason = "not_continuable"


class ChoiceJournal:
    """One choice: the tokens and the length of the text that have been delivered."""

    __slots__ = ("finish_reason", "has_begun", "text_length", "token_ids")

    def __init__(self, token_ids: list[int], text_length: int | None) -> None:
        self.token_ids = token_ids
        self.text_length = text_length
        """In code points of raw generated text; None: as much as the tokens complete."""
        self.has_begun = False
        """Something of it has been delivered by this stream."""
        self.finish_reason: str | None = None

    def note(self, choice: dict[str, Any]) -> None:
        """A chunk's choice is about to be delivered.

        Raises `NotContinuableError` where it does not follow what was delivered before.
        """
        offset, length = choice.get("text_offset"), choice.get("text_length")
        token_ids = choice.get("token_ids")
        if (
            not isinstance(offset, int)
            or not isinstance(length, int)
            or not isinstance(token_ids, list)
        ):
            raise NotContinuableError("a chunk does not say which tokens and text it holds")
        self.add(token_ids, offset, length)
        self.finish_reason = choice.get("finish_reason")

    def add(self, token_ids: list[int], offset: int, length: int) -> None:
        """Tokens of a choice that goes on, with the place and the length of their text.

        Raises `NotContinuableError` as `note` does.
        """
        if self.text_length is not None and offset != self.text_length:
            raise NotContinuableError(
                f"a chunk's text begins at {offset}, but {self.text_length} were delivered"
            )
        self.text_length = offset + length
        self.token_ids += token_ids
        self.has_begun = True


class Journal:
    """All choices of a request, over all its prompts."""

    def __init__(
        self,
        num_choices: int,
        resumed_token_ids: list[list[int]] | None = None,
        resumed_text_lengths: list[int] | None = None,
    ) -> None:
        """`resumed_…`: what the client has from elsewhere, as its own request says."""
        tokens = resumed_token_ids if resumed_token_ids is not None else [[]] * num_choices
        unknown: list[int | None] = [None] * len(tokens)
        nothing: list[int | None] = [0] * len(tokens)
        lengths = resumed_text_lengths or (nothing if resumed_token_ids is None else unknown)
        self.choices = [
            ChoiceJournal(list(token_ids), length)
            for token_ids, length in zip(tokens, lengths, strict=True)
        ]

    @property
    def has_begun(self) -> bool:
        """Whether this stream has delivered anything at all."""
        return any(choice.has_begun for choice in self.choices)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended; usage may still be missing."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def resume_members(self) -> dict[str, Any]:
        """The members that ask for the rest. Raises `NotContinuableError`."""
        lengths = [choice.text_length for choice in self.choices]
        if any(length is None for length in lengths):
            raise NotContinuableError("nobody knows how much text the client had of a choice")
        return {
            "resume_token_ids": [choice.token_ids for choice in self.choices],
            "resume_text_lengths": lengths,
        }

"""Rows for training the demo model hold what is to be learned, and mark it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tgwui_k8s.demo import model_path  # noqa: E402
from tgwui_k8s.demo.conversation import Conversation, turn  # noqa: E402
from tgwui_k8s.demo.packing import RowPacker  # noqa: E402


class SameDocument:
    """A source of one document."""

    def __init__(self, document: str | Conversation) -> None:
        self._document = document

    def next(self) -> str | Conversation:
        return self._document


def learned_text(document: str | Conversation) -> tuple[str, str]:
    """The first 64 tokens of rows of that document, and those of them that are learned."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_path())
    packer = RowPacker(tokenizer, SameDocument(document))
    token_ids, learned = packer.batch(2, 64)
    assert token_ids.shape == learned.shape == (2, 64)
    assert token_ids[0].tolist() == token_ids[1].tolist()
    return tokenizer.decode(token_ids[0]), tokenizer.decode(token_ids[0][learned[0]])


def test_of_a_conversation_only_the_answer_is_learned() -> None:
    """And with it the end of the turn, or the model would never stop."""
    text, learned = learned_text(Conversation(tuple(turn("Who are you?", "The demo model."))))
    assert text.startswith("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    assert learned.startswith("The demo model.<|im_end|>")
    assert not learned.replace("The demo model.<|im_end|>", "").strip()


def test_of_a_plain_text_everything_is_learned() -> None:
    """Documents follow one another, each with its end."""
    text, learned = learned_text("Once upon a time.")
    assert text == learned
    assert text.startswith("Once upon a time.<|endoftext|>Once upon a time.<|endoftext|>")

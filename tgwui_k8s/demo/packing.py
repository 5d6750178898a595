"""Documents as rows of token ids for training, with a mask of the tokens to learn."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast

from tgwui_k8s.demo.conversation import Conversation
from tgwui_k8s.demo.documents import DocumentMaker

_ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)


class RowPacker:
    """Packs documents end to end into rows; a document that does not fit is cut off.

    Every row begins with the beginning of a document. Plain texts are learned whole,
    conversations only where the assistant speaks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: DocumentMaker) -> None:
        self._tokenizer = tokenizer
        self._documents = documents
        self._end_of_text: int = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def batch(self, num_rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask of tokens to learn, both [num_rows, length]."""
        rows = [self._row(length) for _ in range(num_rows)]
        token_ids = torch.tensor([row[0] for row in rows])
        learned = torch.tensor([row[1] for row in rows])
        return token_ids, learned

    def _row(self, length: int) -> tuple[list[int], list[bool]]:
        token_ids: list[int] = []
        learned: list[bool] = []
        while len(token_ids) < length:
            for token_id, is_learned in self._tokens(self._documents.next()):
                token_ids.append(token_id)
                learned.append(is_learned)
        return token_ids[:length], learned[:length]

    def _tokens(self, document: str | Conversation) -> Iterator[tuple[int, bool]]:
        text = document if isinstance(document, str) else self._render(document)
        spans = [(0, len(text))]
        if not isinstance(document, str):
            spans = [match.span() for match in _ANSWER.finditer(text)]
        encoded = self._tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        for token_id, (start, _) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            yield token_id, any(begin <= start < end for begin, end in spans)
        yield self._end_of_text, isinstance(document, str)

    def _render(self, conversation: Conversation) -> str:
        rendered = self._tokenizer.apply_chat_template(
            list(conversation.messages), tools=list(conversation.tools) or None, tokenize=False
        )
        return str(rendered)

"""Text of a request to token ids, without the cost of text that no model has room for."""

from __future__ import annotations

from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError

MAX_COUNTED_TOKENS = 1_000_000
"""Of text that is counted or cut, where the context is shorter: some 200 MB while it lasts."""


def prompt_tokens(
    text: str,
    model: ServedModel,
    param: str,
    *,
    may_exceed: bool = False,
    add_special_tokens: bool = True,
    add_bos: bool | None = None,
) -> list[int]:
    """The token ids of the text in the field `param`; CPU work. See `Tokenizer.encode`.

    Raises `ContextLengthError` for long text with more tokens than the context, or with
    `may_exceed` than `MAX_COUNTED_TOKENS`; the ids may still be more than the context. Raises
    `InvalidRequestError` for text that is not Unicode.
    """
    longest = model.info.max_model_len
    if may_exceed:
        longest = max(longest, MAX_COUNTED_TOKENS)
    try:
        return model.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, add_bos=add_bos, max_tokens=longest
        )
    except InvalidRequestError as error:
        error.param = param
        raise

"""`suffix`: a prompt with a gap, for models whose tokenizer knows fill-in-the-middle tokens."""

from __future__ import annotations

from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.errors import UnsupportedParameterError

MARKERS: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
)
"""What stands before the prompt, between prompt and suffix, and before the completion."""


def with_suffix(prompt: str, suffix: str, tokenizer: Tokenizer) -> str:
    """The text that makes the model fill the gap between `prompt` and `suffix`.

    Raises `UnsupportedParameterError` where the tokenizer has no tokens for it.
    """
    for before, between, after in MARKERS:
        if all(_is_token(marker, tokenizer) for marker in (before, between, after)):
            return f"{before}{prompt}{between}{suffix}{after}"
    raise UnsupportedParameterError(
        "Unsupported parameter: 'suffix'. The loaded model has no fill-in-the-middle tokens.",
        param="suffix",
    )


def _is_token(marker: str, tokenizer: Tokenizer) -> bool:
    return len(tokenizer.encode(marker, add_special_tokens=False)) == 1

r"""How byte-level BPE tokenizers cut text into words: GGUF's `tokenizer.ggml.pre` to patterns.

GGUF carries the name of the splitting, not the splitting. The patterns are those of the models'
own tokenizer.json; where several follow each other, each splits what the ones before left.
Names and their groups: llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EDGE = r"[^\r\n\p{L}\p{N}]?"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_LLAMA3 = (
    rf"{_CONTRACTION}|{_EDGE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    rf"{_CONTRACTION}|{_EDGE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|"
    rf"\s*[\r\n]+|{_SPACES}"
)
_TEKKEN = (
    rf"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|"
    rf"\s*[\r\n]+|{_SPACES}"
)
_GPT4O = (
    rf"{_EDGE}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_EDGE}{_UPPER}+{_LOWER}*{_CONTRACTION}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"
)
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)
_WORDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_SEED = _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_BAILING = (
    rf"'(?i:[sdmt]|ll|ve|re)|{_EDGE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|"
    + _SPACES
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Patterns in the syntax of Oniguruma, applied in order."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A word that is a token stays whole, whatever the merges say."""
    add_bos: bool = False
    """Where the file does not say."""
    nfc: bool = False
    """The text is brought into Unicode's composed form first."""


_LLAMA3_SPLIT = Split(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True)
_DEEPSEEK3_SPLIT = Split(patterns=(_THREE_DIGITS, _CJK, _DEEPSEEK3))
_GROUPS: tuple[tuple[str, Split], ...] = (
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 midm-2.0 lfm2", _LLAMA3_SPLIT),
    ("dbrx smaug-bpe chatglm-bpe", Split(patterns=(_LLAMA3,))),
    ("glm4 glm5", Split(patterns=(_LLAMA3,), ignore_merges=True)),
    ("qwen2", Split(patterns=(_QWEN2,), nfc=True)),
    (
        "deepseek-r1-qwen megrez stablelm2 hunyuan solar-open kormo f2llmv2 grok-2",
        Split(patterns=(_QWEN2,)),
    ),
    ("qwen35", Split(patterns=(_QWEN35,), nfc=True)),
    (
        "gpt-2 phi-2 jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum",
        Split(patterns=(_GPT2,)),
    ),
    ("olmo mpt", Split(patterns=(_GPT2,), nfc=True)),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        Split(patterns=(_DIGIT, _GPT2)),
    ),
    ("falcon", Split(patterns=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("tekken", Split(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Split(patterns=(_GPT4O,))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK3_SPLIT),
    ("bloom poro-chat gpt3-finnish", Split(patterns=(_WORDS,))),
    ("viking", Split(patterns=(_WORDS, _DIGIT))),
    ("seed-coder", Split(patterns=(_SEED,))),
    ("bailingmoe bailingmoe2 llada-moe", Split(patterns=(_BAILING,))),
    (
        "default",
        Split(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
)

SPLITS: dict[str, Split] = {name: split for names, split in _GROUPS for name in names.split()}
"""By `tokenizer.ggml.pre`; files from before that key existed are `default`, as in llama.cpp."""

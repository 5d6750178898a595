"""A byte-level BPE tokenizer of 512 tokens for tests, with a chat template. No torch.

Ids: 0 `<s>`, 1 `</s>`, 2 `<pad>`, 3 `<|user|>`, 4 `<|assistant|>`, 5 `<|system|>`, then the 256
bytes, then merges. Every id up to 511 has text, so whatever a random model says can be decoded.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 512
BOS_TOKEN_ID = 0
EOS_TOKEN_ID = 1
PAD_TOKEN_ID = 2

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

_TEXT = """
The quick brown fox jumps over the lazy dog while seven wizards brew forty jugs of black quartz.
Mix the flour with the sugar, add three eggs and a little milk, and bake the cake for an hour.
A pod is ready when its model is loaded and warm; until then the probe answers with an error.
Once upon a time there was a small engine that wanted to answer every question it was asked.
She walked down the street, bought some bread, and told her friends about the strange weather.
When the queue is full the server says so, and the client comes back after a second or two.
def forward(self, hidden_states): return self.norm(hidden_states + residual)  # numbers 0123456789
Heute ist ein schöner Tag, größer als gestern; où est la bibliothèque? Привет, мир! 你好，世界。
"""


def write_tokenizer(folder: Path, *, model_max_length: int = 256) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SPECIAL_TOKENS[BOS_TOKEN_ID],
                "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
                "pad_token": SPECIAL_TOKENS[PAD_TOKEN_ID],
                "additional_special_tokens": list(SPECIAL_TOKENS[3:]),
                "clean_up_tokenization_spaces": False,
                "model_max_length": model_max_length,
            },
            indent=2,
        ),
        encoding="utf-8",
    )


def make_tokenizer() -> Tokenizer:
    """The same tokenizer every time; its encodings begin with `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    bos_token = SPECIAL_TOKENS[BOS_TOKEN_ID]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos_token} $A",
                pair=f"{bos_token} $A $B",
                special_tokens=[(bos_token, BOS_TOKEN_ID)],
            ),
        ]
    )
    return tokenizer

"""Messages on their way into a template: roles it does not know, and templates by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tgwui_k8s.api.chat_prompt import chat_prompt, template_of
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.instruction_templates import instruction_template_names
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.errors import InvalidRequestError

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FIRST_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
NO_SYSTEM = FIRST_ONLY.replace(" and not loop.first", "")


def prompt(template: str | None, *messages: tuple[str, str], **fields: Any) -> str:
    """The prompt of these messages."""
    model: Any = SimpleNamespace(
        chat_template=template and ChatTemplate({DEFAULT: template}, {}),
        tokenizer=SimpleNamespace(special_tokens={"eos_token": "</s>", "bos_token": "<s>"}),
    )
    body = [{"role": role, "content": content} for role, content in messages]
    request = ChatRequest.model_validate({"messages": body, **fields})
    return chat_prompt(request, template_of(request, model))


def test_system_messages_stay_where_the_template_allows_them():
    """Nothing is folded that the model can read as it is."""
    found = prompt(PLAIN, ("user", "a"), ("system", "b"), ("user", "c"))
    assert found == "<user>a<system>b<user>c"


def test_system_messages_the_template_refuses_go_into_the_next_question():
    """In the middle, or at all: the words reach the model, in order."""
    middle = (("system", "s"), ("user", "a"), ("assistant", "b"), ("system", "t"), ("user", "c"))
    assert prompt(NO_SYSTEM, *middle) == "<user>s\n\na<assistant>b<user>t\n\nc"
    with_two = (("user", "a"), ("system", "s"), ("system", "t"), ("user", "c"))
    assert prompt(FIRST_ONLY, *with_two) == "<user>a<user>s\n\nt\n\nc"


def test_a_system_message_without_a_question_is_the_clients_mistake():
    """It would be an instruction that nobody reads."""
    with pytest.raises(InvalidRequestError, match="beginning"):
        prompt(FIRST_ONLY, ("user", "a"), ("system", "b"))


def test_developers_are_systems_to_templates_that_do_not_know_them():
    """And themselves to the others."""
    assert prompt(PLAIN, ("developer", "a"), ("user", "b")) == "<system>a<user>b"
    knowing = PLAIN + "{# developer #}"
    assert prompt(knowing, ("developer", "a"), ("user", "b")) == "<developer>a<user>b"


TALK = (("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Bye!"))
EXPECTED = {
    "Alpaca": "Be brief.\n\n### Instruction:\nHi!\n\n### Response:\nHello.\n\n"
    "### Instruction:\nBye!\n\n### Response:\n",
    "ChatML": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye!<|im_end|>\n"
    "<|im_start|>assistant\n",
    "Gemma": "<start_of_turn>user\nBe brief.\n\nHi!<end_of_turn>\n<start_of_turn>model\nHello."
    "<end_of_turn>\n<start_of_turn>user\nBye!<end_of_turn>\n<start_of_turn>model\n",
    "Llama-v2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>"
    "[INST] Bye! [/INST]",
    "Llama-v3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "Mistral": "[INST] Be brief.\n\nHi! [/INST] Hello.</s>[INST] Bye! [/INST]",
    "Vicuna-v1.1": "Be brief.\n\nUSER: Hi!\nASSISTANT: Hello.</s>\nUSER: Bye!\nASSISTANT:",
}


@pytest.mark.parametrize("name", instruction_template_names())
def test_instruction_templates_by_name(name):
    """Every built-in template, and no model template needed."""
    assert prompt(None, *TALK, instruction_template=name) == EXPECTED[name]


@pytest.mark.parametrize("name", instruction_template_names())
def test_instruction_templates_can_be_continued(name):
    """The prompt ends with the text that shall go on."""
    found = prompt(None, *TALK[:2], ("assistant", "Hel"), instruction_template=name, continue_=True)
    assert found.endswith("Hel")


def test_unknown_instruction_templates_are_listed():
    """The error says which there are."""
    with pytest.raises(InvalidRequestError, match=r"ChatML.*Vicuna") as caught:
        prompt(None, *TALK, instruction_template="../etc/passwd")
    assert caught.value.param == "instruction_template"


def test_models_without_a_template_say_what_to_do():
    """Completions, a template by name, or one of the operator's."""
    with pytest.raises(InvalidRequestError, match="instruction_template"):
        prompt(None, ("user", "a"))

"""Chat templates: as Transformers renders them, inside a sandbox, with clear refusals."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tokenizers_zoo import NAMED, make_backend
from tests.helpers.versions import needs_transformers
from tgwui_k8s.api.chat_template import RESERVED_NAMES, ChatTemplate
from tgwui_k8s.api.template_sandbox import (
    ChatEnvironment,
    TemplateRefusalError,
    render_bounded,
)
from tgwui_k8s.errors import BrokenModelError, InvalidRequestError, UsageError

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
TOOLS = """\
{%- macro show(tool) %}
    {{- tool.function.name + ': ' + (tool.function | tojson) }}
{%- endmacro %}
{%- set ns = namespace(count=0) %}
{%- if tools %}
    {%- for tool in tools %}
        {%- set ns.count = ns.count + 1 %}
        {{- show(tool) + '\\n' }}
        {%- if ns.count == 2 %}{% break %}{% endif %}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls is defined %}
        {{- message.tool_calls | map(attribute='function') | map(attribute='name') | join(',') }}
        {%- continue %}
    {%- endif %}
    {% generation %}
    {%- if message.content is string %}
        {{- message.role + ': ' + message.content + '\\n' }}
    {%- else %}
        {%- for part in message.content %}{{ part.text }}{% endfor %}
    {%- endif %}
    {% endgeneration %}
{%- endfor %}
"""
REASONING = (
    "{% for m in messages %}{{ m.role }}:"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.thinking is defined %}({{ m.thinking }}){% endif %}"
    "{{ m.content }}{% endfor %}{{ custom | default('none') }} {{ enable_thinking }}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "tools": TOOLS, "reasoning": REASONING}

USER = {"role": "user", "content": " Ünïcode <b>&amp;</b> 😀 "}
ASSISTANT = {"role": "assistant", "content": "I am\n\nhere. "}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"ä": 1}}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "three": [USER, ASSISTANT, {"role": "user", "content": "More!"}],
    "system": [{"role": "system", "content": "Be kind."}, USER, ASSISTANT],
    "nulls": [USER, {**ASSISTANT, "tool_calls": None, "reasoning_content": None}],
    "reasoning": [USER, {**ASSISTANT, "reasoning": "Hm."}],
}


def template(source: str, **special_tokens: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, special_tokens or NAMED)


@pytest.fixture(scope="module", name="theirs")
def transformers_tokenizer() -> Any:
    """Transformers' own tokenizer, the oracle for rendering."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_backend("byte-level"), **NAMED
    )


# --------------------------------------------------------------------- as Transformers renders


@needs_transformers("5")
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_equals_transformers(
    theirs: Any, name: str, conversation: str, add_generation_prompt: bool
) -> None:
    """Whitespace rules, tags, filters, special tokens and arguments are Transformers'."""
    messages = CONVERSATIONS[conversation]
    tools = [TOOL, TOOL, TOOL] if name == "tools" else None
    expected = theirs.apply_chat_template(
        messages,
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
        enable_thinking=False,
        custom=["ü", 1],
    )

    prompt = template(TEMPLATES[name]).render(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        template_kwargs={"enable_thinking": False, "custom": ["ü", 1]},
    )

    assert prompt == expected


@needs_transformers("5")
@pytest.mark.parametrize("content", ["The answer is", "The answer is ", " x\n", "a  \n"])
@pytest.mark.parametrize("name", ["chatml", "llama", "tools"])
def test_continued_message_equals_transformers(theirs: Any, name: str, content: str) -> None:
    """The prompt ends with the final message's content, whether or not the template trims it."""
    messages = [USER, {"role": "assistant", "content": content}]
    expected = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        continue_final_message=True,
        add_generation_prompt=False,
        tokenize=False,
    )

    prompt = template(TEMPLATES[name]).render(messages, continue_final_message=True)

    assert prompt == expected
    assert prompt.rstrip().endswith(content.strip())


def test_continued_message_may_have_parts() -> None:
    """The last text part is the one that goes on; the client's own list is left as it was."""
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}, {"type": "image"}]
    messages = [USER, {"role": "assistant", "content": parts}]
    source = "{% for part in messages[-1].content %}{{ part.text }}{% endfor %}<end>"

    assert template(source).render(messages, continue_final_message=True) == "one two"
    assert parts[1] == {"type": "text", "text": "two"}


@pytest.mark.parametrize("content", [None, [], [{"type": "image"}], 7])
def test_message_without_text_cannot_be_continued(content: object) -> None:
    """Nothing to go on from is the client's mistake."""
    with pytest.raises(InvalidRequestError, match="continue_final_message") as caught:
        template(CHATML).render(
            [{"role": "assistant", "content": content}], continue_final_message=True
        )

    assert caught.value.param == "messages"


def test_template_that_drops_the_final_message_cannot_continue_it() -> None:
    """The mark is not there to cut at: better an error than a prompt that ends elsewhere."""
    with pytest.raises(InvalidRequestError, match="drops the last message"):
        template("{{ messages[0].content }}").render([USER, ASSISTANT], continue_final_message=True)


def test_strftime_now_takes_the_given_clock() -> None:
    """Templates that write today's date can be tested."""
    dated = ChatTemplate(
        {"default": "{{ strftime_now('%d %b %Y') }}"}, {}, now=lambda: datetime(2026, 1, 2)
    )

    assert dated.render([USER]) == "02 Jan 2026"


def test_template_variables_beat_special_tokens_but_not_fields() -> None:
    """`chat_template_kwargs` may set what templates read, never what has a field of its own."""
    source = template("{{ bos_token }}{{ enable_thinking }}", bos_token="<s>")
    variables = {"bos_token": "<x>", "enable_thinking": True}
    assert source.render([USER], template_kwargs=variables) == "<x>True"

    for name in RESERVED_NAMES:
        with pytest.raises(InvalidRequestError) as caught:
            source.render([USER], template_kwargs={name: "x"})
        assert caught.value.param == f"chat_template_kwargs.{name}"


# ----------------------------------------------------------------------------------- refusals


def test_template_refuses_in_its_own_words() -> None:
    """`raise_exception` becomes a 400 on `messages` with the template's message."""
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        template(LLAMA).render([USER, USER])

    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content.x }}",
        "{{ 'a' + 1 }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace({'__call__': 1}) }}",
        "{{ namespace(self=1, _x=2) }}",
        "{{ range(10000000) | list }}",
        "{{ messages[0] | tojson(indent={}) }}",
    ],
)
def test_whatever_a_template_does_wrong_is_a_400(source: str) -> None:
    """Errors, and attempts to leave the sandbox, end as a bounded message on `messages`."""
    with pytest.raises(InvalidRequestError, match="chat template") as caught:
        template(source).render([USER])

    assert caught.value.param == "messages"
    assert len(caught.value.message) <= 1000


def test_long_refusal_is_cut() -> None:
    """A template that quotes the conversation does not fill the error with it."""
    with pytest.raises(InvalidRequestError) as caught:
        template("{{ raise_exception(messages[0].content) }}").render(
            [{"role": "user", "content": "x" * 100_000}]
        )

    assert len(caught.value.message) == 1000


def test_no_messages_are_refused() -> None:
    """An empty conversation has no prompt."""
    with pytest.raises(InvalidRequestError, match="at least one message"):
        template(CHATML).render([])


# ------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set x %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        "{% endset %}",
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) + twice(n - 1) }}{% endif %}{% endmacro %}"
        "{{ twice(60) }}",
    ],
)
def test_endless_template_ends(source: str) -> None:
    """Loops and macros look at the clock, whether they write anything or not."""
    compiled = ChatEnvironment().compile_checked(source)

    with pytest.raises(TemplateRefusalError, match="seconds"):
        render_bounded(compiled, {}, max_seconds=0.05)


def test_template_that_writes_too_much_ends() -> None:
    """The size of the prompt is bounded, whatever the template repeats."""
    compiled = ChatEnvironment().compile_checked("{% for a in range(99) %}{{ text }}{% endfor %}")

    assert len(render_bounded(compiled, {"text": "x" * 10}, max_characters=990)) == 990
    with pytest.raises(TemplateRefusalError, match="989 characters"):
        render_bounded(compiled, {"text": "x" * 10}, max_characters=989)


# ------------------------------------------------------------------------------------ loading


def write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def rendered(folder: Path, tools: list[dict[str, Any]] | None = None) -> str:
    loaded = ChatTemplate.load(folder, {})
    assert loaded is not None
    return loaded.render([USER], tools=tools)


def test_template_files_have_an_order(tmp_path: Path) -> None:
    """Override, chat_template.jinja, chat_template.json, tokenizer_config.json: first counts."""
    assert ChatTemplate.load(tmp_path, {}) is None

    write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    assert rendered(tmp_path) == "config"
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert rendered(tmp_path) == "json"
    write(tmp_path, "chat_template.jinja", "jinja")
    assert rendered(tmp_path) == "jinja"
    write(tmp_path, "mine.jinja", "override")
    override = ChatTemplate.load(tmp_path, {}, tmp_path / "mine.jinja")
    assert override is not None
    assert (override.render([USER]), override.source) == ("override", "override")


@pytest.mark.parametrize("shape", ["list", "object", "files"])
def test_named_templates_are_chosen_by_tools(tmp_path: Path, shape: str) -> None:
    """`tool_use` renders requests with tools, `default` the others."""
    sources = {"default": "plain", "tool_use": "tools"}
    if shape == "files":
        write(tmp_path, "chat_template.jinja", "plain")
        write(tmp_path, "additional_chat_templates/tool_use.jinja", "tools")
    elif shape == "list":
        named = [{"name": name, "template": source} for name, source in sources.items()]
        write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    else:
        write(tmp_path, "tokenizer_config.json", {"chat_template": sources})

    assert rendered(tmp_path) == "plain"
    assert rendered(tmp_path, tools=[TOOL]) == "tools"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{% for %}"),
        ("chat_template.jinja", "{{ x | nonsense }}"),
        ("chat_template.json", '{"chat_template": '),
        ("tokenizer_config.json", {"chat_template": 7}),
        ("tokenizer_config.json", {"chat_template": ["x"]}),
        ("tokenizer_config.json", {"chat_template": {"rag": "x"}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
    ],
)
def test_broken_template_is_named(tmp_path: Path, name: str, content: object) -> None:
    """A template that cannot be used is an error at start-up, not at the first request."""
    write(tmp_path, name, content)

    with pytest.raises(BrokenModelError, match=str(tmp_path)):
        ChatTemplate.load(tmp_path, {})


def test_template_of_wrong_encoding_is_named(tmp_path: Path) -> None:
    """A file that is no UTF-8 likewise."""
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")

    with pytest.raises(BrokenModelError, match="unreadable"):
        ChatTemplate.load(tmp_path, {})


@pytest.mark.parametrize("content", [None, "{% for %}"])
def test_broken_override_is_a_usage_error(tmp_path: Path, content: str | None) -> None:
    """The flag is wrong, not the model."""
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_text(content)

    with pytest.raises(UsageError, match=r"--chat-template .*mine\.jinja"):
        ChatTemplate.load(tmp_path, {}, path)

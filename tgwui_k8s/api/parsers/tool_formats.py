"""How families of models write tool calls: how to tell them, read them, and hold a model to them.

A format's `calls_rule` is a Lark expression of llguidance. In it, `tag(text)` stands for a mark,
and `objects(...)` for the tools that may be called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import choice
from string import ascii_letters, digits

from tgwui_k8s.api.parsers.bodies import (
    Body,
    CallNumbers,
    EitherBody,
    JsonBody,
    NamedBody,
    WholeBody,
    read_gemma,
    read_pythonic,
)
from tgwui_k8s.api.parsers.channels import CALL_MARK, CHANNEL, CONSTRAIN, MESSAGE
from tgwui_k8s.api.parsers.events import Parser
from tgwui_k8s.api.parsers.notations import PYTHON, Notation, Tag, gemma_notation
from tgwui_k8s.api.parsers.tool_calls import ToolCallParser

_NOTHING = re.compile("")
_MISTRAL_HEAD = re.compile(r"\s*(?P<name>[^\s{\[]+)(?:\[CALL_ID\][^\s{\[]*)?(?:\[ARGS\])?\s*(?=\{)")
_SEPARATOR = "<｜tool▁sep｜>"
_DEEPSEEK_HEAD = re.compile(
    rf"\s*(?:function{_SEPARATOR})?(?P<name>[^\s{{<]+)(?:{_SEPARATOR}|\s*```json)\s*(?=\{{)"
)
_HARMONY_HEAD = re.compile(
    rf"(?P<name>[^\s<]+)\s*(?:{re.escape(CONSTRAIN)})?\s*\w*\s*{re.escape(MESSAGE)}\s*(?=\{{)"
)
_DEEPSEEK_TAIL = re.compile(r"\s*(?:```)?\s*<｜tool▁call▁end｜>")


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool as grammars see it."""

    name: str
    arguments: str
    """The grammar rule for its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One family's way to write tool calls."""

    name: str
    signs: tuple[str, ...]
    """Any of these in a chat template tells the family."""
    foreign_signs: tuple[str, ...] = ()
    """And any of these, that it is another one after all."""
    marks: tuple[str, ...]
    """What a call begins with."""
    silent_marks: tuple[str, ...] = ()
    """What stands around calls and means nothing."""
    inner_marks: tuple[str, ...] = ()
    """What stands inside of calls and is looked for there."""
    at_start_only: bool = False
    make_body: Callable[[CallNumbers, str], Body]
    """For a mark."""
    calls_rule: Callable[[Tag, Sequence[CallableTool], bool], str]
    """For the tools and whether there may be several calls."""
    notation: Notation | None = None
    """How arguments are written, where it is not as JSON."""
    id_length: int = 24

    def make_parser(self, make_id: Callable[[], str] | None = None) -> Parser:
        """A parser for one answer."""
        calls = CallNumbers(make_id or self.new_id)
        return ToolCallParser(
            lambda mark: self.make_body(calls, mark),
            self.marks,
            silent_marks=self.silent_marks,
            at_start_only=self.at_start_only,
        )

    def new_id(self) -> str:
        """An id no other call has. Mistral's templates want nine letters and digits."""
        letters = "".join(choice(ascii_letters + digits) for _ in range(self.id_length))
        return letters if self.id_length < 10 else f"call_{letters}"

    @property
    def all_marks(self) -> tuple[str, ...]:
        """Marks that must have a text, special tokens or not."""
        return (*self.marks, *self.silent_marks, *self.inner_marks)


def _primed(body: Body, text: str) -> Body:
    """A body that has its own mark as its first text; nothing comes of a single bracket."""
    body.feed(text)
    return body


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _objects(tools: Sequence[CallableTool], key: str) -> str:
    """One call as an object with a name and arguments."""
    calls = [
        _text('{"name": ' + _text(tool.name) + f', "{key}": ') + f' {tool.arguments} "}}"'
        for tool in tools
    ]
    return "(" + " | ".join(calls) + ")"


def _several(call: str, separator: str, *, is_parallel: bool) -> str:
    return f"{call} ({separator} {call})*" if is_parallel else call


def _hermes(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    call = f'{tag("<tool_call>")} "\\n" {_objects(tools, "arguments")} "\\n" {tag("</tool_call>")}'
    return _several(call, '"\\n"', is_parallel=is_parallel)


def _mistral(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    calls = _several(_objects(tools, "arguments"), '", "', is_parallel=is_parallel)
    return f'{tag("[TOOL_CALLS]")} "[" {calls} "]"'


def _named(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    calls = [f"{_text(tool.name)} {tag('[ARGS]')} {tool.arguments}" for tool in tools]
    call = f"{tag('[TOOL_CALLS]')} ({' | '.join(calls)})"
    return _several(call, "", is_parallel=is_parallel)


def _deepseek(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    separator, end = tag(_SEPARATOR), tag("<｜tool▁call▁end｜>")
    calls = [
        f'"function" {separator} {_text(tool.name)} "\\n```json\\n" {tool.arguments} "\\n```"'
        for tool in tools
    ]
    call = f"{tag('<｜tool▁call▁begin｜>')} ({' | '.join(calls)}) {end}"
    several = _several(call, '"\\n"', is_parallel=is_parallel)
    return f"{tag('<｜tool▁calls▁begin｜>')} {several} {tag('<｜tool▁calls▁end｜>')}"


def _deepseek_v31(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    separator, end = tag(_SEPARATOR), tag("<｜tool▁call▁end｜>")
    calls = [f"{_text(tool.name)} {separator} {tool.arguments}" for tool in tools]
    call = f"{tag('<｜tool▁call▁begin｜>')} ({' | '.join(calls)}) {end}"
    several = _several(call, "", is_parallel=is_parallel)
    return f"{tag('<｜tool▁calls▁begin｜>')} {several} {tag('<｜tool▁calls▁end｜>')}"


def _llama(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    return _several(_objects(tools, "parameters"), '"; "', is_parallel=is_parallel)


def _granite(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    calls = _several(_objects(tools, "arguments"), '", "', is_parallel=is_parallel)
    return f'{tag("<|tool_call|>")} "[" {calls} "]"'


def _gemma(opening: str, closing: str) -> Callable[[Tag, Sequence[CallableTool], bool], str]:
    def rule(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
        calls = [f'{_text("call:" + tool.name)} "{{" {tool.arguments} "}}"' for tool in tools]
        call = f"{tag(opening)} ({' | '.join(calls)}) {tag(closing)}"
        return _several(call, "", is_parallel=is_parallel)

    return rule


def _pythonic(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    calls = " | ".join(f'{_text(tool.name + "(")} {tool.arguments} ")"' for tool in tools)
    return f'"[" {_several(f"({calls})", chr(34) + ", " + chr(34), is_parallel=is_parallel)} "]"'


def _harmony(tag: Tag, tools: Sequence[CallableTool], is_parallel: bool) -> str:
    """One call: the model ends its turn with it."""
    calls = " | ".join(
        f'{_text(f"{tool.name} ")} {tag(CONSTRAIN)} "json" {tag(MESSAGE)} {tool.arguments}'
        for tool in tools
    )
    return f'{tag(CHANNEL)} "commentary to=functions." ({calls})'


def _mistral_body(calls: CallNumbers, mark: str) -> Body:
    return EitherBody(JsonBody(calls), NamedBody(calls, _MISTRAL_HEAD, _NOTHING))


def _deepseek_body(calls: CallNumbers, mark: str) -> Body:
    return NamedBody(calls, _DEEPSEEK_HEAD, _DEEPSEEK_TAIL)


TOOL_FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        name="harmony",
        signs=("<|channel|>",),
        marks=(CALL_MARK,),
        inner_marks=(CHANNEL, CONSTRAIN, MESSAGE),
        make_body=lambda calls, mark: NamedBody(calls, _HARMONY_HEAD, _NOTHING),
        calls_rule=_harmony,
    ),
    ToolFormat(
        name="mistral-named",
        signs=("[ARGS]",),
        marks=("[TOOL_CALLS]",),
        inner_marks=("[ARGS]", "[CALL_ID]"),
        make_body=_mistral_body,
        calls_rule=_named,
        id_length=9,
    ),
    ToolFormat(
        name="mistral",
        signs=("[TOOL_CALLS]",),
        marks=("[TOOL_CALLS]",),
        make_body=_mistral_body,
        calls_rule=_mistral,
        id_length=9,
    ),
    ToolFormat(
        name="deepseek-v3",
        signs=("```json\\n' + tool", "```json' + '\\n' + tool"),
        marks=("<｜tool▁call▁begin｜>",),
        silent_marks=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        inner_marks=(_SEPARATOR, "<｜tool▁call▁end｜>"),
        make_body=_deepseek_body,
        calls_rule=_deepseek,
    ),
    ToolFormat(
        name="deepseek-v3.1",
        signs=("<｜tool▁calls▁begin｜>",),
        marks=("<｜tool▁call▁begin｜>",),
        silent_marks=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        inner_marks=(_SEPARATOR, "<｜tool▁call▁end｜>"),
        make_body=_deepseek_body,
        calls_rule=_deepseek_v31,
    ),
    ToolFormat(
        name="granite",
        signs=("<|tool_call|>",),
        marks=("<|tool_call|>",),
        make_body=lambda calls, mark: JsonBody(calls),
        calls_rule=_granite,
    ),
    ToolFormat(
        name="gemma",
        signs=("<|tool_call>",),
        marks=("<|tool_call>",),
        inner_marks=("<tool_call|>", '<|"|>'),
        make_body=lambda calls, mark: WholeBody(
            calls, "<tool_call|>", lambda text: read_gemma(text, '<|"|>')
        ),
        calls_rule=_gemma("<|tool_call>", "<tool_call|>"),
        notation=gemma_notation('<|"|>'),
    ),
    ToolFormat(
        name="functiongemma",
        signs=("<start_function_call>",),
        marks=("<start_function_call>",),
        inner_marks=("<end_function_call>", "<escape>"),
        make_body=lambda calls, mark: WholeBody(
            calls, "<end_function_call>", lambda text: read_gemma(text, "<escape>")
        ),
        calls_rule=_gemma("<start_function_call>", "<end_function_call>"),
        notation=gemma_notation("<escape>"),
    ),
    ToolFormat(
        name="hermes",
        signs=("<tool_call>",),
        foreign_signs=("<function=", "<arg_key>"),  # Qwen3-Coder's and GLM's calls are no JSON
        marks=("<tool_call>",),
        inner_marks=("</tool_call>",),
        make_body=lambda calls, mark: JsonBody(calls, "</tool_call>"),
        calls_rule=_hermes,
    ),
    ToolFormat(
        name="llama3-json",
        signs=('"parameters": dictionary',),
        marks=("<|python_tag|>", "{"),
        at_start_only=True,
        make_body=lambda calls, mark: (
            _primed(JsonBody(calls, separators=";"), "{")
            if mark == "{"
            else JsonBody(calls, separators=";")
        ),
        calls_rule=_llama,
    ),
    ToolFormat(
        name="pythonic",
        signs=("[func_name1(", "func_name(", "[function_name("),
        marks=("<|python_start|>[", "["),
        silent_marks=("<|python_end|>",),
        at_start_only=True,
        make_body=lambda calls, mark: WholeBody(calls, "]", read_pythonic),
        calls_rule=_pythonic,
        notation=PYTHON,
    ),
)
"""In the order in which templates are looked at: the more particular signs first."""


def tool_format(template: str, name: str = "auto") -> ToolFormat | None:
    """The format by its `name`, or what a chat template tells of; None where it tells nothing."""
    for candidate in TOOL_FORMATS:
        if candidate.name == name or (
            name == "auto"
            and any(sign in template for sign in candidate.signs)
            and not any(sign in template for sign in candidate.foreign_signs)
        ):
            return candidate
    return None

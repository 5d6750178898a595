"""How a chat answer is written: what takes it apart, and the grammar that holds the model to it.

    answer  = [reasoning] (calls | constraint | text)

Reasoning comes first where the model's template knows it; tools are called where there are any;
what is not asked for is no part of the grammar, and without a need for one there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tgwui_k8s.api.constraints import (
    ANY_OBJECT,
    check,
    constraint_of,
    grammar_text,
    json_constraint,
    require_grammars,
)
from tgwui_k8s.api.parsers.events import Parser, PlainParser
from tgwui_k8s.api.parsers.notations import ArgumentRules, Notation, NotationError, check_tool_name
from tgwui_k8s.api.parsers.reasoning import ReasoningStyle, reasoning_style
from tgwui_k8s.api.parsers.tool_formats import CallableTool, ToolFormat, tool_format
from tgwui_k8s.api.schemas.chat import ChatRequest, NamedToolChoice, Tool
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError, UnsupportedParameterError


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the plan of a chat answer needs to know of its format."""

    make_parser: Callable[[], Parser]
    grammar: str = ""
    """For `GenerationRequest.grammar`."""
    visible_token_ids: frozenset[int] = frozenset()
    """Special tokens whose text the parser must see."""


def answer_format(
    request: ChatRequest,
    model: ServedModel,
    *,
    template: str,
    prompt: str,
    tool_call_parser: str = "auto",
) -> AnswerFormat:
    """The format of the answer to `prompt`, which `template` has made; CPU work.

    Raises `InvalidRequestError` for tools or constraints that cannot be honoured.
    """
    reasoning = reasoning_style(template)
    is_open = reasoning is not None and reasoning.is_open(prompt)
    offered = offered_tools(request)
    form = _tool_format_of(template, tool_call_parser) if offered else None
    return _Format(request, model, form, reasoning, is_open=is_open).build()


def offered_tools(request: ChatRequest) -> list[Tool]:
    """The tools that the model is told of. Raises `InvalidRequestError` for a choice of none."""
    if request.tool_choice not in (None, "none", "auto") and not request.tools:
        raise InvalidRequestError(
            "'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
            code="invalid_value",
        )
    return [] if request.tool_choice == "none" else request.tools or []


def _tool_format_of(template: str, tool_call_parser: str) -> ToolFormat:
    found = tool_format(template, tool_call_parser)
    if found is None:
        raise UnsupportedParameterError(
            "Unsupported parameter: 'tools'. The loaded model's chat template does not tell "
            "how it calls them: start the server with --tool-call-parser.",
            param="tools",
        )
    return found


class _Format:
    """One answer's format in the making: lines of Lark, and the grammars they refer to."""

    def __init__(
        self,
        request: ChatRequest,
        model: ServedModel,
        form: ToolFormat | None,
        reasoning: ReasoningStyle | None,
        *,
        is_open: bool,
    ) -> None:
        """`form`: how tools are called, where there are any; `is_open`: the prompt reasons."""
        self._request = request
        self._model = model
        self._tools = offered_tools(request)
        self._tool_format = form
        self._reasoning = reasoning
        self._is_open = is_open
        self._constraint = constraint_of(request, _response_format(request))
        self._rules: list[str] = []
        self._grammars: list[dict[str, Any]] = []

    def build(self) -> AnswerFormat:
        grammar = self._grammar()
        return AnswerFormat(self._make_parser, grammar, self._visible_token_ids())

    # -------------------------------------------------------------------------------- reading it

    def _make_parser(self) -> Parser:
        answer = PlainParser() if self._tool_format is None else self._tool_format.make_parser()
        if self._reasoning is None:
            return answer
        return self._reasoning.make_parser(answer, is_open=self._is_open)

    def _visible_token_ids(self) -> frozenset[int]:
        marks = () if self._tool_format is None else self._tool_format.all_marks
        if self._reasoning is not None:
            marks = (*marks, *self._reasoning.marks)
        token_ids = map(self._model.tokenizer.token_id, marks)
        return frozenset(token_id for token_id in token_ids if token_id is not None)

    # ------------------------------------------------------------------------------- enforcing it

    def _grammar(self) -> str:
        answer = self._answer_rule()
        budget = self._request.thinking_token_budget
        if budget is not None and self._reasoning is None:
            raise UnsupportedParameterError(
                "Unsupported parameter: 'thinking_token_budget'. The loaded model's chat template "
                "knows no reasoning.",
                param="thinking_token_budget",
            )
        if answer is None and budget is None:
            return ""
        require_grammars(self._model, self._reason_for_grammar())
        if answer is None:
            answer = self._free_rule()
        if self._reasoning is not None:
            answer = f"{self._reasoning_rule(self._reasoning, budget)} {answer}"
        lark = "\n".join([f"start: {answer}", *self._rules])
        return grammar_text([{"lark_grammar": lark}, *self._grammars])

    def _reason_for_grammar(self) -> str:
        if self._constraint is not None:
            return self._constraint.param
        if self._request.thinking_token_budget is not None:
            return "thinking_token_budget"
        if self._request.parallel_tool_calls is False:
            return "parallel_tool_calls"
        return "tools" if self._request.tool_choice in (None, "auto") else "tool_choice"

    def _answer_rule(self) -> str | None:
        """What the answer must be; None: anything."""
        form, choice = self._tool_format, self._request.tool_choice
        if self._constraint is not None:
            self._grammars.append({"name": "answer", **self._constraint.grammar})
        if form is None:
            return None if self._constraint is None else self._text("@answer")
        is_free = choice in (None, "auto")
        is_parallel = self._request.parallel_tool_calls is not False
        is_strict = any(tool.function.strict for tool in self._tools)
        if is_free and is_parallel and not is_strict and self._constraint is None:
            return None
        calls = self._calls_rule(form, is_parallel=is_parallel)
        if not is_free:
            return calls
        if self._constraint is not None:
            return f"({calls} | {self._text('@answer')})"
        return self._text_or(calls, form)

    def _calls_rule(self, form: ToolFormat, *, is_parallel: bool) -> str:
        chosen = self._request.tool_choice
        name = chosen.function.name if isinstance(chosen, NamedToolChoice) else None
        tools = [
            CallableTool(tool.function.name, self._arguments_rule(tool, place, form.notation))
            for place, tool in enumerate(self._tools)
            if name is None or tool.function.name == name
        ]
        if not tools:
            raise InvalidRequestError(
                f"Invalid 'tool_choice': there is no tool named '{name}'.",
                param="tool_choice",
                code="invalid_value",
            )
        if form.notation is not None:
            self._rules += form.notation.rules(self._tag)
        return f"({form.calls_rule(self._tag, tools, is_parallel)})"

    def _arguments_rule(self, tool: Tool, place: int, notation: Notation | None) -> str:
        """What the grammar calls a tool's arguments; they are an object, if nothing better."""
        param = f"tools.{place}.function.parameters"
        constraint = json_constraint(tool.function.parameters or ANY_OBJECT, param)
        try:
            check(constraint)
        except InvalidRequestError:
            if tool.function.strict:
                raise
            constraint = json_constraint(ANY_OBJECT, param)
        name = f"tool{place}"
        if notation is not None:
            self._rules += _argument_rules(notation, self._tag, name, tool, param)
            return name
        self._grammars.append({"name": name, **constraint.grammar})
        return f"@{name}"

    def _text_or(self, calls: str, form: ToolFormat) -> str:
        """Text without marks, with calls in it or without."""
        if self._reasoning is not None and self._reasoning.free_rule(self._tag) is not None:
            return f"({calls} | {self._text('/(?s:.*)/')})"
        if form.at_start_only:
            firsts = "".join(sorted({_regex(mark[0]) for mark in form.marks}))
            self._rules.append(rf"TEXT: /[^{firsts}\s](?s:.*)/")
            return f"({calls} | TEXT)"
        marks = " & ".join(f"~/(?s:.*{_regex(mark)}.*)/" for mark in form.marks)
        self._rules.append(f"TEXT: /(?s:.+)/ & {marks}")
        return f"TEXT? ({calls} TEXT?)?"

    def _free_rule(self) -> str:
        """Any text, and whatever tokens calls are made of."""
        framed = None if self._reasoning is None else self._reasoning.free_rule(self._tag)
        if framed is not None:
            return framed
        marks = () if self._tool_format is None else self._tool_format.all_marks
        tags = [tag for tag in map(self._tag, marks) if "<[" in tag]
        return "(" + " | ".join(["/(?s:.+)/", *tags]) + ")*"

    def _text(self, rule: str) -> str:
        """An answer of nothing but such a text."""
        return rule if self._reasoning is None else self._reasoning.answer_rule(self._tag, rule)

    def _reasoning_rule(self, style: ReasoningStyle, budget: int | None) -> str:
        """The reasoning up to its closing tag; optional where the prompt has not begun it."""
        closing = self._single_token_id(style.closing)
        if closing is not None:
            limit = "" if budget is None else f"[max_tokens={budget}]"
            self._rules += [f"think: thought <[{closing}]>", f"thought{limit}: /(?s:.*)/"]
        elif budget is None:
            self._rules.append(f"think[suffix={_quoted(style.closing)}]: /(?s:.*)/")
        else:
            raise UnsupportedParameterError(
                "Unsupported parameter: 'thinking_token_budget'. The loaded model ends its "
                "reasoning with more than one token.",
                param="thinking_token_budget",
            )
        thought = f"think {style.between_rule(self._tag)}"
        return thought if self._is_open else f"({style.opening_rule(self._tag)} {thought})?"

    def _tag(self, text: str) -> str:
        """A mark in a grammar: its token, or its letters."""
        token_id = self._single_token_id(text)
        return _quoted(text) if token_id is None else f"(<[{token_id}]> | {_quoted(text)})"

    def _single_token_id(self, mark: str) -> int | None:
        """The mark's token, where llguidance takes it for more than its letters."""
        tokenizer = self._model.tokenizer
        token_id = tokenizer.token_id(mark)
        is_tag = mark.startswith("<") and mark.endswith(">")
        return token_id if is_tag or token_id in tokenizer.special_token_ids else None


def _argument_rules(
    notation: Notation, tag: Callable[[str], str], name: str, tool: Tool, param: str
) -> list[str]:
    """The rules of a tool's arguments; any arguments, where a tool that is not strict asks more.

    Raises `UnsupportedParameterError` that says what of a strict tool cannot be enforced.
    """
    try:
        check_tool_name(notation, tool.function.name)
        rules = ArgumentRules(notation, tag, name)
        rules.add(tool.function.parameters or ANY_OBJECT)
    except NotationError as error:
        if tool.function.strict:
            raise UnsupportedParameterError(
                f"Unsupported parameter: '{param}'. In the way the loaded model calls tools, "
                f"{error} cannot be enforced.",
                param=param,
            ) from None
        return [f"{name}: any_arguments"]
    return rules.lines


def _response_format(request: ChatRequest) -> Mapping[str, Any] | None:
    found = request.response_format
    return None if found is None else found.model_dump(exclude_none=True)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\/[](){}|.*+?^$" else c for c in text)

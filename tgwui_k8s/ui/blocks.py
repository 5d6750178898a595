"""The page as Gradio draws it: the frame, and what its five tabs hold.

No event has a Python function. Each calls `tgwui("object.method", values)` in the browser
(`static/main.js`), so nothing goes through Gradio's queue and the page keeps no state here. The
other way, the script sets off one of the bridge's events to have a component painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from tgwui_k8s.api.instruction_templates import instruction_template_names
from tgwui_k8s.ui.parameters import GROUPS, Parameter, parameters
from tgwui_k8s.ui.words import words

Say = Callable[[str], Any]
"""The text for a key, in the language of the browser: `gradio.I18n`."""

DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

_EVENTS = ("paint_chat", "paint_chats", "paint_notebook", "paint_parameters", "start")
BRIDGE = f"tgwuiBridge(trigger, {list(_EVENTS)});"
"""Hands the script the function that sets off our events; Gradio looks for their names here."""

_TOP = '<header id="tgwui-header"></header><div id="tgwui-notice" role="alert"></div>'

MODELS_OWN = ""
"""The choice of a template that is not sent."""


def translations() -> dict[str, dict[str, str]]:
    """Gradio's translations; it wants every key in every language."""
    meanings = {f"parameter_{one.name}": one.meaning for one in parameters()}
    english = meanings | words("en")
    chinese = english | words("zh")
    return {"en": english, "zh": chinese, "zh-CN": chinese, "zh-TW": chinese}


def create_blocks(say: Say, preset_names: Sequence[str]) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="tgwui-k8s", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_TOP, padding=False)
        bridge = gr.HTML(js_on_load=BRIDGE, visible="hidden", elem_id="tgwui-bridge")
        with gr.Tabs(elem_id="tgwui-tabs"):
            with gr.Tab(say("tab_chat"), id="chat"):
                _chat(say, bridge)
            with gr.Tab(say("tab_notebook"), id="notebook", render_children=True):
                _notebook(say, bridge)
            with gr.Tab(say("tab_parameters"), id="parameters", render_children=True):
                _parameters(say, bridge, preset_names)
            with gr.Tab(say("tab_model"), id="model", render_children=True):
                gr.HTML('<div id="tgwui-model"></div>', padding=False)
            with gr.Tab(say("tab_engine"), id="engine", render_children=True):
                gr.HTML('<div id="tgwui-engine"></div>', padding=False)
        _on(bridge.start, "start")
    return blocks


def _on(
    event: Callable[..., object],
    method: str,
    inputs: Sequence[Component] = (),
    outputs: Sequence[Component] = (),
) -> None:
    """Have an event call `method` of our script, and paint what it returns."""
    script = f'(...values) => tgwui("{method}", values)'
    event(None, list(inputs), list(outputs), js=script, show_progress="hidden", queue=False)


# -------------------------------------------------------------------------------------- chat


def _chat(say: Say, bridge: gr.HTML) -> None:
    with gr.Row(elem_id="tgwui-chats", equal_height=True):
        chats = gr.Dropdown(
            [],
            label=say("chat_choice"),
            show_label=False,
            container=False,
            filterable=False,
            elem_id="tgwui-chat-choice",
            scale=4,
        )
        for name in ("new", "delete", "export", "import"):
            button = gr.Button(
                say(f"chat_{name}"), size="md", min_width=80, elem_id=f"tgwui-{name}"
            )
            _on(button.click, f"chats.{name}")
    chatbot = gr.Chatbot(
        label=say("chat_label"),
        show_label=False,
        elem_id="tgwui-chat",
        height="calc(100dvh - 21rem)",
        min_height=260,
        layout="bubble",
        editable="all",
        buttons=["copy"],
        latex_delimiters=DELIMITERS,
        allow_tags=False,
        placeholder=say("chat_placeholder"),
    )
    with gr.Row(elem_id="tgwui-actions"):
        for name in ("stop", "regenerate", "continue", "branch"):
            button = gr.Button(
                say(f"chat_{name}"), size="sm", min_width=80, elem_id=f"tgwui-{name}"
            )
            _on(button.click, f"chat.{name}")
    message = gr.Textbox(
        label=say("chat_input"),
        show_label=False,
        placeholder=say("chat_input_hint"),
        lines=1,
        max_lines=8,
        submit_btn=True,
        autofocus=True,
        elem_id="tgwui-message",
    )
    with gr.Accordion(say("chat_settings"), open=False):
        system = gr.Textbox(
            label=say("chat_system"), info=say("chat_system_info"), lines=2, elem_id="tgwui-system"
        )
        with gr.Row():
            template = gr.Dropdown(
                [(say("chat_template_model"), MODELS_OWN), *_plain(instruction_template_names())],
                value=MODELS_OWN,
                label=say("chat_template"),
                info=say("chat_template_info"),
                elem_id="tgwui-template",
            )
            thinking = gr.Dropdown(
                [
                    (say(f"chat_thinking_{value or 'default'}"), value)
                    for value in ("", "on", "off")
                ],
                value="",
                label=say("chat_thinking"),
                info=say("chat_thinking_info"),
                elem_id="tgwui-thinking",
            )
    settings = [system, template, thinking]
    _on(message.submit, "chat.send", [message], [message])
    _on(chatbot.edit, "chat.edit", [chatbot])
    _on(chatbot.retry, "chat.regenerate")
    _on(chats.input, "chats.choose", [chats])
    for setting in settings:
        _on(setting.input, "chats.configure", settings)
    _on(bridge.paint_chat, "chat.painted", outputs=[chatbot])
    _on(bridge.paint_chats, "chats.painted", outputs=[chats, *settings])


# ---------------------------------------------------------------------------------- notebook


def _notebook(say: Say, bridge: gr.HTML) -> None:
    notebook = gr.Textbox(
        label=say("notebook_text"),
        info=say("notebook_text_info"),
        lines=12,
        max_lines=24,
        elem_id="tgwui-notebook",
    )
    with gr.Row(equal_height=True):
        for name in ("generate", "stop", "undo", "colour"):
            variant = "primary" if name == "generate" else "secondary"
            button = gr.Button(
                say(f"notebook_{name}"),
                variant=variant,
                size="md",
                min_width=150,
                elem_id=f"tgwui-notebook-{name}",
            )
            _on(button.click, f"notebook.{name}", [notebook])
    tokens = gr.Checkbox(True, label=say("notebook_show_tokens"), elem_id="tgwui-show-tokens")
    gr.HTML('<div id="tgwui-tokens"></div>', padding=False)
    _on(notebook.input, "notebook.typed", [notebook])
    _on(tokens.input, "notebook.showTokens", [tokens])
    _on(bridge.paint_notebook, "notebook.painted", outputs=[notebook])


# -------------------------------------------------------------------------------- parameters


def _parameters(say: Say, bridge: gr.HTML, preset_names: Sequence[str]) -> None:
    with gr.Row(equal_height=True):
        served = gr.Dropdown(
            [],
            label=say("served"),
            info=say("served_info"),
            elem_id="tgwui-served",
            allow_custom_value=True,
            min_width=240,
            scale=3,
        )
        preset = gr.Dropdown(
            _plain(preset_names),
            value=None,
            label=say("preset"),
            info=say("preset_info"),
            elem_id="tgwui-preset",
            min_width=240,
            scale=3,
        )
        reset = gr.Button(say("parameters_reset"), elem_id="tgwui-reset", scale=1)
    inputs: list[Component] = []
    all_parameters = parameters()
    for group in GROUPS:
        with (
            gr.Accordion(say(f"group_{group}"), open=group in ("length", "randomness")),
            gr.Row(elem_classes="tgwui-parameters"),
        ):
            inputs += [_input(say, one) for one in all_parameters if one.group == group]
    extra = gr.Code(
        "", language="json", label=say("extra"), elem_id="tgwui-extra", lines=2, interactive=True
    )
    gr.HTML('<p class="tgwui-hint" data-say="extra_info"></p>', padding=False)
    with gr.Accordion(say("parameters_copy"), open=False):
        curl = gr.Code("", language="shell", label=say("parameters_curl"), elem_id="tgwui-curl")
        python = gr.Code(
            "", language="python", label=say("parameters_python"), elem_id="tgwui-python"
        )
    programs = [curl, python]
    for one in (*inputs, extra):
        _on(one.change, "parameters.changed", [*inputs, extra], programs)
    _on(served.input, "parameters.chooseModel", [served], programs)
    _on(preset.input, "parameters.choosePreset", [preset])
    _on(reset.click, "parameters.reset")
    painted = [served, preset, *inputs, extra, *programs]
    _on(bridge.paint_parameters, "parameters.painted", outputs=painted)


def _input(say: Say, one: Parameter) -> Component:
    common = {
        "label": one.name,
        "info": say(f"parameter_{one.name}"),
        "elem_id": f"tgwui-parameter-{one.name}",
        "interactive": True,
    }
    if one.kind == "switch":
        return gr.Checkbox(one.default, **common)
    if one.kind == "slider":
        return gr.Slider(one.minimum, one.maximum, one.default, step=one.step, **common)
    if one.kind == "number":
        return gr.Number(
            one.default, minimum=one.minimum, maximum=one.maximum, step=one.step, **common
        )
    return gr.Textbox(one.default, lines=2 if one.kind == "lines" else 1, **common)


def _plain(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, name) for name in names]

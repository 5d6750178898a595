"""Probes that tell the truth, a port that is open at once and stays, and a drain."""

from __future__ import annotations

from typing import Any

import libcst as cst
import libcst.matchers as m

from patches.places import SCRIPTS, STARTS_SERVER
from tgwui_k8s.patching.edits import Edit
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import call, change, decorate, replace, statement

BLOCKING_ROUTES = (
    "handle_unload_model()",
    "handle_embeddings(request_data)",
    "handle_token_encode(request_data)",
    "handle_token_decode(request_data)",
    "handle_token_count(request_data)",
    "handle_logits(request_data)",
    "handle_chat_prompt(request_data)",
    "handle_load_loras(request_data)",
    "handle_unload_loras()",
)
"""`async def` with a body that computes. Those that read the request themselves cannot move."""
OFF_LOOP = "tgwui_k8s_serving.off_loop"
ITERATE = "tgwui_k8s_serving.iterate("


def _begin(node: cst.CSTNode) -> cst.CSTNode:
    assert isinstance(node, cst.If)  # noqa: S101 - it matched
    first = statement("tgwui_k8s_serving.begin(shared)")
    return node.with_changes(body=node.body.with_changes(body=[first, *node.body.body]))


def _run(node: cst.CSTNode) -> cst.CSTNode:
    assert isinstance(node, cst.Call)  # noqa: S101 - it matched
    ours = cst.ensure_type(
        cst.parse_expression("tgwui_k8s_serving.run(shared, uvicorn, app)"), cst.Call
    )
    return node.with_changes(func=ours.func, args=[*ours.args[:2], *node.args])


def _awaited(function: str, name: str) -> list[Edit]:
    """Until 2026 the routes of text ran on the event loop: every probe waited for a whole text."""
    blocking = m.Call(func=m.Attribute(value=m.Name("OAIcompletions"), attr=m.Name(name)))

    def wait(node: cst.CSTNode) -> cst.CSTNode:
        assert isinstance(node, cst.Call)  # noqa: S101 - it matched
        ours = cst.ensure_type(
            cst.parse_expression(f"await tgwui_k8s_serving.in_thread(OAIcompletions.{name}, x)"),
            cst.Await,
        )
        waiting = cst.ensure_type(ours.expression, cst.Call)
        return ours.with_changes(
            expression=waiting.with_changes(args=[waiting.args[0], *node.args])
        )

    def iterate(node: cst.CSTNode) -> cst.CSTNode:
        assert isinstance(node, cst.For)  # noqa: S101 - it matched
        return node.with_changes(
            asynchronous=cst.Asynchronous(),
            iter=cst.parse_expression(f"{ITERATE}response)"),
        )

    return [
        change(
            SCRIPTS,
            function,
            f"call of OAIcompletions.{name}()",
            blocking,
            wait,
            "tgwui_k8s_serving.in_thread(",
            is_optional=True,
        ),
        change(
            SCRIPTS,
            function,
            "for ... in response",
            m.For(iter=m.Name("response"), asynchronous=None),
            iterate,
            ITERATE,
            is_optional=True,
        ),
        _own_thread(function),
    ]


def _let_streams_in(node: cst.CSTNode) -> cst.CSTNode:
    """They wait for the lock, where `/metrics` sees them, and not before it."""
    code = "asyncio.Semaphore(tgwui_k8s_serving.MAX_STREAMS)"
    return node.with_changes(value=cst.parse_expression(code))


def _own_thread(function: str, **limits: Any) -> Edit:
    """Since 2026 they share forty threads, in which streams wait for the one that runs."""
    return replace(
        SCRIPTS,
        function,
        "iterate_in_threadpool(response)",
        call("iterate_in_threadpool"),
        f"{ITERATE}response)",
        ITERATE,
        is_optional=True,
        **limits,
    )


PATCH = Patch(
    name="probes",
    title="Probes, a port from the first second, drain",
    reason=(
        "Upstream opens its port when the model is loaded, moves to another port if it is taken, "
        "has a health route that wants a key and says ok without a model, and drops what runs on "
        "SIGTERM."
    ),
    versions="every version with the API as --api: since 2023-11-10",
    test=(
        "Start with a model that loads slowly: /health/live answers at once, /health/ready with "
        "the model. SIGTERM in a stream: it ends whole, and the exit code is 0."
    ),
    edits=(
        change(
            "server.py",
            "",
            'if __name__ == "__main__"',
            m.If(test=m.Comparison(left=m.Name("__name__"))),
            _begin,
            "tgwui_k8s_serving.begin(shared)",
        ),
        decorate(
            SCRIPTS,
            "find_available_port(starting_port)",
            "tgwui_k8s_serving.fixed_port",
            if_scope=True,
        ),
        change(
            SCRIPTS,
            "run_server()",
            "call of uvicorn.run(app, host=..., port=...)",
            STARTS_SERVER,
            _run,
            "tgwui_k8s_serving.run(",
        ),
        decorate(SCRIPTS, "handle_load_model(request_data)", OFF_LOOP),
        *(decorate(SCRIPTS, function, OFF_LOOP, if_scope=True) for function in BLOCKING_ROUTES),
        change(
            SCRIPTS,
            "",
            "streaming_semaphore = asyncio.Semaphore(1)",
            m.Assign(
                targets=[m.AssignTarget(target=m.Name("streaming_semaphore"))],
                value=call("asyncio.Semaphore"),
            ),
            _let_streams_in,
            "tgwui_k8s_serving.MAX_STREAMS",
            is_optional=True,
        ),
        _own_thread("_anthropic_generate(request_data)", if_scope=True),
        *_awaited("openai_completions(request_data)", "completions"),
        *_awaited("openai_chat_completions(request_data)", "chat_completions"),
    ),
)

"""Errors leave the generation that met them, and every way to stop one is heard."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from patches.places import CALLBACKS, FROM_CUSTOM, FROM_HF, TEXT
from tgwui_k8s.patching.edits import Edit
from tgwui_k8s.patching.errors import SeamGoneError
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import call, change, insert_before, line, replace, statement

GENTASK = "Iteratorize.__init__.gentask()"

RAISES = "raise  # tgwui_k8s_generation"
FALLS_THROUGH = "pass  # tgwui_k8s_generation: a return here would swallow the error"


def _raising(function: str) -> Edit:
    """The handler raises again, and the `finally` block does not return over it."""

    def rewrite(node: cst.CSTNode) -> cst.CSTNode:
        assert isinstance(node, cst.Try)  # noqa: S101 - it matched
        handler, final = node.handlers[-1], node.finalbody
        assert final is not None  # noqa: S101 - it matched
        cleanup = final.body.body
        if not m.matches(cleanup[-1], line(m.Return(value=None))):
            raise SeamGoneError(f"{TEXT}: the finally block of {function} does not end in return")
        return node.with_changes(
            handlers=[*node.handlers[:-1], _appended(handler, RAISES)],
            finalbody=final.with_changes(
                body=final.body.with_changes(body=[*cleanup[:-1], statement(FALLS_THROUGH)])
            ),
        )

    caught = m.ExceptHandler(type=m.Name("Exception"))
    return change(
        TEXT,
        function,
        f"try, except Exception, finally in {function}",
        m.Try(handlers=[caught], finalbody=m.Finally()),
        rewrite,
        RAISES,
    )


def _appended(handler: cst.ExceptHandler, code: str) -> cst.ExceptHandler:
    body = handler.body
    return handler.with_changes(body=body.with_changes(body=[*body.body, statement(code)]))


def _keeping(node: cst.CSTNode) -> cst.CSTNode:
    assert isinstance(node, cst.ExceptHandler)  # noqa: S101 - it matched
    first = statement("tgwui_k8s_generation.keep(self)")
    return node.with_changes(body=node.body.with_changes(body=[first, *node.body.body]))


ANYTHING = m.ExceptHandler(type=None) | m.ExceptHandler(type=m.Name("Exception"))

PATCH = Patch(
    name="generation",
    title="Errors raised, every stop heard",
    reason=(
        "Upstream prints what goes wrong in a generation and returns what it has; the Transformers "
        "loaders ignore that a client has gone."
    ),
    versions="every version",
    test="Let a model raise: reading its reply raises. Set state['stop_event']: the text ends.",
    edits=(
        _raising(FROM_HF),
        _raising(FROM_CUSTOM),
        change(
            CALLBACKS,
            GENTASK,
            "handler of all exceptions in Iteratorize's thread",
            ANYTHING,
            _keeping,
            "tgwui_k8s_generation.keep(self)",
        ),
        insert_before(
            CALLBACKS,
            "Iteratorize.__next__(self)",
            "raise StopIteration in Iteratorize.__next__()",
            line(m.Raise(exc=m.Name("StopIteration"))),
            "tgwui_k8s_generation.raise_kept(self)",
        ),
        replace(
            CALLBACKS,
            "Iteratorize.__init__._callback(val)",
            "raise ValueError in Iteratorize's callback",
            m.Name("ValueError"),
            "tgwui_k8s_generation.Stopped",
            "tgwui_k8s_generation.Stopped",
            is_optional=True,
        ),
        replace(
            CALLBACKS,
            GENTASK,
            "except ValueError in Iteratorize's thread",
            m.Name("ValueError"),
            "tgwui_k8s_generation.Stopped",
            "tgwui_k8s_generation.Stopped",
            is_optional=True,
        ),
        replace(
            TEXT,
            FROM_HF,
            "_StopEverythingStoppingCriteria() in generate_reply_HF()",
            m.SaveMatchedNode(call("_StopEverythingStoppingCriteria", args=[]), "criterion"),
            "tgwui_k8s_generation.stops({criterion}, state)",
            "tgwui_k8s_generation.stops(",
        ),
    ),
)

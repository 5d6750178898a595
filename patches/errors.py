"""What failed says so: 4xx, 5xx, or an error event in a stream."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from patches.places import LOAD, MODELS, SCRIPTS
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import call, change, decorate, insert_after, line, statement

MARK = "# tgwui_k8s_errors"


def _raise(node: cst.CSTNode) -> cst.CSTNode:
    returned = cst.ensure_type(cst.ensure_type(node, cst.SimpleStatementLine).body[0], cst.Return)
    code = cst.Module([]).code_for_node(cst.ensure_type(returned.value, cst.Call))
    return statement(f"raise {code}  {MARK}: returned, it is a 200")


PATCH = Patch(
    name="errors",
    title="Errors as errors",
    reason=(
        "Upstream answers 200 with an empty text when a generation raised, 200 OK when a load "
        "failed, and plain text for the rest."
    ),
    versions="every version",
    test="Ask without a model (503), let the model raise (500, or an error event), load nonsense.",
    needs=("generation",),
    edits=(
        decorate(MODELS, LOAD, "tgwui_k8s_errors.load_or_raise(shared)"),
        insert_after(
            SCRIPTS,
            "",
            "app = FastAPI()",
            line(m.Assign(targets=[m.AssignTarget(target=m.Name("app"))], value=call("FastAPI"))),
            "app.add_middleware(tgwui_k8s_errors.ErrorAnswers, shared=shared)",
        ),
        change(
            SCRIPTS,
            "",
            "return HTTPException(...)",
            line(m.Return(value=call("HTTPException"))),
            _raise,
            MARK,
            at_most=None,
            is_optional=True,
        ),
    ),
)

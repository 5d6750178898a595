"""`/metrics`: what runs, what waits, tokens and times."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from patches.places import SCRIPTS, STARTS_SERVER, TEXT
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import change, decorate

EXPOSED = "tgwui_k8s_metrics.exposed(app, shared)"


def _exposed(node: cst.CSTNode) -> cst.CSTNode:
    assert isinstance(node, cst.Call)  # noqa: S101 - it matched
    is_app = m.Arg(value=m.Name("app"), keyword=None)
    new = cst.parse_expression(EXPOSED)
    return node.with_changes(
        args=[arg.with_changes(value=new) if m.matches(arg, is_app) else arg for arg in node.args]
    )


PATCH = Patch(
    name="metrics",
    title="Metrics for Prometheus",
    reason="Upstream has none: nothing to scale on, nothing to watch.",
    versions="every version",
    test="GET /metrics while texts run and wait.",
    needs=("probes",),
    edits=(
        decorate(TEXT, "generate_reply()", "tgwui_k8s_metrics.queued(shared)"),
        decorate(TEXT, "_generate_reply(question, state)", "tgwui_k8s_metrics.measured(shared)"),
        change(
            SCRIPTS,
            "run_server()",
            "call of uvicorn.run(app, host=..., port=...)",
            STARTS_SERVER,
            _exposed,
            EXPOSED,
        ),
    ),
)

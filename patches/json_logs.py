"""One JSON object a line on stdout, and no key in any."""

from __future__ import annotations

import libcst as cst

from patches.places import PARSE_ARGS, SCRIPTS, SHARED, STARTS_SERVER
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import call, change, insert_after, replace


def _without_log_config(node: cst.CSTNode) -> cst.CSTNode:
    """uvicorn would set up its own handlers."""
    assert isinstance(node, cst.Call)  # noqa: S101 - it matched
    option = cst.ensure_type(cst.parse_expression("f(log_config=None)"), cst.Call).args[0]
    *rest, last = node.args
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    return node.with_changes(args=[*rest, last.with_changes(comma=comma), option])


PATCH = Patch(
    name="json_logs",
    title="JSON logs on stdout",
    reason=(
        "Upstream draws its log for a person at 80 columns, without a date, mixed with prints, and "
        "writes API keys in clear."
    ),
    versions="every version",
    test="Start with stdout in a pipe and a key: every line parses, none has the key.",
    edits=(
        replace(
            "modules/logging_colors.py",
            "",
            "call of setup_logging()",
            call("setup_logging", args=[]),
            "tgwui_k8s_logs.setup(logger, setup_logging)",
            "tgwui_k8s_logs.setup(",
        ),
        insert_after(
            SHARED, "", "args = parser.parse_args()", PARSE_ARGS, "tgwui_k8s_logs.mask(args)"
        ),
        change(
            SCRIPTS,
            "run_server()",
            "call of uvicorn.run(app, host=..., port=...)",
            STARTS_SERVER,
            _without_log_config,
            "log_config=None",
        ),
    ),
)

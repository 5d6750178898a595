"""Nothing is written beside the code or the models."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from patches.places import SETTINGS, SHARED
from tgwui_k8s.patching.edits import Edit, first_after_docstring
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import change, replace, statement

ENTER = "tgwui_k8s_storage.enter(__file__)"


def _enter(node: cst.CSTNode) -> cst.CSTNode:
    assert isinstance(node, cst.Module)  # noqa: S101 - it matched
    body = list(node.body)
    start = first_after_docstring(body)
    return node.with_changes(body=[*body[:start], statement(ENTER), *body[start:]])


def _redirected(path: str, file: str, function: str, *, is_optional: bool = False) -> Edit:
    """f'{...}/FILE' in a file, whatever it is the argument of."""
    end = m.FormattedStringText(value=m.MatchIfTrue(lambda text: text.endswith(f"/{file}")))
    return replace(
        path,
        "",
        f"f'{{...}}/{file}'",
        m.SaveMatchedNode(m.FormattedString(parts=[m.ZeroOrMore(), end]), "path"),
        f"tgwui_k8s_storage.{function}({{path}})",
        f"tgwui_k8s_storage.{function}(",
        at_most=None,
        is_optional=is_optional,
    )


PATCH = Patch(
    name="stateless",
    title="One writable directory",
    reason=(
        "Upstream writes settings, logs, histories, pictures and caches beside its code, and "
        "settings of models into the model directory: a read-only root or volume fails requests."
    ),
    versions="every version",
    test="Run as a user who may write to TGWUI_STATE_DIR alone; ask for a chat.",
    edits=(
        change("server.py", "", "the top of the file", m.Module(), _enter, ENTER),
        _redirected(SHARED, "config-user.yaml", "user_config"),
        _redirected(SETTINGS, "config-user.yaml", "user_config"),
        _redirected(SHARED, "config.yaml", "model_config", is_optional=True),
    ),
)

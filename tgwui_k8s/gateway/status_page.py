"""One page for whoever is on call: every endpoint, and who waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLUMNS = (
    "name", "url", "dialect", "ready", "breaker", "models", "in_flight", "running", "waiting",
    "kv_cache_usage", "requests", "failures", "last_error",
)  # fmt: skip

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<title>Gateway</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin-bottom: 2em; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left; }}
.bad {{ background: #fdd; }}
</style></head><body><h1>Gateway</h1>
<h2>Endpoints</h2>{endpoints}<h2>Waiting requests</h2>{waiting}</body></html>
"""


def status_page(endpoints: Sequence[Mapping[str, Any]], waiting: Mapping[str, int]) -> str:
    """The page as HTML; whatever endpoints said of themselves is escaped."""
    rows = [[_cell(endpoint[column]) for column in _COLUMNS] for endpoint in endpoints]
    is_bad = [not one["ready"] or one["breaker"] != "closed" for one in endpoints]
    queues = [[escape(model or "any"), str(size)] for model, size in sorted(waiting.items())]
    return _PAGE.format(
        endpoints=_table(_COLUMNS, rows, is_bad),
        waiting=_table(("model", "requests"), queues, [False] * len(queues)),
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(value)
    return escape(str(value))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], is_bad: Sequence[bool]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in columns)
    body = "".join(
        f"<tr{' class=bad' if bad else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row, bad in zip(rows, is_bad, strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"

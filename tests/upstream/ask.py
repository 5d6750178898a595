"""Ask a checkout every question: `python -m tests.upstream.ask DIR PYTHON [--must-fail]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tgwui_k8s.patching.questions import QUESTIONS, ask_all
from tgwui_k8s.patching.site import Site


def main(root: Path, python: str, *, must_fail: bool) -> int:
    """Exit code 1 where one answer is not as it must be."""
    site = Site(root, python)
    try:
        outcomes = ask_all(site, {question.ability for question in QUESTIONS})
    finally:
        site.close()
    for outcome in outcomes:
        answer = f"no: {outcome.problem}" if outcome.problem else "yes"
        sys.stdout.write(f"| {outcome.question.ability} | {outcome.question.text} | {answer} |\n")
    # A server that does not even start has answered nothing.
    no_start = any(outcome.problem.startswith("the server ended") for outcome in outcomes)
    return int(no_start or any(bool(outcome.problem) != must_fail for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], must_fail="--must-fail" in sys.argv))

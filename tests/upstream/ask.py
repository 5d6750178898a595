"""Ask a checkout every question: `python -m tests.upstream.ask DIR PYTHON [--must-fail]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tgwui_k8s.patching.questions import QUESTIONS, ask_all
from tgwui_k8s.patching.site import Site

NO_ANSWER = ("the server ended", "the server never answered")
"""What a problem begins with where the server did not even start: nothing was asked."""


def main(root: Path, python: str, *, must_fail: bool) -> int:
    """Exit code 1 where one answer is not as it must be; each is written as it comes."""
    site = Site(root, python)
    is_as_it_must_be = True
    try:
        for outcome in ask_all(site, {question.ability for question in QUESTIONS}):
            question, problem = outcome.question, outcome.problem
            answer = f"no: {problem}" if problem else "yes"
            sys.stdout.write(f"| {question.ability} | {question.text} | {answer} |\n")
            sys.stdout.flush()
            is_asked = not problem.startswith(NO_ANSWER)
            is_as_it_must_be &= is_asked and bool(problem) == must_fail
    finally:
        site.close()
    return int(not is_as_it_must_be)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], must_fail="--must-fail" in sys.argv))

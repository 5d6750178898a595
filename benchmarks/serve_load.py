"""Load an OpenAI-compatible server and measure what its clients see.

    python -m benchmarks.serve_load --concurrency 16 --num-requests 200
    python -m benchmarks.serve_load --rate 4 --slo-ttft-ms 500 --slo-tpot-ms 30 --json out.json
    python -m benchmarks.serve_load --url http://127.0.0.1:8000 --endpoint chat --prompt-file q.txt

--rate sends requests at fixed times whatever the server does, as independent clients would
(Poisson arrivals); --concurrency keeps so many under way, and so never overloads. Goodput counts
the requests that keep every --slo-… given.

TTFT is from before connecting to the first chunk with text; ITL is the time between such chunks;
TPOT the time per token after the first. Tokens are counted by the server's own usage where it
reports one. The generator's own CPU per chunk is printed: when it is busy, believe nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httptools
import uvloop

from benchmarks.load.client import Target, first_model
from benchmarks.load.figures import Objectives
from benchmarks.load.generator import Load, run_load
from benchmarks.load.http import Origin
from benchmarks.load.prompts import file_prompts, random_prompts
from benchmarks.load.report import Report

EXIT_FAILED, EXIT_USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load that the flags describe; 1 when a request failed, 2 for a wrong flag."""
    options = make_parser().parse_args(arguments)
    try:
        report = uvloop.run(measure(options))
    except (OSError, asyncio.TimeoutError, httptools.HttpParserError) as error:
        print(f"serve_load: {options.url}: {str(error) or type(error).__name__}", file=sys.stderr)
        return EXIT_USAGE
    except ValueError as error:
        print(f"serve_load: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.json == "-":
        print(report.json().decode())
    else:
        print(report.markdown())
        if options.json is not None:
            Path(options.json).write_bytes(report.json() + b"\n")
    return EXIT_FAILED if report.server.errors else 0


async def measure(options: argparse.Namespace) -> Report:
    """Check where it goes, then run. Raises `OSError` or `ValueError` before anything is sent."""
    origin = Origin.parse(options.url)
    if not (options.allow_remote or origin.is_loopback()):
        raise ValueError(
            f"{origin.host} is not this machine: --allow-remote, if its owner agrees to the load"
        )
    headers = dict(_header(text) for text in options.header)
    target = Target(
        origin,
        options.model or await first_model(origin, headers),
        options.endpoint,
        options.max_tokens,
        options.temperature,
        _fields(options),
        headers,
        options.timeout,
    )
    load = Load(
        num_requests=options.num_requests,
        rate=options.rate,
        arrivals=options.arrivals,
        concurrency=options.concurrency,
        num_warm_up=options.warm_up,
        max_seconds=options.max_seconds,
        seed=options.seed,
    )
    number = load.num_requests + load.num_warm_up
    prompts = (
        random_prompts(number, options.prompt_words, options.seed, options.shared_words)
        if options.prompt_file is None
        else file_prompts(options.prompt_file)
    )
    objectives = Objectives(
        options.slo_ttft_ms, options.slo_itl_ms, options.slo_tpot_ms, options.slo_e2e_ms
    )
    return await run_load(target, load, prompts, objectives)


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="serve_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--url", default="http://127.0.0.1:5000")
    server.add_argument("--allow-remote", action="store_true", help="load another machine")
    server.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    server.add_argument("--model", help="default: the first in /v1/models")
    server.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated"
    )
    load = parser.add_argument_group("the load")
    when = load.add_mutually_exclusive_group(required=True)
    when.add_argument("--rate", type=_positive, metavar="R", help="requests a second")
    when.add_argument("--concurrency", type=_count, metavar="N", help="requests under way")
    load.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    load.add_argument("--num-requests", type=_count, default=100, metavar="N")
    load.add_argument("--max-seconds", type=_positive, default=600.0, help="send none later")
    load.add_argument("--timeout", type=_positive, default=600.0, help="seconds for one request")
    load.add_argument("--warm-up", type=int, default=4, metavar="N", help="requests not counted")
    load.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    asked = parser.add_argument_group("a request")
    asked.add_argument("--prompt-words", type=_count, default=128, metavar="N")
    asked.add_argument(
        "--shared-words", type=int, default=0, metavar="N", help="of them, equal for all requests"
    )
    asked.add_argument("--prompt-file", type=Path, help="a prompt a line, or JSON with 'prompt'")
    asked.add_argument("--max-tokens", type=_count, default=128, metavar="N")
    asked.add_argument("--temperature", type=float, default=0.0)
    asked.add_argument("--ignore-eos", action="store_true", help="always --max-tokens long")
    asked.add_argument("--fields", metavar="JSON", help="further fields of the body")
    found = parser.add_argument_group("what is reported")
    for name in ("ttft", "itl", "tpot", "e2e"):
        found.add_argument(f"--slo-{name}-ms", type=_positive, metavar="MS")
    found.add_argument("--json", metavar="FILE", help="write all figures; '-' prints them instead")
    return parser


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = json.loads(options.fields) if options.fields else {}
    if not isinstance(fields, dict):
        raise ValueError("--fields is no JSON object")
    return {**({"ignore_eos": True} if options.ignore_eos else {}), **fields}


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or any(character in text for character in "\r\n"):
        raise ValueError("--header is not NAME:VALUE")
    return name.strip(), value.strip()


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())

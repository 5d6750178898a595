"""A run as JSON and as a Markdown table."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.load.figures import Figures, Spread


class GeneratorFigures(msgspec.Struct, frozen=True):
    """What the load generator itself took: beside these, the server's figures can be judged."""

    cpu_us_per_chunk: float
    cpu_share: float
    """Of one core. Near 1 the generator is what was measured."""
    late_ms: Spread | None = None
    """By how much requests with a fixed time were sent too late."""


class Report(msgspec.Struct, frozen=True):
    """Everything that one run of the generator found."""

    load: dict[str, Any]
    """What was asked for."""
    server: Figures
    generator: GeneratorFigures

    def json(self) -> bytes:
        """Indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def markdown(self) -> str:
        """Two tables and a line about the generator."""
        server = self.server
        counts = {
            "requests completed": f"{server.num_completed}",
            "errors": _errors(server.errors),
            "duration": f"{server.duration_s:.2f} s",
            "requests": f"{server.requests_per_s:.2f} /s",
            "output tokens": f"{server.output_tokens_per_s:.1f} /s "
            f"({server.output_tokens}, by {', '.join(server.tokens_counted_by) or 'nothing'})",
            "chunks": f"{server.chunks_per_s:.1f} /s",
            "prompt tokens": f"{server.prompt_tokens}",
            "goodput": f"{server.good_requests_per_s:.2f} requests/s ({server.good_share:.1%})",
        }
        spreads = {
            "TTFT": server.ttft_ms,
            "ITL": server.itl_ms,
            "TPOT": server.tpot_ms,
            "end to end": server.e2e_ms,
        }
        lines = ["| | |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in counts.items()]
        lines += ["", "| milliseconds | mean | p50 | p90 | p99 | max |", "|---|" + "---:|" * 5]
        lines += [f"| {name} | {_cells(spread)} |" for name, spread in spreads.items()]
        return "\n".join([*lines, "", self._generator_line()])

    def _generator_line(self) -> str:
        generator = self.generator
        line = (
            f"Load generator: {generator.cpu_us_per_chunk:.1f} µs CPU per chunk, "
            f"{generator.cpu_share:.0%} of a core"
        )
        if generator.late_ms is not None:
            line += f", requests late by {generator.late_ms.p99:.1f} ms (p99)"
        if generator.cpu_share > 0.8:
            line += " — TOO BUSY: these figures are the generator's, not the server's"
        return line + "."


def _cells(spread: Spread | None) -> str:
    if spread is None:
        return "– | – | – | – | –"
    values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max)
    return " | ".join(f"{value:.2f}" for value in values)


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(errors.items())) or "none"

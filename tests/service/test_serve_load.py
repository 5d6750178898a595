"""The load generator against a real server on the fake loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import serve_load
from tests.helpers.server_process import ServerProcess


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--max-num-seqs", "4") as process:
        yield process.wait_until_ready()


def run(server: ServerProcess, *flags: str) -> int:
    """A small load."""
    return serve_load.main(
        ["--url", server.url, "--max-tokens", "6", "--prompt-words", "5", "--ignore-eos", *flags]
    )


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_token_is_counted(
    server: ServerProcess, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So many requests under way, warm-up not counted, tokens by the server's own usage."""
    code = run(
        server, "--concurrency", "3", "--num-requests", "9", "--endpoint", endpoint, "--json", "-"
    )

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["load"]["model"] == "fake"
    assert report["server"]["num_completed"] == 9
    assert report["server"]["output_tokens"] == 54
    assert report["server"]["tokens_counted_by"] == ["usage"]
    assert report["server"]["errors"] == {}
    assert report["server"]["chunks"] <= 54
    assert report["server"]["good_share"] == 1.0
    assert report["generator"]["cpu_us_per_chunk"] > 0


def test_requests_at_a_rate_are_reported_as_a_table_and_a_file(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrivals at fixed times say how late the generator was."""
    file = tmp_path / "report.json"

    code = run(server, "--rate", "500", "--num-requests", "5", "--json", str(file))

    assert code == 0
    table = capsys.readouterr().out
    assert "| requests completed | 5 |" in table
    assert "| TTFT |" in table
    assert json.loads(file.read_text())["generator"]["late_ms"]["max"] >= 0


def test_refusals_are_counted_by_their_code(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that refuses makes the run fail, and the table says with what."""
    code = run(server, "--concurrency", "2", "--num-requests", "2", "--model", "no-such-model")

    assert code == serve_load.EXIT_FAILED
    assert "2 × HTTP 404: model_not_found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--url", "http://192.0.2.1:80"), "--allow-remote"),
        (("--fields", "[1]"), "--fields is no JSON object"),
        (("--header", "nonsense"), "--header is not NAME:VALUE"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_sent(
    server: ServerProcess,
    flags: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another machine is not loaded by accident."""
    assert run(server, "--concurrency", "1", *flags) == serve_load.EXIT_USAGE
    assert complaint in capsys.readouterr().err

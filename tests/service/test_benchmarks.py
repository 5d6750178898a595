"""The benchmarks that start servers run to their end, on loads too small to mean anything."""

from __future__ import annotations

import json

import pytest

from benchmarks import api_overhead, prefix_reuse, soak, startup, web_page


def test_api_overhead_measures_all_it_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Every token comes, without errors, and processor time and memory belong to it."""
    code = api_overhead.main(["--streams", "2", "--tokens", "1000", "--speed", "4000", "--json"])

    (row,) = json.loads(capsys.readouterr().out)
    assert code == 0
    assert row["streams"] == 2
    assert row["server"]["output_tokens"] == 1000
    assert row["cpu_us_per_chunk"] >= row["cpu_us_per_token"] > 0
    assert row["rss_after_mib"] > 10
    assert row["direct_itl_ms"]["p50"] > 0


def test_startup_passes_its_milestones_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """The port opens first and the first token comes last."""
    code = startup.main(["--model", "fake", "--flag=--loader=fake", "--runs", "1", "--json"])

    (marks,) = json.loads(capsys.readouterr().out)["fake"]
    assert code == 0
    assert 0 < marks["port_open"] <= marks["live"] <= marks["ready"] <= marks["first_token"]


def test_startup_says_why_a_server_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """The last words of the server are what helps."""
    code = startup.main(["--model", "no-such-model", "--runs", "1"])

    assert code == 1
    assert "no-such-model" in capsys.readouterr().err


def test_web_page_measures_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Streams come whole through the page's process, which is the one that is measured."""
    few = ["--pages", "2", "--clients", "1", "--tokens", "20", "--speed", "500", "--runs", "1"]
    code = web_page.main([*few, "--json"])

    runs = json.loads(capsys.readouterr().out)
    assert code == 0
    assert list(runs) == list(web_page.WAYS)
    assert all(run["itl"]["p50"] > 0 for (run,) in runs.values())
    assert runs["through the page"][0]["page_cpu_us_per_token"] > 0


def test_prefix_reuse_counts_what_chats_share(capsys: pytest.CaptureFixture[str]) -> None:
    """All chats but the first find their system prompt in the cache."""
    sizes = ["--chats", "5", "--own-chats", "2", "--system-words", "200"]
    code = prefix_reuse.main(["--model", "fake", "--loader", "fake", *sizes])

    output = capsys.readouterr().out
    assert code == 0
    assert "| shared, the other 4 |" in output
    hit_rate = float(output.partition("Hit rate over the shared chats: ")[2].partition("%")[0])
    assert 60 < hit_rate < 80


def test_a_soak_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Every temper is answered as it should be, and afterwards no request and no block is left."""
    short = ["--minutes", "0.1", "--streams", "8", "--slack-mib", "1000"]
    code = soak.main(["--model", "fake", "--flag=--loader=fake", *short])

    output = capsys.readouterr().out
    assert code == 0, output
    for temper in ("listen", "wait", "leave", "ask_too_much", "ask_nonsense", "stop_all"):
        assert f"| {temper} |" in output

"""Endpoint URLs, load figures, headers, the status page, imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.endpoint import Load, parse_endpoint
from tgwui_k8s.gateway.headers import to_client, to_endpoint
from tgwui_k8s.gateway.load_metrics import parse_load
from tgwui_k8s.gateway.status_page import status_page


def test_endpoints_are_urls_with_a_dialect_in_front() -> None:
    """What `--endpoint` takes."""
    plain = parse_endpoint("http://host:5000")
    assert (plain.uid, plain.dialect) == ("http://host:5000", None)
    assert parse_endpoint("tgi+http://[::1]:80/").dialect == "tgi"
    assert parse_endpoint("vllm+https://host").origin.port == 443
    for wrong in ("host:5000", "ftp://host", "http://", "http://h:x", "http://h/v1", "a+http://h"):
        with pytest.raises(UsageError):
            parse_endpoint(wrong)


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (
            'tgwui_num_requests_running{model_name="m"} 3.0\n'
            'tgwui_num_requests_waiting{model_name="m"} 2.0\n'
            'tgwui_kv_cache_usage_perc{model_name="m"} 0.5\n',
            Load(3, 2, 0.5),
        ),
        (
            'vllm:num_requests_running{engine="0"} 1.0\nvllm:num_requests_running{engine="1"} 2\n'
            "vllm:gpu_cache_usage_perc 0.25\n",
            Load(3, 0, 0.25),
        ),
        ("tgi_queue_size 4\ntgi_batch_current_size 7\n", Load(7, 4, 0)),
        ("llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", Load(1, 2, 0)),
        ("# HELP tgi_queue_size x\nother 1\n", None),
    ],
)
def test_load_is_read_from_every_engines_metrics(text: str, load: Load | None) -> None:
    """Under the names that engines have; series of one name are added up."""
    assert parse_load(text) == load


def test_headers_about_one_connection_do_not_pass() -> None:
    """Neither way; nor does the client's key reach an endpoint."""
    headers = {
        b"connection": b"close, x-private",
        b"x-private": b"1",
        b"transfer-encoding": b"chunked",
        b"authorization": b"Bearer client",
        b"x-gateway-total-timeout": b"3",
        b"content-type": b"application/json",
    }
    sent = to_endpoint(headers, request_id="r", trace_parent=b"t", key=b"own")
    assert sent == [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"r"),
        (b"traceparent", b"t"),
        (b"authorization", b"Bearer own"),
    ]
    received = [
        (b"connection", b"x-private"),
        (b"x-private", b"1"),
        (b"content-length", b"5"),
        (b"x-request-id", b"theirs"),
        (b"x-gateway-endpoint", b"theirs"),
        (b"retry-after", b"3"),
    ]
    assert to_client(received) == [(b"retry-after", b"3")]


def test_the_status_page_escapes_what_endpoints_say() -> None:
    """A model's name is no HTML."""
    columns = (
        "name url dialect ready breaker models in_flight running waiting kv_cache_usage requests "
        "failures last_error"
    )
    endpoint = dict.fromkeys(columns.split(), "<b>")
    page = status_page([{**endpoint, "models": ["<i>"]}], {"<m>": 3})
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;m&gt;" in page


def test_the_gateway_imports_nothing_heavy() -> None:
    """Its port is open within a second."""
    heavy = ("torch", "transformers", "fastapi", "pydantic", "numpy", "tokenizers", "loaders")
    script = (
        "import sys, tgwui_k8s.gateway.life_cycle;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"

"""Spans, and traces that go through."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.helpers.gateway_calls import call_of
from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.tracing import NoTracing, OtlpTracing

TRACE_ID = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"00-" + TRACE_ID + b"-b7ad6b7169203331-01"


def test_without_a_collector_the_trace_goes_on_all_the_same() -> None:
    """Same trace, same flags, a span of the gateway's own as the parent."""
    span = NoTracing().begin("/v1/completions", TRACE_ID, PARENT)
    assert span.trace_parent.startswith(b"00-" + TRACE_ID + b"-")
    assert span.trace_parent.endswith(b"-01")
    assert b"b7ad6b7169203331" not in span.trace_parent


def test_a_call_is_a_span_with_all_that_happened() -> None:
    """Below the client's span, above the engine's; usage, endpoint and failed attempts in it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = OtlpTracing(provider)
    call = call_of(b'{"model": "m", "prompt": "x"}')
    call.num_prompt_tokens, call.num_completion_tokens, call.num_continuations = 3, 4, 1
    call.endpoint_names = ["a", "b"]
    call.failures = [("a", "connection_lost")]

    span = tracing.begin("/v1/completions", TRACE_ID, PARENT)
    span.end(call, 200)
    tracing.begin("/v1/chat/completions", TRACE_ID, PARENT).end(None, 503)
    tracing.close()

    good, bad = exporter.get_finished_spans()
    assert good.kind is SpanKind.SERVER
    assert f"{good.context.trace_id:032x}".encode() == TRACE_ID
    assert good.parent is not None
    assert f"{good.parent.span_id:016x}" == "b7ad6b7169203331"
    assert f"-{good.context.span_id:016x}-01".encode() in span.trace_parent
    attributes = dict(good.attributes or {})
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.usage.output_tokens"] == 4
    assert attributes["server.address"] == "b"
    assert attributes["tgwui.gateway.continuations"] == 1
    assert [event.name for event in good.events] == ["attempt failed"]
    assert bad.status.status_code is StatusCode.ERROR


def test_without_the_sdk_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A usage error, not a stack."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UsageError, match="otel"):
        OtlpTracing.to("http://collector:4318")

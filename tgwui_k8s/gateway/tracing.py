"""Spans: one per call, with OpenTelemetry's names for generative AI, exported by OTLP.

Off unless `--otlp-endpoint` names a collector. Ids are made and passed on all the same, so that an
engine's log lines and the client's trace belong together; nothing else is done or imported then.
"""

from __future__ import annotations

from typing import Any, Protocol

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.observability.request_ids import child_of

_OPERATIONS = {CHAT: "chat", COMPLETIONS: "text_completion", "/v1/embeddings": "embeddings"}
_PROVIDER = "tgwui-k8s"


class CallSpan(Protocol):
    """One call's span."""

    trace_parent: bytes
    """For the endpoint: the span is the parent of what it does."""

    def end(self, call: Call | None, status: int) -> None:
        """The call is over; None where there was no call to speak of."""
        ...


class Tracing(Protocol):
    """Where spans come from."""

    def begin(self, path: str, trace_id: bytes, trace_parent: bytes) -> CallSpan:
        """A call has arrived with this `traceparent`, its own or a new one."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class _NoSpan:
    __slots__ = ("trace_parent",)

    def __init__(self, trace_parent: bytes) -> None:
        self.trace_parent = trace_parent

    def end(self, call: Call | None, status: int) -> None:
        """Nobody wants to know."""


class NoTracing:
    """Passes traces on and keeps nothing."""

    def begin(self, path: str, trace_id: bytes, trace_parent: bytes) -> CallSpan:
        """See `Tracing`."""
        return _NoSpan(child_of(trace_id, trace_parent[-2:]))

    def close(self) -> None:
        """Nothing to send."""


class OtlpTracing:
    """Spans through OpenTelemetry's SDK, sampled as the caller's trace says."""

    def __init__(self, provider: Any) -> None:
        """`provider`: a `TracerProvider` of the SDK."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("tgwui_k8s.gateway")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> OtlpTracing:
        """Export to a collector's URL, in the background. Raises `UsageError` without the SDK."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UsageError(
                f"--otlp-endpoint needs the extra 'otel' ({error.name} is missing): "
                "pip install 'tgwui-k8s[otel]'"
            ) from None
        provider = TracerProvider(resource=Resource.create({"service.name": "tgwui-k8s-gateway"}))
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def begin(self, path: str, trace_id: bytes, trace_parent: bytes) -> CallSpan:
        """See `Tracing`."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({"traceparent": trace_parent.decode("ascii")})
        span = self._tracer.start_span(f"POST {path}", context=parent, kind=SpanKind.SERVER)
        return _OtlpSpan(span, path)

    def close(self) -> None:
        """See `Tracing`."""
        self._provider.shutdown()


class _OtlpSpan:
    """Attributes are set at the end, when all is known."""

    def __init__(self, span: Any, path: str) -> None:
        context = span.get_span_context()
        self.trace_parent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        ).encode()
        self._span = span
        self._path = path

    def end(self, call: Call | None, status: int) -> None:
        """See `CallSpan`."""
        from opentelemetry.trace import StatusCode

        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "http.route": self._path,
            "http.response.status_code": status,
            "gen_ai.operation.name": _OPERATIONS.get(self._path, "generate_content"),
            "gen_ai.provider.name": _PROVIDER,
        }
        if call is not None:
            attributes |= _attributes(call)
            for endpoint, reason in call.failures:
                self._span.add_event("attempt failed", {"endpoint": endpoint, "reason": reason})
        self._span.set_attributes({key: one for key, one in attributes.items() if one is not None})
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _attributes(call: Call) -> dict[str, Any]:
    return {
        "gen_ai.request.model": call.model,
        "gen_ai.response.model": call.served_model or None,
        "gen_ai.usage.input_tokens": call.num_prompt_tokens,
        "gen_ai.usage.output_tokens": call.num_completion_tokens,
        "server.address": call.endpoint_names[-1] if call.endpoint_names else None,
        "tgwui.gateway.retries": call.num_retries,
        "tgwui.gateway.continuations": call.num_continuations,
        "tgwui.gateway.wait_seconds": call.wait_seconds,
    }

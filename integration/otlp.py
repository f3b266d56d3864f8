"""A small OTLP server (http/protobuf): what other processes hand over to it."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from integration.contract.telemetry import LinkRecord, SpanRecord


class OtlpServer:
    """``spans`` are those that came, in their order; ``endpoint`` is what ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes."""

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                spans.extend(_records(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, kind: str) -> list[SpanRecord]:
        return [span for span in list(self.spans) if span.kind == kind]

    @property
    def names(self) -> Counter[str]:
        """How many spans came of each name."""
        return Counter(span.name for span in self.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _records(request: ExportTraceServiceRequest) -> list[SpanRecord]:
    return [
        _record(span, scope.scope.name)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _record(span: Span, scope: str) -> SpanRecord:
    return SpanRecord(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        scope=scope,
        pid=0,  # not told
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        description=span.status.message or None,
        attributes=_plain(span.attributes),
        links=[LinkRecord(it.trace_id.hex(), it.span_id.hex(), _plain(it.attributes)) for it in span.links],
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        tracestate=span.trace_state,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    """Without those of several values."""
    return {
        it.key: _value(it)
        for it in attributes
        if it.value.WhichOneof("value") not in ("array_value", "kvlist_value")
    }


def _value(attribute: KeyValue) -> Any:
    return getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")

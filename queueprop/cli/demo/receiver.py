"""A small OTLP/HTTP receiver: keeps the spans, and passes every request on to a Collector where there is one."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.util.re import parse_env_headers

from queueprop.testing.tree import Reference, SpanRecord

_KINDS = ("INTERNAL", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")

# Bits 8 and 9 of the flags of spans and links (trace.proto): whether is_remote is known, and what it is.
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200


class Forward(NamedTuple):
    """Where the spans also go."""

    url: str
    headers: Mapping[str, str]
    certificate: str | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Forward | None:
        """By the standard variables OTEL_EXPORTER_OTLP_*; None where no endpoint is set."""

        def variable(name: str) -> str:
            value = environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "")
            return (value or environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")).strip()

        url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
        if not url:
            base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
            if not base:
                return None
            url = base.rstrip("/") + "/v1/traces"
        headers = parse_env_headers(variable("HEADERS"), liberal=True)
        return cls(url, headers, variable("CERTIFICATE") or None)


class Receiver:
    """A context manager: listens from its beginning to its end, on a free port of 127.0.0.1."""

    def __init__(self, forward: Forward | None = None) -> None:
        self._forward = forward
        self._requests: SimpleQueue[tuple[bytes, dict[str, str]] | None] = SimpleQueue()
        self._spans: list[SpanRecord] = []
        self.failure: str | None = None
        """Why spans could not be passed on: the first time."""

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(_Handler):
            take = receiver._take

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._forwarder = threading.Thread(target=self._forward_all, name="forwards-spans", daemon=True)
        self._forwarder.start()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="otlp", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._requests.put(None)
        self._forwarder.join(0 if kind is not None else 10)

    @property
    def endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self) -> list[SpanRecord]:
        """What has come so far."""
        return self._spans.copy()

    def clear(self) -> None:
        """Forgets them."""
        self._spans.clear()

    def _take(self, body: bytes, headers: dict[str, str]) -> None:
        """One request. Raises ValueError when it is not OTLP."""
        content = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        self._spans.extend(records_of(content))
        if self._forward is not None:
            self._requests.put((body, headers))

    def _forward_all(self) -> None:
        while (request := self._requests.get()) is not None:
            assert self._forward is not None
            body, headers = request
            try:
                _post(self._forward, body, headers)
            except (OSError, ValueError) as error:  # ValueError: not a URL
                self.failure = self.failure or f"no spans went to {self._forward.url}: {error}"


def records_of(request: bytes) -> list[SpanRecord]:
    """The spans of an ExportTraceServiceRequest. Raises ValueError when it is not one."""
    try:
        parsed = ExportTraceServiceRequest.FromString(request)
    except Exception as error:  # protobuf has a DecodeError for each of its implementations
        raise ValueError(f"not an export request of OTLP: {error}") from error
    return [
        _record(span, _attributes(group.resource.attributes))
        for group in parsed.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    take: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/traces":
            return self._answer(404)
        kept = {
            name: self.headers[name] for name in ("Content-Type", "Content-Encoding") if name in self.headers
        }
        try:
            type(self).take(body, kept)
        except (ValueError, OSError, EOFError):  # the last two: broken gzip
            return self._answer(400)
        return self._answer(200, ExportTraceServiceResponse().SerializeToString())

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for the demo."""


def _post(forward: Forward, body: bytes, headers: Mapping[str, str]) -> None:
    if not forward.url.startswith(("http://", "https://")):
        raise ValueError("it wants http:// or https://")
    secure = forward.url.startswith("https://")
    context = ssl.create_default_context(cafile=forward.certificate) if secure else None
    request = Request(forward.url, body, {**headers, **forward.headers}, method="POST")
    with urlopen(request, timeout=5, context=context) as response:
        response.read()


def _record(span: Span, resource: Mapping[str, Any]) -> SpanRecord:
    trace_id = span.trace_id.hex()
    parent = span.parent_span_id.hex()
    return SpanRecord(
        name=span.name,
        trace_id=trace_id,
        span_id=span.span_id.hex(),
        kind=_KINDS[span.kind],
        parent=Reference(trace_id, parent, _is_remote(span.flags)) if parent else None,
        links=tuple(
            Reference(link.trace_id.hex(), link.span_id.hex(), _is_remote(link.flags)) for link in span.links
        ),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=_STATUSES[span.status.code],
        status_description=span.status.message,
        attributes=_attributes(span.attributes),
        resource=resource,
    )


def _is_remote(flags: int) -> bool | None:
    return bool(flags & _IS_REMOTE) if flags & _HAS_IS_REMOTE else None


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_value, value.array_value.values))
    return getattr(value, kind) if kind else None

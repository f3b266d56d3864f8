"""The OTLP receiver, with the SDK's own exporter at the other end."""

from __future__ import annotations

import gzip
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from queueprop.cli.demo import receiver as module
from queueprop.cli.demo.receiver import Forward, Receiver, records_of
from queueprop.testing.tree import Reference

REMOTE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has set for its own exporters is nothing for these tests."""
    for name in ("ENDPOINT", "HEADERS", "CERTIFICATE", "TRACES_ENDPOINT", "COMPRESSION"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


def _send(receiver: Receiver, compression: Compression = Compression.NoCompression) -> ReadableSpan:
    provider = TracerProvider(resource=Resource({"service.name": "shop", "process.pid": 71}))
    url = f"{receiver.endpoint}/v1/traces"
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(url, compression=compression)))
    span = provider.get_tracer("tests").start_span(
        "process orders",
        context=trace.set_span_in_context(NonRecordingSpan(REMOTE)),
        kind=SpanKind.CONSUMER,
        links=[Link(REMOTE)],
        attributes={"text": "x", "number": 3, "parts": ("a", "b"), "yes": True},
    )
    span.set_status(trace.Status(trace.StatusCode.ERROR, "no such mailbox"))
    span.end()
    provider.shutdown()
    assert isinstance(span, ReadableSpan)
    return span


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_span_comes_through_whole(compression: Compression) -> None:
    """Everything that is drawn or judged arrives: ids, kind, parent, links, whether they are remote, status."""
    with Receiver() as receiver:
        span = _send(receiver, compression)
        (record,) = receiver.spans()
    reference = Reference(f"{0xABC:032x}", f"{0xDEF:016x}", is_remote=True)
    assert (record.name, record.kind, record.trace_id) == ("process orders", "CONSUMER", f"{0xABC:032x}")
    assert record.parent == reference
    assert record.links == (reference,)
    assert (record.start_ns, record.end_ns) == (span.start_time, span.end_time)
    assert (record.status, record.status_description) == ("ERROR", "no such mailbox")
    assert record.attributes == {"text": "x", "number": 3, "parts": ("a", "b"), "yes": True}
    assert (record.resource["service.name"], record.resource["process.pid"]) == ("shop", 71)


def test_root_without_flags() -> None:
    """An exporter that writes no flags does not tell what is remote, and a root has no parent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

    span = Span(
        name="root",
        trace_id=b"\1" * 16,
        links=[Span.Link(span_id=b"\2" * 8)],
        attributes=[KeyValue(key="none")],
    )
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[span])])]
    )
    (record,) = records_of(request.SerializeToString())
    assert record.parent is None
    assert record.links[0].is_remote is None
    assert record.attributes == {"none": None}


def test_clear() -> None:
    """The second run begins with no spans."""
    with Receiver() as receiver:
        _send(receiver)
        receiver.clear()
        assert receiver.spans() == []


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/metrics", b"", {}, 404),
        ("/v1/traces", b"no protobuf", {}, 400),
        ("/v1/traces", b"no gzip", {"Content-Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"x" * 99, mtime=0)[:-9], {"Content-Encoding": "gzip"}, 400),
    ],
)
def test_anything_else_is_refused(path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    """What is no export request of spans gets an HTTP status, and the receiver goes on."""
    with Receiver() as receiver:
        with pytest.raises(HTTPError) as refusal:
            urlopen(Request(receiver.endpoint + path, body, headers), timeout=5)
        assert refusal.value.code == status
        refusal.value.close()
        _send(receiver)
        assert len(receiver.spans()) == 1


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_are_passed_on(compression: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Collector, it gets the same spans, with the headers that it wants."""
    sent: list[dict[str, str]] = []

    def urlopen_and_tell(request: Request, **options: Any) -> Any:
        sent.append(dict(request.headers))
        return urlopen(request, **options)

    monkeypatch.setattr(module, "urlopen", urlopen_and_tell)
    with Receiver() as collector:
        forward = Forward(f"{collector.endpoint}/v1/traces", {"Api-key": "secret"})
        with Receiver(forward) as receiver:
            _send(receiver, compression)
        assert collector.spans() == receiver.spans() != []
    assert receiver.failure is None
    assert sent[0]["Api-key"] == "secret"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1/traces", "https://127.0.0.1:1/v1/traces", "127.0.0.1:4317"]
)
def test_collector_that_is_not_there(url: str) -> None:
    """The demo goes on; the first failure is kept, to be told in one line."""
    with Receiver(Forward(url, {})) as receiver:
        _send(receiver)
        _send(receiver)
        assert len(receiver.spans()) == 2
    assert receiver.failure is not None
    assert receiver.failure.startswith(f"no spans went to {url}: ")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"ENDPOINT": "http://c:4318/"}, Forward("http://c:4318/v1/traces", {})),
        ({"TRACES_ENDPOINT": "http://c/x", "ENDPOINT": "http://no"}, Forward("http://c/x", {})),
        (
            {"ENDPOINT": "https://c", "HEADERS": "api-key=a%20b", "CERTIFICATE": "/ca.pem"},
            Forward("https://c/v1/traces", {"api-key": "a b"}, "/ca.pem"),
        ),
        (
            {"ENDPOINT": "http://c", "HEADERS": "a=1", "TRACES_HEADERS": "b=2"},
            Forward("http://c/v1/traces", {"b": "2"}),
        ),
    ],
)
def test_collector_by_the_standard_variables(environ: dict[str, str], wanted: Forward | None) -> None:
    """OTEL_EXPORTER_OTLP_* say where the spans also go; those for traces come first."""
    assert Forward.of({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()}) == wanted

"""The OTLP receiver, with the SDK's own exporter at the other end."""

from __future__ import annotations

import gzip
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from starlette.applications import Starlette

from queueprop.cli.demo.processes import until
from queueprop.cli.watch import forward as forward_module
from queueprop.cli.watch import otlp, receiver
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.receiver import Bound, Receiver, is_local, listen
from queueprop.testing.tree import Reference
from tests.otlp import process, request, span

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


def test_clear() -> None:
    """The second run begins with no spans."""
    with Receiver() as receiver:
        _send(receiver)
        receiver.clear()
        assert receiver.spans() == []


PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
ZIPPED = {**PROTOBUF, "Content-Encoding": "gzip"}


def _post(receiver: Receiver, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
    """Status, body and Content-Type of the answer."""
    try:
        response = urlopen(Request(receiver.endpoint + path, body, headers), timeout=60)
    except HTTPError as refusal:
        response = refusal
    with response:
        return response.status, response.read(), response.headers["Content-Type"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "why"),
    [
        ("/v1/traces", b"no protobuf", PROTOBUF, 400, "not an export request"),
        ("/v1/metrics", b"no protobuf", PROTOBUF, 400, "not an export request"),
        ("/v1/logs", b"no protobuf", PROTOBUF, 400, "not an export request"),
        ("/v1/traces", b"{", JSON, 400, "in JSON"),
        ("/v1/traces", b"no gzip", ZIPPED, 400, "broken gzip"),
        ("/v1/traces", gzip.compress(b"x" * 99, mtime=0)[:-9], ZIPPED, 400, "ends too early"),
        ("/v1/traces", gzip.compress(bytes(100 << 20)), ZIPPED, 413, "once it is unpacked"),
        ("/v1/traces", bytes(otlp.LARGEST_REQUEST + 1), PROTOBUF, 413, "send fewer"),
        ("/v1/traces", b"", {"Content-Type": "text/plain"}, 415, "text/plain"),
        ("/v1/traces", b"", {**PROTOBUF, "Content-Encoding": "br"}, 415, "br"),
    ],
)
def test_anything_else_is_refused(
    path: str, body: bytes, headers: dict[str, str], status: int, why: str
) -> None:
    """What is no export request gets a status and a reason, in the form of the request; the receiver goes on."""
    with Receiver() as receiver:
        answered, content, media = _post(receiver, path, body, headers)
        assert answered == status
        if headers is JSON:
            assert why in json.loads(content)["message"]
        else:
            assert why in Status.FromString(content).message
        assert media == (JSON if headers is JSON else PROTOBUF)["Content-Type"]
        assert receiver.store.refused == 1
        _send(receiver)
        assert len(receiver.spans()) == 1


@pytest.mark.parametrize(("path", "method"), [("/v2/traces", "POST"), ("/", "GET"), ("/v1/traces", "GET")])
def test_other_places(path: str, method: str) -> None:
    """There is nothing else at this port."""
    with Receiver() as receiver:
        with pytest.raises(HTTPError) as refusal:
            urlopen(Request(receiver.endpoint + path, method=method), timeout=60)
        refusal.value.close()
        assert refusal.value.code == (404 if path != "/v1/traces" else 405)


@pytest.mark.parametrize("signal", ["metrics", "logs"])
@pytest.mark.parametrize(("headers", "body", "answer"), [(PROTOBUF, b"", b""), (JSON, b"{}", b"{}")])
def test_other_signals_are_taken(signal: str, headers: dict[str, str], body: bytes, answer: bytes) -> None:
    """A program that sends all three gets no error."""
    with Receiver() as receiver:
        expected = 200, answer, headers["Content-Type"]
        assert _post(receiver, f"/v1/{signal}", body, headers) == expected
        assert receiver.store.refused == 0


def test_span_without_ids_is_told() -> None:
    """The others are kept, and the answer says how many are not."""
    with Receiver() as receiver:
        body = request(span("x", 0, 1), span("x", 1, 1)).SerializeToString()
        status, answer, _ = _post(receiver, "/v1/traces", body, PROTOBUF)
        assert status == 200
        assert ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans == 1
        assert (len(receiver.spans()), receiver.store.rejected) == (1, 1)


def test_large_request() -> None:
    """One that others do not wait for is read in a thread, and is answered like the others."""
    with Receiver() as receiver:
        body = request(*(span("x" * 1000, 1, number) for number in range(1, 1001))).SerializeToString()
        for _ in range(2):
            assert _post(receiver, "/v1/traces", body, PROTOBUF)[0] == 200
        assert receiver.store.received == 1000


def test_too_much_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender is asked to come again, which exporters do for a 503."""
    monkeypatch.setattr(receiver, "_MOST_IN_FLIGHT", 10)
    with Receiver() as one:
        status, content, _ = _post(one, "/v1/traces", bytes(11), PROTOBUF)
        assert (status, one.store.refused) == (503, 1)
        assert "send it again" in Status.FromString(content).message
        assert _post(one, "/v1/metrics", b"", PROTOBUF)[0] == 200


def _started(one: Receiver) -> socket.socket:
    """A request that has begun, and has not come whole."""
    connection = socket.create_connection(("127.0.0.1", urlsplit(one.endpoint).port or 0), timeout=60)
    head = "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
    connection.sendall(f"{head}Content-Length: 100\r\n\r\nx".encode())
    return connection


def test_request_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without an end: 408, and what it had sent is free again."""
    monkeypatch.setattr(receiver, "_PATIENCE", 0.1)
    with Receiver() as one, _started(one) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert one._in_flight == 0


def test_sender_that_goes_away() -> None:
    """Nobody is there for the answer; it counts as refused, and the receiver goes on."""
    with Receiver() as one:
        _started(one).close()
        until("the refusal", lambda: one.store.refused == 1, 60)
        _send(one)
        assert len(one.spans()) == 1


def test_enormous_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is read to its end, so that its sender sees the answer, but not without a bound."""
    monkeypatch.setattr(receiver, "_MOST_READ", 100)
    monkeypatch.setattr(receiver, "LARGEST_REQUEST", 10)
    with Receiver() as one:
        assert _post(one, "/v1/traces", bytes(50), PROTOBUF)[0] == 413
        assert _post(one, "/v1/traces", bytes(500), PROTOBUF)[0] == 413


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:4318", 200), ("127.0.0.1", 200), ("evil.example:4318", 400), ("", 400)]
)
def test_host(host: str, status: int) -> None:
    """A page of another site, whose name was made to point here, writes nothing."""
    with Receiver() as one:
        assert _post(one, "/v1/logs", b"", {**PROTOBUF, "Host": host})[0] == status


def test_host_where_others_are_to_send() -> None:
    """Who listens for other machines is called by any name."""
    with Receiver(host="0.0.0.0") as one:
        assert one.endpoint.startswith("http://127.0.0.1:")
        assert _post(one, "/v1/logs", b"", {**PROTOBUF, "Host": "collector.internal:4318"})[0] == 200


def test_nobody_else_may_read() -> None:
    """No answer allows the page of another site anything, nor does it to one that asks before."""
    with Receiver() as one:
        asked = Request(
            f"{one.endpoint}/v1/traces",
            headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
            method="OPTIONS",
        )
        with pytest.raises(HTTPError) as refusal:
            urlopen(asked, timeout=60)
        refusal.value.close()
        assert not [name for name in refusal.value.headers if name.lower().startswith("access-control")]


def test_port_that_is_taken() -> None:
    """One line says which."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            Receiver(port=port)
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid:1"):
        Receiver(host="no.such.host.invalid", port=1)


def test_ipv6() -> None:
    """Its address in a URL has brackets."""
    try:
        bound = listen("::1", 0)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with bound:
        one = Bound(Starlette(), bound)
        assert one.url == f"http://[::1]:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("x", False),
    ],
)
def test_local(host: str, local: bool) -> None:
    """An address of this machine alone."""
    assert is_local(host) is local


def test_all_of_many_senders_is_kept() -> None:
    """Whatever was answered with 200 is there: by many at the same time, zipped or not."""
    with Receiver() as one, ThreadPoolExecutor(8) as pool:

        def send(number: int) -> int:
            body = request(*(process(number, it) for it in range(1, 51))).SerializeToString()
            zipped = number % 2
            return _post(
                one, "/v1/traces", gzip.compress(body) if zipped else body, ZIPPED if zipped else PROTOBUF
            )[0]

        assert list(pool.map(send, range(1, 41))) == [200] * 40
        assert one.store.received == one.store.orphaned == 40 * 50


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_are_passed_on(compression: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Collector, it gets the same spans, with the headers that it wants."""
    sent: list[dict[str, str]] = []

    def urlopen_and_tell(request: Request, **options: Any) -> Any:
        sent.append(dict(request.headers))
        return urlopen(request, **options)

    monkeypatch.setattr(forward_module, "urlopen", urlopen_and_tell)
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

"""What requests of OTLP hold, and what is no request."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from queueprop.cli.watch import otlp
from queueprop.cli.watch.otlp import JSON, PROTOBUF, Refused
from queueprop.testing.tree import Reference
from tests.otlp import LOCAL, REMOTE, key_values, publish, request, span

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


def as_json(message: Any) -> bytes:
    """As OTLP wants it: protobuf's own JSON, with ids in hex."""

    def in_hex(document: Any) -> Any:
        if isinstance(document, list):
            return [in_hex(it) for it in document]
        if not isinstance(document, dict):
            return document
        return {
            key: base64.b64decode(it).hex() if key in ("traceId", "spanId", "parentSpanId") else in_hex(it)
            for key, it in document.items()
        }

    return json.dumps(in_hex(json_format.MessageToDict(message, use_integers_for_enums=True))).encode()


REQUEST = request(
    span("root", TRACE, SPAN, "SERVER", at=5),
    publish(TRACE, 2, parent=SPAN, flags=LOCAL, links=[(7, 8, REMOTE)], error=True),
    **{"process.pid": 71},
)


@pytest.mark.parametrize(
    ("media", "body"), [(PROTOBUF, REQUEST.SerializeToString()), (JSON, as_json(REQUEST))]
)
def test_spans_are_read(media: str, body: bytes) -> None:
    """Protobuf and JSON alike: ids, kind, parent, links, what is remote, times, status, attributes, resource."""
    found = otlp.traces(body, media)
    root, child = (otlp.record(it.span, otlp.resource_attributes(it.resource)) for it in found.spans)
    assert (root.name, root.kind, root.parent, root.status) == ("root", "SERVER", None, "UNSET")
    assert root.key == (f"{TRACE:032x}", f"{SPAN:016x}")
    assert (root.start_ns, root.end_ns) == (5_000_000, 6_000_000)
    assert child.parent == Reference(f"{TRACE:032x}", f"{SPAN:016x}", is_remote=False)
    assert child.links == (Reference(f"{7:032x}", f"{8:016x}", is_remote=True),)
    assert (child.kind, child.status, child.status_description) == ("PRODUCER", "ERROR", "broken")
    assert child.attributes["messaging.destination.name"] == "orders"
    assert child.resource == {"service.name": "shop", "process.pid": 71}


def test_all_kinds_of_values() -> None:
    """Arrays, maps, what is empty; a span without flags, an end, or with a kind that is not known."""
    nested = KeyValueList(values=key_values({"a": 1}))
    one = span("x", 1, 1, links=[(1, 2, 0)])
    one.ClearField("end_time_unix_nano")
    one.kind = 99  # type: ignore[assignment]
    one.attributes.extend(
        [
            KeyValue(key="none"),
            KeyValue(key="map", value=AnyValue(kvlist_value=nested)),
            KeyValue(key="list", value=AnyValue(array_value=ArrayValue(values=[AnyValue(bool_value=True)]))),
        ]
    )
    record = otlp.record(one, {})
    assert record.attributes == {"none": None, "map": {"a": 1}, "list": (True,)}
    assert (record.kind, record.end_ns, record.links[0].is_remote) == ("INTERNAL", None, None)


@pytest.mark.parametrize(
    ("header", "media"),
    [
        ("application/x-protobuf", PROTOBUF),
        ("Application/X-Protobuf; charset=utf-8", PROTOBUF),
        ("application/protobuf", PROTOBUF),
        ("application/json", JSON),
    ],
)
def test_content_types(header: str, media: str) -> None:
    """What exporters write."""
    assert otlp.media_type(header) == media


@pytest.mark.parametrize("header", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_other_content_types_are_refused(header: str) -> None:
    """415: among them all that the page of another site can send without asking."""
    with pytest.raises(Refused, match="is taken") as refused:
        otlp.media_type(header)
    assert refused.value.status == 415


@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "GZIP"])
def test_encodings(encoding: str) -> None:
    """gzip, also of several members, or none."""
    body = b"x" * 1000
    sent = gzip.compress(body[:500]) + gzip.compress(body[500:]) if encoding.lower() == "gzip" else body
    assert otlp.unpacked(sent, encoding) == body


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"x", "br", 415),
        (b"no gzip", "gzip", 400),
        (gzip.compress(b"x" * 99)[:-9], "gzip", 400),
        (gzip.compress(b"x" * 99) + b"more", "gzip", 400),
        (gzip.compress(bytes(otlp.LARGEST_REQUEST + 1)), "gzip", 413),
        (gzip.compress(bytes(otlp.LARGEST_REQUEST)) + gzip.compress(b"x"), "gzip", 413),
    ],
)
def test_broken_encodings_are_refused(body: bytes, encoding: str, status: int) -> None:
    """Broken gzip is a 400, a bomb a 413 (of one member or of several), another encoding a 415."""
    with pytest.raises(Refused) as refused:
        otlp.unpacked(body, encoding)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("media", "body"),
    [
        (PROTOBUF, b"no protobuf"),
        (JSON, b"no json"),
        (JSON, b"[]"),
        (JSON, b'"x"'),
        (JSON, b"\xff"),
        (JSON, b'{"resourceSpans": 3}'),
        (JSON, b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}'),
        (JSON, b"[" * 100_000),
        (JSON, b'{"resourceSpans": ' + b'[{"x":' * 5000 + b"1" + b"}]" * 5000 + b"}"),
        (PROTOBUF, ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()[:-1]),
    ],
)
def test_no_request(media: str, body: bytes) -> None:
    """A 400 for what is no export request, however deep it is nested."""
    with pytest.raises(Refused, match="not an export request of OTLP") as refused:
        otlp.traces(body, media)
    assert refused.value.status == 400


def test_a_name_that_is_no_text() -> None:
    """Bytes that are not UTF-8 where text has to be: refused, and not found out later."""
    body = request(span("abc", 1, 1)).SerializeToString().replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(Refused):
        otlp.traces(body, PROTOBUF)


def test_too_many_spans() -> None:
    """A span may be two bytes long, and a hundred times that once it is read: they are counted before."""
    spans = ScopeSpans(spans=[Span()] * (otlp.MOST_SPANS + 1))
    body = ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[spans])]).SerializeToString()
    with pytest.raises(Refused, match="100001 spans") as refused:
        otlp.traces(body, PROTOBUF)
    assert refused.value.status == 413


def test_some_are_rejected() -> None:
    """A span without valid ids, or that is too large, is left out; the others are taken, and the answer counts."""
    bad = [span("x", 0, 1), span("x", 1, 0), span("x", 1, 1), span("x", 1, 1), span("x", 1, 1, parent=1)]
    bad[2].trace_id, bad[3].span_id, bad[4].parent_span_id = b"short", b"", b"short"
    large = span("x" * otlp.LARGEST_SPAN, 1, 2)
    found = otlp.traces(request(span("good", 1, 1), *bad, large).SerializeToString(), PROTOBUF)
    assert [it.span.name for it in found.spans] == ["good"]
    assert found.rejected == 6
    answer = ExportTraceServiceResponse.FromString(
        otlp.answer("traces", PROTOBUF, found.rejected, found.why)
    ).partial_success
    assert (answer.rejected_spans, answer.error_message) == (6, "a span or its resource is too large")
    huge = otlp.traces(
        request(span("x", 1, 1), service="x" * otlp.LARGEST_RESOURCE).SerializeToString(), PROTOBUF
    )
    assert (huge.spans, huge.rejected) == ([], 1)


def test_answers() -> None:
    """In the form of the request; nothing is in one that was taken whole."""
    assert otlp.answer("logs", PROTOBUF) == b""
    assert otlp.answer("metrics", JSON) == b"{}"
    partial = json.loads(otlp.answer("traces", JSON, 2, "why"))
    assert partial == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "why"}}


@pytest.mark.parametrize(("status", "code"), [(400, 3), (415, 3), (413, 8), (503, 14)])
def test_refusals(status: int, code: int) -> None:
    """A google.rpc.Status, as OTLP wants it."""
    refused = Refused(status, "because")
    assert Status.FromString(otlp.refusal(refused, PROTOBUF)) == Status(code=code, message="because")
    assert json.loads(otlp.refusal(refused, JSON)) == {"code": code, "message": "because"}


def metrics(*points: NumberDataPoint, temporality: int = 2, name: str = "") -> ExportMetricsServiceRequest:
    counter = Sum(data_points=points, aggregation_temporality=temporality)  # type: ignore[arg-type]
    metric = Metric(name=name or "queueprop.context.missing", sum=counter)
    group = ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=[metric])])
    group.resource.attributes.extend(key_values({"service.name": "mailer", "process.pid": 7}))
    return ExportMetricsServiceRequest(resource_metrics=[group])


def missing(value: int, reason: str = "missing", start: int = 1, name: str = "orders") -> NumberDataPoint:
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": name,
        "queueprop.reason": reason,
    }
    return NumberDataPoint(as_int=value, start_time_unix_nano=start, attributes=key_values(attributes))


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
def test_metrics(media: str) -> None:
    """The counter of messages without a context is read, by destination and reason; other metrics are not."""
    counted = metrics(missing(3), missing(2, "malformed"), NumberDataPoint(as_double=1.5), temporality=1)
    for message, length in ((counted, 3), (metrics(missing(3), name="other"), 0)):
        body = message.SerializeToString() if media == PROTOBUF else as_json(message)
        points = otlp.missing_contexts(body, media)
        assert len(points) == length
    points = otlp.missing_contexts(counted.SerializeToString(), PROTOBUF)
    assert [(it.destination, it.reason, it.value, it.is_delta) for it in points] == [
        (("rabbitmq", "orders"), "missing", 3, True),
        (("rabbitmq", "orders"), "malformed", 2, True),
        (("", "(unnamed)"), "", 0, True),
    ]
    assert len({it.series for it in points}) == 3


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_no_metrics_and_no_logs(signal: str) -> None:
    """These are looked at, too, before they are answered."""
    otlp.check(b"", PROTOBUF, signal)
    otlp.check(b"{}", JSON, signal)
    for media in (PROTOBUF, JSON):
        with pytest.raises(Refused):
            otlp.check(b"junk", media, signal)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"destination.name": "orders"}, "orders"),
        ({"destination.name": "orders.7", "destination.template": "orders.{id}"}, "orders.{id}"),
        ({"destination.name": "amq.gen-7", "destination.temporary": True}, "(temporary)"),
        ({"destination.name": "amq.gen-7", "destination.anonymous": True}, "(temporary)"),
        ({}, "(unnamed)"),
    ],
)
def test_destinations(attributes: dict[str, Any], name: str) -> None:
    """Few names: a template's, one for all that are temporary."""
    assert otlp.destination_of({f"messaging.{key}": it for key, it in attributes.items()}) == ("", name)

"""Requests of OTLP/HTTP, from their bytes to what is in them. They are input: bounded, and refused with a reason."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from queueprop.engine import semconv
from queueprop.testing.tree import Reference, SpanRecord

PROTOBUF, JSON = "application/x-protobuf", "application/json"

LARGEST_REQUEST = 16 << 20
"""Bytes, as sent and unpacked alike."""

MOST_SPANS = 100_000
"""Of one request: empty ones are two bytes each, and hundreds once they are read."""

LARGEST_SPAN, LARGEST_RESOURCE = 1 << 20, 32 << 10
"""Bytes. What has more is not taken, and the answer says so."""

_REQUESTS: Mapping[str, tuple[type[Message], type[Message]]] = {
    "traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}
SIGNALS = tuple(_REQUESTS)

_KINDS = ("INTERNAL", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")

# Bits 8 and 9 of the flags of spans and links (trace.proto): whether is_remote is known, and what it is.
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

# google.rpc.Code, which the conventions want in the body of a refusal.
_INVALID_ARGUMENT, _UNAVAILABLE, _RESOURCE_EXHAUSTED = 3, 14, 8
_CODES = {413: _RESOURCE_EXHAUSTED, 503: _UNAVAILABLE}


class Refused(Exception):
    """A request that is not taken: the status of HTTP, and what is wrong with it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class RawSpan(NamedTuple):
    """A span as it came, and as it is read."""

    span: Span
    raw: bytes
    resource: bytes


class Traces(NamedTuple):
    """What a request of traces held."""

    spans: list[RawSpan]
    rejected: int = 0
    why: str = ""
    """Of the rejected: what is wrong with the last of them."""


class Missing(NamedTuple):
    """One point of the counter of messages without a usable context."""

    series: tuple[object, ...]
    """What tells the counter's series from others, restarts included."""
    destination: tuple[str, str]
    reason: str
    value: int
    is_delta: bool


def media_type(header: str) -> str:
    """The one of the two that a Content-Type names. Raises Refused (415)."""
    name = header.partition(";")[0].strip().lower()
    if name in (PROTOBUF, "application/protobuf"):
        return PROTOBUF
    if name == JSON:
        return JSON
    raise Refused(415, f"Content-Type is {name or 'missing'}: {PROTOBUF} or {JSON} is taken")


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding. Raises Refused: 415, 400 for broken gzip, 413 for too much in it."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Refused(415, f"Content-Encoding is {encoding}: gzip or none is taken")
    parts: list[bytes] = []
    left = LARGEST_REQUEST
    try:
        while body:  # gzip may have several members
            unpacking = zlib.decompressobj(wbits=31)
            parts.append(unpacking.decompress(body, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise Refused(413, f"more than {LARGEST_REQUEST} bytes once it is unpacked")
            if not unpacking.eof:
                raise Refused(400, "broken gzip: it ends too early")
            body = unpacking.unused_data
    except zlib.error as error:
        raise Refused(400, f"broken gzip: {error}") from error
    return b"".join(parts)


def traces(content: bytes, media: str) -> Traces:
    """The spans of an export request. Raises Refused (400, 413) when it is none.

    A span without valid ids, or one that is too large, is rejected alone: the answer says so.
    """
    raw = content if media == PROTOBUF else _from_json(content, "traces").SerializeToString()
    found: list[RawSpan] = []
    rejected, why = 0, ""
    for resource, spans in _groups(raw):
        resource_attributes(resource)
        for one in spans:
            if len(one) > LARGEST_SPAN or len(resource) > LARGEST_RESOURCE:
                rejected, why = rejected + 1, "a span or its resource is too large"
                continue
            span = _parsed(Span, one)
            wrong = _wrong_ids(span)
            if wrong is None:
                found.append(RawSpan(span, one, resource))
            else:
                rejected, why = rejected + 1, wrong
    return Traces(found, rejected, why)


def missing_contexts(content: bytes, media: str) -> list[Missing]:
    """What an export request of metrics tells of messages without a usable context. Raises Refused when it is none."""
    request = _request(content, media, "metrics")
    return [
        point
        for group in request.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
        if metric.name == semconv.CONTEXT_MISSING
        for point in _points(metric.sum, attributes_of(group.resource.attributes))
    ]


def check(content: bytes, media: str, signal: str) -> None:
    """Raises Refused when this is no export request of that signal."""
    _request(content, media, signal)


def answer(signal: str, media: str, rejected: int = 0, why: str = "") -> bytes:
    """The body that says that it was taken, or how many of its spans were not."""
    response: Any = _REQUESTS[signal][1]()
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = why
    return _written(response, media)


def refusal(refused: Refused, media: str) -> bytes:
    """The body that says why it was not taken, as OTLP wants it: a google.rpc.Status."""
    status = Status(code=_CODES.get(refused.status, _INVALID_ARGUMENT), message=refused.why)
    return _written(status, media)


def resource_attributes(resource: bytes) -> Mapping[str, Any]:
    """Those of a resource as it came. Raises Refused (400) when it is none."""
    if len(resource) > LARGEST_RESOURCE:
        return {}
    return _resource_attributes(resource)


@lru_cache(maxsize=256)  # a process has one, and sends it with each request
def _resource_attributes(resource: bytes) -> Mapping[str, Any]:
    return attributes_of(_parsed(Resource, resource).attributes)


def record(span: Span, resource: Mapping[str, Any]) -> SpanRecord:
    """The span as it is drawn and judged."""
    trace_id = span.trace_id.hex()
    parent = span.parent_span_id.hex()
    return SpanRecord(
        name=span.name,
        trace_id=trace_id,
        span_id=span.span_id.hex(),
        kind=kind_of(span),
        parent=Reference(trace_id, parent, is_remote(span.flags)) if parent else None,
        links=tuple(
            Reference(link.trace_id.hex(), link.span_id.hex(), is_remote(link.flags)) for link in span.links
        ),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano or None,
        status=_at(_STATUSES, span.status.code),
        status_description=span.status.message,
        attributes=attributes_of(span.attributes),
        resource=resource,
    )


def kind_of(span: Span) -> str:
    return _at(_KINDS, span.kind)


def is_remote(flags: int) -> bool | None:
    """Whether a parent or a link came from a carrier; None where the exporter does not tell."""
    return bool(flags & _IS_REMOTE) if flags & _HAS_IS_REMOTE else None


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as Python has them."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _at(names: tuple[str, ...], number: int) -> str:
    # Enumerations of proto3 are open: any number may come.
    return names[number] if 0 <= number < len(names) else names[0]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_value, value.array_value.values))
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _groups(raw: bytes) -> Iterator[tuple[bytes, Iterable[bytes]]]:
    """The bytes of each resource with those of its spans."""
    request: Any = _parsed(_Request, raw)
    count = sum(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)
    if count > MOST_SPANS:
        raise Refused(413, f"{count} spans: at most {MOST_SPANS} are taken at once")
    for group in request.resource_spans:
        yield group.resource, (span for scope in group.scope_spans for span in scope.spans)


def _wrong_ids(span: Span) -> str | None:
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return "a span has no valid trace id"
    if len(span.span_id) != 8 or not any(span.span_id):
        return "a span has no valid span id"
    if len(span.parent_span_id) not in (0, 8):
        return "a span's parent has no valid span id"
    return None


def _points(counter: Any, resource: Mapping[str, Any]) -> Iterator[Missing]:
    is_delta = counter.aggregation_temporality == 1
    for point in counter.data_points:
        attributes = attributes_of(point.attributes)
        destination = destination_of(attributes)
        reason = str(attributes.get(semconv.REASON, ""))
        process = tuple(str(resource.get(key)) for key in PROCESS)
        series = (*process, point.start_time_unix_nano, destination, reason, *map(str, attributes.values()))
        yield Missing(series, destination, reason, _number(point), is_delta)


PROCESS = ("service.name", "service.instance.id", "process.pid")
"""The attributes of a resource that tell one process from another."""


def _number(point: NumberDataPoint) -> int:
    return point.as_int if point.WhichOneof("value") == "as_int" else 0


def destination_of(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """The system and the name by which a destination is counted: one name for all that are temporary or anonymous."""
    name = attributes.get(semconv.DESTINATION_TEMPLATE)
    if not name and (
        attributes.get(semconv.DESTINATION_TEMPORARY) or attributes.get(semconv.DESTINATION_ANONYMOUS)
    ):
        name = "(temporary)"
    name = name or attributes.get(semconv.DESTINATION_NAME) or "(unnamed)"
    return str(attributes.get(semconv.SYSTEM, "")), str(name)


def _request(content: bytes, media: str, signal: str) -> Any:
    if media == JSON:
        return _from_json(content, signal)
    return _parsed(_REQUESTS[signal][0], content)


def _parsed(message: Any, content: bytes) -> Any:
    try:
        return message.FromString(content)
    except Exception as error:  # protobuf has a DecodeError for each of its implementations
        raise Refused(400, f"not an export request of OTLP: {error}") from error


def _from_json(content: bytes, signal: str) -> Message:
    try:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise TypeError("it is no object")
        document = _in_base64(document)
        return json_format.ParseDict(document, _REQUESTS[signal][0](), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise Refused(400, f"not an export request of OTLP in JSON: {error}") from error


_IDS = ("traceId", "spanId", "parentSpanId")


def _in_base64(document: Any) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's wants base64. Raises ValueError for an id that is not hex."""
    if isinstance(document, list):
        return [_in_base64(one) for one in document]
    if not isinstance(document, dict):
        return document
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode()
        if key in _IDS and isinstance(value, str)
        else _in_base64(value)
        for key, value in document.items()
    }


def _written(message: Message, media: str) -> bytes:
    if media == JSON:
        return json_format.MessageToJson(message, indent=None).encode()
    return message.SerializeToString()


def _shell() -> Any:
    """ExportTraceServiceRequest, with each resource and span as bytes: read one by one, they are kept as they came."""
    file = descriptor_pb2.FileDescriptorProto(name="queueprop.proto", package="queueprop", syntax="proto3")
    _add_type(file, "Scope", spans=(2, True, None))
    _add_type(file, "Group", resource=(1, False, None), scope_spans=(2, True, "Scope"))
    _add_type(file, "Request", resource_spans=(1, True, "Group"))
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("queueprop.Request"))


def _add_type(
    file: descriptor_pb2.FileDescriptorProto, type_name: str, **fields: tuple[int, bool, str | None]
) -> None:
    """A message type; each field with its number, whether it is repeated, and its type (None: bytes)."""
    field_type = descriptor_pb2.FieldDescriptorProto
    added = file.message_type.add(name=type_name)
    for name, (number, repeated, of) in fields.items():
        added.field.add(
            name=name,
            number=number,
            label=field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL,
            type=field_type.TYPE_MESSAGE if of else field_type.TYPE_BYTES,
            type_name=f".queueprop.{of}" if of else None,
        )


_Request = _shell()

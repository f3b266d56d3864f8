"""Requests of OTLP, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

REMOTE, LOCAL = 0x300, 0x100
"""The flags of a parent or link that came from a carrier, and of one that did not."""

KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}


def key_values(attributes: Mapping[str, Any]) -> list[KeyValue]:
    fields = {str: "string_value", int: "int_value", bool: "bool_value"}
    return [KeyValue(key=key, value=AnyValue(**{fields[type(it)]: it})) for key, it in attributes.items()]


def span(
    name: str,
    trace_id: int,
    span_id: int,
    kind: Any = "INTERNAL",
    parent: Any = None,
    flags: Any = 0,
    links: Any = (),
    at: Any = 0,
    error: Any = False,
    **attributes: Any,
) -> Span:
    """A span that begins at so many ms and lasts one. Links are trace id, span id and flags.

    What is no parameter is an attribute; their names have dots, and so the parameters no types that checkers hold to.
    """
    return Span(
        name=name,
        trace_id=trace_id.to_bytes(16, "big"),
        span_id=span_id.to_bytes(8, "big"),
        parent_span_id=b"" if parent is None else parent.to_bytes(8, "big"),
        kind=KINDS[kind],  # type: ignore[arg-type]
        flags=flags,
        start_time_unix_nano=at * 1_000_000,
        end_time_unix_nano=(at + 1) * 1_000_000,
        links=[
            Span.Link(trace_id=trace.to_bytes(16, "big"), span_id=it.to_bytes(8, "big"), flags=of_link)
            for trace, it, of_link in links
        ],
        status=Status(code=2, message="broken") if error else None,  # type: ignore[arg-type]
        attributes=key_values(attributes),
    )


def publish(trace_id: int, span_id: int, to: Any = "orders", **fields: Any) -> Span:
    messaging = {"messaging.system": "rabbitmq", "messaging.destination.name": to}
    return span(f"publish {to}", trace_id, span_id, "PRODUCER", **{**messaging, **fields})


def process(trace_id: int, span_id: int, of: Any = "orders", **fields: Any) -> Span:
    messaging = {"messaging.system": "rabbitmq", "messaging.destination.name": of}
    return span(f"process {of}", trace_id, span_id, "CONSUMER", **{**messaging, **fields})


def request(*spans: Span, service: Any = "shop", **resource: Any) -> ExportTraceServiceRequest:
    attributes = key_values({"service.name": service, **resource})
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(resource=Resource(attributes=attributes), scope_spans=[ScopeSpans(spans=spans)])
        ]
    )

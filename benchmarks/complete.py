"""Assertions that what was timed is complete: spans as exported, the headers written, and what a handler runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind

Spans = Sequence[ReadableSpan]
Ids = tuple[int, int]
"""Of a trace, and of a span in it."""

KINDS = {"send": SpanKind.PRODUCER, "process": SpanKind.CONSUMER}
NAMES = {"send": "publish", "process": "process"}


class Current(NamedTuple):
    """What a handler runs in."""

    span: SpanContext
    baggage: Mapping[str, object]


def current() -> Current:
    return Current(trace.get_current_span().get_span_context(), baggage.get_all())


def exported() -> Callable[[], Spans]:
    """From now on the global provider exports to memory; gives the spans since it was last asked."""
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def since() -> Spans:
        found = exporter.get_finished_spans()
        exporter.clear()
        return found

    return since


class Wanted(NamedTuple):
    """What a span is to be.

    ``creation`` is its parent: of a process, the message's creation context. ``is_carried`` says that it is current in
    the handler and, of a send, in the headers.
    """

    operation: str
    attributes: Mapping[str, Any]
    creation: Ids
    is_sampled: bool = True
    is_carried: bool = True
    is_linked: bool = False
    baggage: Mapping[str, str] = {}

    def check(self, spans: Spans | None, inside: Current, headers: Mapping[str, str]) -> None:
        """``spans`` are those that were exported; None without an SDK. Raises AssertionError."""
        if spans is None or not self.is_sampled:
            assert not spans, f"{len(spans or ())} spans where none is recorded"
            span = None
        else:
            assert len(spans) == 1, f"{len(spans)} spans of one {self.operation}"
            span = spans[0]
            self._check_span(span)
        if self.is_carried:
            self._check_carried(span, inside, headers)

    def _check_span(self, span: ReadableSpan) -> None:
        assert span.kind is KINDS[self.operation], span.kind
        assert span.name == f"{NAMES[self.operation]} {self.attributes['messaging.destination.name']}", (
            span.name
        )
        missing = {
            key: value for key, value in self.attributes.items() if (span.attributes or {}).get(key) != value
        }
        assert not missing, f"{span.name} lacks {missing}"
        assert span.parent is not None, f"{span.name} is a root"
        assert ids(span.parent) == self.creation, f"{span.name} has another parent"
        links = [ids(link.context) for link in span.links]
        assert links == ([self.creation] if self.is_linked else []), f"{span.name} links to {links}"

    def _check_carried(self, span: ReadableSpan | None, inside: Current, headers: Mapping[str, str]) -> None:
        assert inside.span.trace_id == self.creation[0], "the handler runs in another trace"
        assert inside.span.trace_flags.sampled == self.is_sampled
        if span is not None:
            assert ids(inside.span) == ids(span.context), "the handler runs outside of the span"
        assert dict(inside.baggage) == dict(self.baggage), inside.baggage
        if self.operation == "send":
            assert headers["traceparent"] == traceparent(inside.span), headers
            assert len(headers.get("baggage", "").split(",")) == max(1, len(self.baggage)), headers


def ids(found: SpanContext | None) -> Ids:
    assert found is not None
    return found.trace_id, found.span_id


def traceparent(found: SpanContext) -> str:
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

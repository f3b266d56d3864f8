"""What the tests of the engine share: providers of a test's own, and short words for what came out of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import baggage
from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, SpanContext, get_current_span

from queueprop import Destination, Settings
from queueprop.engine.engine import Engine, engine_for
from queueprop.testing import CapturedSpans
from queueprop.wire.propagation import SPAN_KEY

ORDERS = Destination(system="my-queue", name="orders")
OTHERS = Destination(system="my-queue", name="others")

Ids = tuple[int, int]
"""A trace id and a span id."""

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
OTHER_TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
CREATION = (TRACE, 0xB7AD6B7169203331)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def is_since(began: float, seconds: float, found: float) -> bool:
    """Whether it is that many seconds, and those that have passed since then (``time.time()``) at most: however long
    the machine has taken.
    """
    return seconds - 0.01 <= found <= seconds + time.time() - began + 0.01


def traceparent(trace_id: int = TRACE, span_id: int = CREATION[1], flags: str = "01") -> str:
    return f"00-{trace_id:032x}-{span_id:016x}-{flags}"


class Telemetry:
    """Settings whose spans and measurements land here, and nowhere else."""

    def __init__(self, spans: CapturedSpans) -> None:
        self.spans = spans
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def settings(self, **given: Any) -> Settings:
        """Without metrics, as most programs run."""
        defaults = {"tracer_provider": self.spans.tracer_provider, "meter_provider": NoOpMeterProvider()}
        return Settings(**{**defaults, **given})

    def measured(self, **given: Any) -> Settings:
        return self.settings(**{"meter_provider": self.meter_provider, **given})

    def engine(self, **given: Any) -> Engine:
        return engine_for(self.settings(**given))

    def only(self, name: str | None = None) -> ReadableSpan:
        """The one span that ended, of this name or at all."""
        found = list(self.spans) if name is None else self.spans.named(name)
        assert len(found) == 1, self.spans.tree()
        return found[0]

    @contextmanager
    def current(self, name: str = "ambient") -> Iterator[Span]:
        """A span of somebody else's that is current: a poller's, a request's."""
        tracer = self.spans.tracer_provider.get_tracer("test")
        with tracer.start_as_current_span(name) as span:
            yield span

    def points(self, metric: str) -> list[Any]:
        """The data points of one metric, since the last time that any was asked for."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]


def ids(span: ReadableSpan | Span | SpanContext | None) -> Ids | None:
    """Trace id and span id of a span, ended or not, or of a context; None where there is none."""
    if span is None:
        return None
    if isinstance(span, ReadableSpan):
        context: SpanContext | None = span.context
    elif isinstance(span, SpanContext):
        context = span
    else:
        context = span.get_span_context()
    return None if context is None or not context.is_valid else (context.trace_id, context.span_id)


def parent(span: ReadableSpan) -> Ids | None:
    return ids(span.parent)


def links(span: ReadableSpan) -> list[Ids | None]:
    return [ids(link.context) for link in span.links]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def current_ids() -> Ids | None:
    return ids(get_current_span())


def written(headers: dict[str, Any]) -> Ids:
    """The ids that a traceparent on the wire names."""
    version, trace_id, span_id, flags = headers["traceparent"].split("-")
    assert (version, len(flags)) == ("00", 2)
    return int(trace_id, 16), int(span_id, 16)


@contextmanager
def baggage_of_ours(**members: str) -> Iterator[None]:
    """Baggage that is current around the code under test."""
    context: Context | None = None
    for name, value in members.items():
        context = baggage.set_baggage(name, value, context)
    token = attach(context if context is not None else Context())
    try:
        yield
    finally:
        detach(token)


def span_in(context: Context) -> Ids | None:
    span = context.get(SPAN_KEY)
    return ids(span) if isinstance(span, Span) else None

"""send_span and process_span in one mode: ``python -m benchmarks.core MODE ROUNDS`` prints a report as JSON.

Each is compared with a bare SDK span (``start_span`` and ``end`` with the same attributes and parent: nothing is read
from headers, written to them, linked, or made current) and with what OpenTelemetry documents to do by hand.
Providers are the global ones, samplers the default; no exporter is there, which costs everybody the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

import queueprop
from benchmarks import complete, measure
from queueprop.engine import semconv

MODES = ("recorded", "sampled out", "no SDK", "three baggage entries", "metrics on")
OPERATIONS = ("send", "process")
BARE, BY_HAND, OURS = "bare SDK span", "by hand", "queueprop"

ORDERS = queueprop.Destination(
    system="rabbitmq", name="orders", server_address="broker.example", server_port=5672
)
SEND = dict(ORDERS.labels(semconv.SEND, "publish").attributes)
PROCESS = dict(ORDERS.labels(semconv.PROCESS, "process").attributes)

TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
BAGGAGE = {"tenant": "acme", "region": "eu-central", "priority": "high"}

Headers = dict[str, str]
Handler = Callable[[], object]
Candidate = Callable[[Headers, Handler], None]
"""Publishes or handles one message with these headers; its span, if it is made current, is around the handler."""


def nothing() -> None:
    """The handler that is timed."""


class Mode(NamedTuple):
    name: str

    @property
    def is_sampled(self) -> bool:
        return self.name != "sampled out"

    @property
    def baggage(self) -> dict[str, str]:
        return BAGGAGE if self.name == "three baggage entries" else {}

    def parent(self, *, is_remote: bool) -> context.Context:
        """With the span of a request (for a send) or of the producer (for a process), and its baggage."""
        flags = TraceFlags(TraceFlags.SAMPLED if self.is_sampled else TraceFlags.DEFAULT)
        span = NonRecordingSpan(SpanContext(TRACE_ID, SPAN_ID, is_remote, flags))
        found = trace.set_span_in_context(span, context.Context())
        for key, value in self.baggage.items():
            found = baggage.set_baggage(key, value, found)
        return found

    def headers(self) -> Headers:
        """Those of the delivery."""
        written: Headers = {}
        propagate.inject(written, self.parent(is_remote=True))
        return written

    def set_up(self) -> None:
        """Sets the global providers, as a program does when it starts."""
        if self.name != "no SDK":
            trace.set_tracer_provider(TracerProvider())
        if self.name == "metrics on":
            metrics.set_meter_provider(MeterProvider(metric_readers=[InMemoryMetricReader()]))

    def candidates(self, operation: str) -> dict[str, Candidate]:
        made = send_candidates() if operation == "send" else process_candidates(self)
        if self.name == "metrics on":
            made[BY_HAND] = _measured(made[BY_HAND], operation)
        return made


def send_candidates() -> dict[str, Candidate]:
    tracer = trace.get_tracer("bench")

    def bare(headers: Headers, handler: Handler) -> None:
        span = tracer.start_span("publish orders", kind=SpanKind.PRODUCER, attributes=SEND)
        handler()
        span.end()

    def by_hand(headers: Headers, handler: Handler) -> None:
        with tracer.start_as_current_span("publish orders", kind=SpanKind.PRODUCER, attributes=SEND):
            propagate.inject(headers)
            handler()

    def ours(headers: Headers, handler: Handler) -> None:
        with queueprop.send_span(ORDERS, headers=headers):
            handler()

    return {BARE: bare, BY_HAND: by_hand, OURS: ours}


def process_candidates(mode: Mode) -> dict[str, Candidate]:
    tracer = trace.get_tracer("bench")
    creation = mode.parent(is_remote=True)

    def bare(headers: Headers, handler: Handler) -> None:
        span = tracer.start_span("process orders", creation, kind=SpanKind.CONSUMER, attributes=PROCESS)
        handler()
        span.end()

    def by_hand(headers: Headers, handler: Handler) -> None:
        extracted = propagate.extract(headers)
        link = Link(trace.get_current_span(extracted).get_span_context())
        with tracer.start_as_current_span(
            "process orders", extracted, kind=SpanKind.CONSUMER, attributes=PROCESS, links=[link]
        ):
            handler()

    def by_hand_with_baggage(headers: Headers, handler: Handler) -> None:
        token = context.attach(
            propagate.extract(headers)
        )  # else the handler has the span without the baggage
        try:
            link = Link(trace.get_current_span().get_span_context())
            with tracer.start_as_current_span(
                "process orders", kind=SpanKind.CONSUMER, attributes=PROCESS, links=[link]
            ):
                handler()
        finally:
            context.detach(token)

    def ours(headers: Headers, handler: Handler) -> None:
        with queueprop.process_span(ORDERS, headers=headers):
            handler()

    return {BARE: bare, BY_HAND: by_hand_with_baggage if mode.baggage else by_hand, OURS: ours}


def _measured(call: Candidate, operation: str) -> Candidate:
    """By hand with the conventions' two metrics around it, a duration and a count, as queueprop has them."""
    meter = metrics.get_meter("bench")
    duration, count, attributes = {
        "send": (semconv.CLIENT_OPERATION_DURATION, semconv.CLIENT_SENT_MESSAGES, SEND),
        "process": (semconv.PROCESS_DURATION, semconv.CLIENT_CONSUMED_MESSAGES, PROCESS),
    }[operation]
    histogram, counter = meter.create_histogram(duration, "s"), meter.create_counter(count, "{message}")

    def measured(headers: Headers, handler: Handler) -> None:
        started = time.perf_counter()
        call(headers, handler)
        histogram.record(time.perf_counter() - started, attributes)
        counter.add(1, attributes)

    return measured


# What is timed


def batch_of(call: Candidate, operation: str, mode: Mode) -> measure.Batch:
    """A send has a fresh dict of headers, a process those of the same delivery each time."""
    delivered = mode.headers()

    def prepare(count: int) -> Callable[[], None]:
        def send() -> None:
            for _ in range(count):
                call({}, nothing)

        def process() -> None:
            for _ in range(count):
                call(delivered, nothing)

        return send if operation == "send" else process

    return prepare


@contextmanager
def around(operation: str, mode: Mode) -> Iterator[None]:
    """A send runs inside a request, which decides on sampling and has the baggage; a process inside nothing."""
    parent = mode.parent(is_remote=False) if operation == "send" else context.Context()
    token = context.attach(parent)
    try:
        yield
    finally:
        context.detach(token)


def report(mode: Mode, rounds: int) -> dict[str, dict[str, float]]:
    """For each operation: microseconds of each candidate, and the objects that queueprop has retained.

    Raises AssertionError when a span that was timed is not complete.
    """
    mode.set_up()
    found: dict[str, dict[str, float]] = {}
    for operation in OPERATIONS:
        candidates = mode.candidates(operation)
        batches = {name: batch_of(call, operation, mode) for name, call in candidates.items()}
        with around(operation, mode):
            found[operation] = measure.medians(batches, rounds)
            found[operation]["retained"] = measure.retained(batches[OURS])
    spans = complete.exported() if mode.name != "no SDK" else None
    for operation in OPERATIONS:
        for name, call in mode.candidates(operation).items():
            with around(operation, mode):
                check(name, call, operation, mode, spans)
    return found


def check(
    name: str, call: Candidate, operation: str, mode: Mode, spans: Callable[[], complete.Spans] | None
) -> None:
    """Runs a candidate once and asserts that its span has all that it is to have."""
    headers = {} if operation == "send" else mode.headers()
    inside: list[complete.Current] = []
    call(headers, lambda: inside.append(complete.current()))
    wanted = complete.Wanted(
        operation=operation,
        attributes=SEND if operation == "send" else PROCESS,
        creation=(TRACE_ID, SPAN_ID),
        is_sampled=mode.is_sampled,
        is_carried=name != BARE,
        is_linked=operation == "process" and name != BARE,
        baggage=mode.baggage,
    )
    wanted.check(spans() if spans is not None else None, inside[0], headers)


if __name__ == "__main__":
    print(json.dumps(report(Mode(sys.argv[1]), int(sys.argv[2]))))

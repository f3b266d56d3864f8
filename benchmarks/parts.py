"""What a message costs by its parts: ``python -m benchmarks --parts``.

Flat functions that do, one after the other, what every tracing of a message has to do: start and end the SDK's span,
make it current, write or read the ``traceparent``, link. Each is written out for the plain message of ``make bench``
alone and guards nothing, so the last of them is a floor: no implementation in Python that uses OpenTelemetry's API is
below it. What queueprop costs beyond the floor is its own. Beside it stands what is between the two: the plain message
written out a second time with what decides that it is one (``benchmarks.flat``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from benchmarks import complete, flat, measure
from benchmarks.core import (
    BY_HAND,
    OURS,
    PROCESS,
    SEND,
    Candidate,
    Handler,
    Headers,
    Mode,
    around,
    batch_of,
    check,
)
from queueprop.wire.propagation import SPAN_KEY

MODES = ("recorded", "sampled out", "no SDK")
SPAN, CURRENT, LINKED, ON_THE_WIRE = "the span", "is current", "a link", "is on the wire"
SECOND_COPY = "a second copy"

Parts = dict[str, Candidate]


def report(mode: Mode, rounds: int) -> dict[str, dict[str, float]]:
    """For each operation: microseconds with one part after the other, of queueprop, and by hand.

    Raises AssertionError when the span of the second copy is not complete.
    """
    mode.set_up()
    found = {}
    copies = flat.candidates()
    for operation, parts in (("send", send_parts()), ("process", process_parts())):
        whole = mode.candidates(operation)
        calls = {**parts, SECOND_COPY: copies[operation], OURS: whole[OURS], BY_HAND: whole[BY_HAND]}
        batches = {name: batch_of(call, operation, mode) for name, call in calls.items()}
        with around(operation, mode):
            found[operation] = measure.medians(batches, rounds)
    spans = complete.exported() if mode.name != "no SDK" else None
    for operation, call in copies.items():
        with around(operation, mode):
            check(SECOND_COPY, call, operation, mode, spans)
    return found


def send_parts() -> Parts:
    start = _starts("publish orders", SpanKind.PRODUCER, SEND)

    def span_only(headers: Headers, handler: Handler) -> None:
        span = start(None)
        handler()
        span.end()

    def current(headers: Headers, handler: Handler) -> None:
        span = start(None)
        token = context.attach(Context({**context.get_current(), SPAN_KEY: span}))
        handler()
        context.detach(token)
        span.end()

    def written(headers: Headers, handler: Handler) -> None:
        span = start(None)
        token = context.attach(Context({**context.get_current(), SPAN_KEY: span}))
        of = span.get_span_context()
        headers["traceparent"] = f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"
        handler()
        context.detach(token)
        span.end()

    return {SPAN: span_only, CURRENT: current, ON_THE_WIRE: written}


def process_parts() -> Parts:
    start = _starts("process orders", SpanKind.CONSUMER, PROCESS)
    creation = Mode("recorded").parent(is_remote=True)

    def read(headers: Headers) -> SpanContext:
        _, trace_id, span_id, flags = headers["traceparent"].split("-")
        return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))

    def span_only(headers: Headers, handler: Handler) -> None:
        span = start(creation)
        handler()
        span.end()

    def found(headers: Headers, handler: Handler) -> None:
        span = start(Context({SPAN_KEY: NonRecordingSpan(read(headers))}))
        handler()
        span.end()

    def linked(headers: Headers, handler: Handler) -> None:
        of = read(headers)
        span = start(Context({SPAN_KEY: NonRecordingSpan(of)}), [Link(of)])
        handler()
        span.end()

    def current(headers: Headers, handler: Handler) -> None:
        of = read(headers)
        span = start(Context({SPAN_KEY: NonRecordingSpan(of)}), [Link(of)])
        token = context.attach(Context({**context.get_current(), SPAN_KEY: span}))
        handler()
        context.detach(token)
        span.end()

    return {SPAN: span_only, ON_THE_WIRE: found, LINKED: linked, CURRENT: current}


def _starts(name: str, kind: SpanKind, attributes: dict[str, Any]) -> Callable[..., Span]:
    tracer = trace.get_tracer("bench")
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # Whoever knows that there is no SDK need not ask for a span: what came in goes on.
        return lambda parent, links=None: trace.get_current_span(parent)

    def start(parent: Context | None, links: list[Link] | None = None) -> Span:
        return tracer.start_span(name, parent, kind, attributes, links)

    return start


if __name__ == "__main__":
    print(json.dumps(report(Mode(sys.argv[1]), int(sys.argv[2]))))

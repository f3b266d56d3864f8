"""What OpenTelemetry documents to do by hand around a publish and a delivery, with a link to the creation context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, Span, SpanKind

from queueprop import Destination
from queueprop.engine import semconv


class ByHand:
    """The spans of one library's messages, with the attributes that the conventions require."""

    def __init__(self, system: str, published_to: str = "orders", consumed_from: str = "orders") -> None:
        self._tracer = trace.get_tracer("bench")
        send = Destination(system=system, name=published_to).labels(semconv.SEND, "publish")
        process = Destination(system=system, name=consumed_from).labels(semconv.PROCESS, "process")
        self._send, self._process = dict(send.attributes), dict(process.attributes)
        self._send_name, self._process_name = f"publish {published_to}", f"process {consumed_from}"

    def sending(self) -> AbstractContextManager[Span]:
        """A user's ``with`` around a publish, inside of which the context is injected."""
        return self._tracer.start_as_current_span(
            self._send_name, kind=SpanKind.PRODUCER, attributes=self._send
        )

    def processing(self, headers: Mapping[str, Any]) -> AbstractContextManager[Span]:
        """A user's ``with`` around what is done with a message."""
        extracted = propagate.extract(headers)
        link = Link(trace.get_current_span(extracted).get_span_context())
        return self._tracer.start_as_current_span(
            self._process_name, extracted, kind=SpanKind.CONSUMER, attributes=self._process, links=[link]
        )

    def around(self, handler: Callable[[], object]) -> Callable[[Mapping[str, Any]], None]:
        """A handler of a message's headers."""

        def handle(headers: Mapping[str, Any]) -> None:
            with self.processing(headers):
                handler()

        return handle


def injected() -> dict[str, str]:
    """The current context, as text."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def as_pairs(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """As Kafka's clients take them."""
    return [(name, value.encode()) for name, value in headers.items()]


def from_pairs(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    return {name: value.decode() for name, value in headers}

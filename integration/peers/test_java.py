"""RabbitMQ and Kafka between Python and Java: amqp-client and kafka-clients in real Java processes, with
OpenTelemetry's agent and without, to and from pika, kombu, aio-pika and aiokafka.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

from integration.contract.telemetry import SpanRecord, Telemetry, wait_until
from integration.java_programs import Java, JavaProgram
from integration.live import NOTHING, Spans, origin
from integration.otlp import OtlpServer
from integration.peers.programs import (
    BAGGAGE,
    BODY,
    CALLER,
    TRACESTATE,
    AioKafka,
    AioPika,
    Kombu,
    Pika,
    Python,
    publish_in_a_request,
)

LIBRARIES = {"rabbitmq": "amqp-client", "kafka": "kafka-clients"}
WIRE_TYPES = {"rabbitmq": "ByteArrayLongString", "kafka": "byte[]"}
"""What Java reads a header as."""


class JavaSide:
    """A process of Java that publishes to and consumes from one broker."""

    def __init__(self, program: JavaProgram, otlp: OtlpServer | None, python: Python) -> None:
        self._program, self._otlp = program, otlp
        self._library, self._url = LIBRARIES[python.broker], python.url

    def publish(self, queue: str) -> Told:
        """Inside a span of a caller's trace, with the baggage."""
        trace_id, span_id = CALLER
        parent = {"trace_id": trace_id, "span_id": span_id, "tracestate": TRACESTATE}
        body = base64.b64encode(BODY).decode()
        return self._ask(queue, publish={"body": body, "baggage": BAGGAGE, "parent": parent})

    def consume(self, queue: str, *, way: str = "basicConsume", forward_to: str | None = None) -> Told:
        """``way`` is RabbitMQ's."""
        return self._ask(queue, consume={"way": way, "forward_to": forward_to})

    def _ask(self, queue: str, **what: Any) -> Told:
        asked = {"library": self._library, "url": self._url, "queue": queue, **what}
        if self._otlp is None:
            return Told(self._program.ask(asked), [])
        spans, before = self._otlp.spans, len(self._otlp.spans)
        answer = self._program.ask(asked)
        wait_until(lambda: "answered" in [span.name for span in spans[before:]], "Java's spans")
        return Told(answer, spans[before:])


class Told:
    """What Java told."""

    def __init__(self, answer: Mapping[str, Any], spans: Sequence[SpanRecord]) -> None:
        self._answer, self._spans = answer, spans

    @property
    def handled(self) -> Mapping[str, Any]:
        handled: Mapping[str, Any] = self._answer["handled"]
        return handled

    @property
    def context(self) -> tuple[str, str]:
        """What was current in the handler."""
        return self.handled["trace_id"], self.handled["span_id"]

    @property
    def body(self) -> bytes:
        return base64.b64decode(self.handled["body"])

    def span(self, kind: str) -> SpanRecord:
        [it] = self.spans(kind)
        return it

    def spans(self, kind: str) -> list[SpanRecord]:
        """In the order of their starts."""
        return sorted((span for span in self._spans if span.kind == kind), key=lambda span: span.start)

    def headers(self, name: str) -> list[tuple[str, str]]:
        """The type and the text of each header of a name, in whatever case."""
        return [(kind, text) for key, kind, text in self.handled["headers"] if key.lower() == name]


@pytest.fixture(scope="module")
def otlp() -> Iterator[OtlpServer]:
    made = OtlpServer()
    yield made
    made.close()


class Programs:
    """Processes of Java by their options, each started once, by whoever first asks for it."""

    def __init__(self, java: Java, folder: Path) -> None:
        self._java, self._folder = java, folder
        self._started: dict[str, JavaProgram] = {}

    def get(self, name: str, otlp: OtlpServer | None, **options: str) -> JavaProgram:
        if name not in self._started:
            self._started[name] = self._java.start(self._folder / f"{name}.log", otlp, **options)
        return self._started[name]

    def close(self) -> None:
        for program in self._started.values():
            program.close()


@pytest.fixture(scope="module")
def programs(java: Java, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    programs = Programs(java, tmp_path_factory.mktemp("java"))
    yield programs
    programs.close()


@pytest.fixture
def peer(programs: Programs, otlp: OtlpServer, plain_python: Python) -> JavaSide:
    """With the agent."""
    return JavaSide(programs.get("agent", otlp), otlp, plain_python)


@pytest.fixture
def plain_peer(programs: Programs, plain_python: Python) -> JavaSide:
    """Without telemetry."""
    return JavaSide(programs.get("plain", None), None, plain_python)


@pytest.fixture
def receiving_peer(programs: Programs, otlp: OtlpServer, plain_python: Python) -> JavaSide:
    """With the agent, and what it calls receive telemetry."""
    option = "OTEL_INSTRUMENTATION_MESSAGING_EXPERIMENTAL_RECEIVE_TELEMETRY_ENABLED"
    return JavaSide(programs.get("receiving", otlp, **{option: "true"}), otlp, plain_python)


def test_from_java(spans: Spans, python: Python, peer: JavaSide, queues: list[str]) -> None:
    """The CONSUMER span is a child of Java's PRODUCER span, and links to it; the handler has the body, the baggage and
    the tracestate as they were.
    """
    queue, _ = queues
    producer = peer.publish(queue).span("PRODUCER")
    handled = python.consume(queue)
    [consumer] = spans.of("process")
    assert producer.trace_id == CALLER[0]
    assert (consumer.kind, consumer.status) == ("CONSUMER", "UNSET")
    assert origin(consumer) == producer.context
    [link] = consumer.links
    assert link.context == producer.context
    assert link.attributes["opentracing.ref_type"] == "child_of"
    assert handled.context == consumer.context
    assert handled.baggage == BAGGAGE
    assert handled.tracestate == TRACESTATE
    assert handled.body == BODY
    assert spans.complaints == []


def test_to_java(spans: Spans, python: Python, peer: JavaSide, queues: list[str]) -> None:
    """Java's CONSUMER span is a child of our PRODUCER span, and current in Java's handler, which has the body, the
    baggage and the tracestate as they were.
    """
    queue, _ = queues
    request = publish_in_a_request(python, queue)
    told = peer.consume(queue)
    [producer] = spans.of("send")
    assert origin(producer) == request
    assert origin(told.span("CONSUMER")) == producer.context
    assert told.context == told.span("CONSUMER").context
    assert told.handled["baggage"] == BAGGAGE
    assert told.handled["tracestate"] == TRACESTATE
    assert told.body == BODY


@pytest.mark.parametrize("plain_python", [AioKafka], ids=["aiokafka"], indirect=True)
def test_to_java_with_receive_telemetry(
    spans: Spans, python: Python, receiving_peer: JavaSide, queues: list[str]
) -> None:
    """With that option Java's process span links to our PRODUCER span, and is in the trace of Java's poll; it is
    current in the handler, without baggage.
    """
    queue, _ = queues
    publish_in_a_request(python, queue)
    told = receiving_peer.consume(queue)
    [producer] = spans.of("send")
    poll, process = told.spans("CONSUMER")
    assert [link.context for link in process.links] == [producer.context]
    assert origin(process) == poll.context
    assert told.context == process.context
    assert poll.trace_id != producer.trace_id
    assert told.handled["baggage"] == {}


@pytest.mark.parametrize(
    "plain_python", [Pika, Kombu, AioPika], ids=["pika", "kombu", "aio_pika"], indirect=True
)
def test_to_a_get_of_java(
    spans: Spans, python: Python, peer: JavaSide, receiving_peer: JavaSide, queues: list[str]
) -> None:
    """For `basicGet` Java makes no span, unless with receive telemetry: a root that links to our PRODUCER span. Nothing
    is current where the message is handled, either way.
    """
    queue, _ = queues
    publish_in_a_request(python, queue)
    told = peer.consume(queue, way="basicGet")
    assert (told.spans("CONSUMER"), told.context, told.body) == ([], NOTHING, BODY)
    publish_in_a_request(python, queue)
    told = receiving_peer.consume(queue, way="basicGet")
    _, producer = spans.of("send")
    [link] = told.span("CONSUMER").links
    assert link.context == producer.context
    assert told.span("CONSUMER").parent_id is None
    assert (told.context, told.body) == (NOTHING, BODY)


def test_from_java_without_telemetry(
    told: Telemetry, spans: Spans, python: Python, plain_peer: JavaSide, queues: list[str]
) -> None:
    """The CONSUMER span is a root without links, its context counts as missing, and nobody complains."""
    queue, _ = queues
    plain_peer.publish(queue)
    handled = python.consume(queue)
    [consumer] = spans.of("process")
    assert (consumer.parent_id, list(consumer.links), consumer.status) == (None, [], "UNSET")
    assert (handled.context, handled.baggage, handled.body) == (consumer.context, {}, BODY)
    [missing] = [point for point in told.points if point.metric == "queueprop.context.missing"]
    assert (missing.value, missing.attributes["queueprop.reason"]) == (1, "missing")
    assert spans.complaints == []


def test_to_java_without_telemetry(
    spans: Spans, python: Python, plain_peer: JavaSide, queues: list[str]
) -> None:
    """The body is untouched; `traceparent`, `tracestate` and `baggage` are there once each: long strings in
    amqp-client, and in kafka-clients bytes, as all of Kafka's headers are.
    """
    queue, _ = queues
    publish_in_a_request(python, queue)
    told = plain_peer.consume(queue)
    [producer] = spans.of("send")
    [(kind, text)] = told.headers("traceparent")
    assert (kind, text.split("-")[1:3]) == (WIRE_TYPES[python.broker], [producer.trace_id, producer.span_id])
    assert told.headers("tracestate") == [
        (kind, ",".join(f"{key}={value}" for key, value in TRACESTATE.items()))
    ]
    assert [it for it, _ in told.headers("baggage")] == [kind]
    assert len(told.handled["headers"]) == 3
    assert told.context == NOTHING
    assert told.body == BODY


def test_neither_has_telemetry(
    spans: Spans, plain_python: Python, plain_peer: JavaSide, queues: list[str]
) -> None:
    """Both ways the body is untouched, and there are no headers."""
    queue, other_queue = queues
    plain_python.publish(queue, BODY)
    told = plain_peer.consume(queue, forward_to=other_queue)
    assert (told.body, told.handled["headers"]) == (BODY, [])
    assert plain_python.consume(other_queue).body == BODY
    assert spans.everything == []


def test_a_chain_by_python(spans: Spans, python: Python, peer: JavaSide, queues: list[str]) -> None:
    """From Java to a handler here, which publishes the message again with the headers that it came with, and on to
    Java: one trace, each span the next one's parent, and one context in the headers, the last one. The baggage and the
    tracestate arrive as they began.
    """
    queue, other_queue = queues
    first = peer.publish(queue).span("PRODUCER")
    python.consume(queue, forward_to=other_queue)
    told = peer.consume(other_queue)
    [consumer], [producer] = spans.of("process"), spans.of("send")
    assert origin(consumer) == first.context
    assert origin(producer) == consumer.context
    assert origin(told.span("CONSUMER")) == producer.context
    [(kind, text)] = told.headers("traceparent")
    assert (kind, text.split("-")[1:3]) == (WIRE_TYPES[python.broker], [producer.trace_id, producer.span_id])
    assert [it for it, _ in told.headers("baggage")] == [kind]
    assert (told.handled["baggage"], told.handled["tracestate"]) == (BAGGAGE, TRACESTATE)


def test_a_chain_by_java(spans: Spans, python: Python, peer: JavaSide, queues: list[str]) -> None:
    """From here to a handler in Java, which publishes the message again with the headers that it came with, and back:
    one trace, each span the next one's parent. The baggage and the tracestate arrive as they began.
    """
    queue, other_queue = queues
    publish_in_a_request(python, queue)
    told = peer.consume(queue, forward_to=other_queue)
    handled = python.consume(other_queue)
    [producer], [consumer] = spans.of("send"), spans.of("process")
    assert origin(told.span("CONSUMER")) == producer.context
    assert origin(told.span("PRODUCER")) == told.span("CONSUMER").context
    assert origin(consumer) == told.span("PRODUCER").context
    assert (handled.baggage, handled.tracestate, handled.body) == (BAGGAGE, TRACESTATE, BODY)
    assert spans.complaints == []


def test_a_chain_by_java_without_telemetry(
    spans: Spans, python: Python, plain_peer: JavaSide, queues: list[str]
) -> None:
    """What a handler in Java publishes again with the headers that it came with is in the trace that it came from."""
    queue, other_queue = queues
    publish_in_a_request(python, queue)
    plain_peer.consume(queue, forward_to=other_queue)
    handled = python.consume(other_queue)
    [producer], [consumer] = spans.of("send"), spans.of("process")
    assert origin(consumer) == producer.context
    assert (handled.baggage, handled.tracestate, handled.body) == (BAGGAGE, TRACESTATE, BODY)


def test_a_chain_by_python_without_queueprop(
    spans: Spans, plain_python: Python, peer: JavaSide, queues: list[str]
) -> None:
    """The same in Python: Java's CONSUMER span is a child of Java's PRODUCER span."""
    queue, other_queue = queues
    first = peer.publish(queue).span("PRODUCER")
    assert plain_python.consume(queue, forward_to=other_queue).body == BODY
    told = peer.consume(other_queue)
    assert origin(told.span("CONSUMER")) == first.context
    assert (told.handled["baggage"], told.handled["tracestate"]) == (BAGGAGE, TRACESTATE)
    assert told.body == BODY
    assert spans.everything == []

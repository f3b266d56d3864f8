"""RabbitMQ and Kafka between Python and Node: amqplib and kafkajs in real Node processes, with OpenTelemetry JS and
without, to and from pika, kombu, aio-pika and aiokafka.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from integration.contract.telemetry import Telemetry
from integration.live import Spans, origin
from integration.node_modules import Node
from integration.peers.programs import BAGGAGE, BODY, AioKafka, Python, publish_in_a_request

PROGRAMS = {"rabbitmq": "amqplib.mjs", "kafka": "kafkajs.mjs"}
WIRE_TYPES = {"rabbitmq": "String", "kafka": "Buffer"}
"""What Node reads a header as."""


class NodeSide:
    """Each call is a process of its own."""

    def __init__(self, node: Node, program: str, url: str) -> None:
        self._node, self._program, self._url = node, program, url

    def publish(
        self, queue: str, *, telemetry: bool = True, baggage: Mapping[str, str] | None = None
    ) -> Told:
        what = {"body": base64.b64encode(BODY).decode(), "baggage": baggage}
        return self._run(queue, telemetry, publish=what)

    def consume(self, queue: str, *, telemetry: bool = True, way: str = "eachMessage") -> Told:
        return self._run(queue, telemetry, consume={"way": way})

    def _run(self, queue: str, telemetry: bool, **what: Any) -> Told:
        asked = {"url": self._url, "queue": queue, "telemetry": telemetry, **what}
        return Told(self._node.run(self._program, asked))


class Told:
    """What a Node process told."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self._lines = lines

    @property
    def handled(self) -> dict[str, Any]:
        [it] = [it for it in self._lines if it["event"] == "handled"]
        return it

    def span(self, kind: str) -> dict[str, Any]:
        [it] = [it for it in self._lines if it["event"] == "span" and it["kind"] == kind]
        return it

    def headers(self, name: str) -> list[tuple[str, str]]:
        """The type and the text of each header of a name, in whatever case."""
        return [(kind, text) for key, kind, text in self.handled["headers"] if key.lower() == name]


@pytest.fixture
def peer(node: Node, python: Python) -> NodeSide:
    return NodeSide(node, PROGRAMS[python.broker], python.url)


def context_of(span: Mapping[str, Any]) -> tuple[str, str]:
    return span["trace_id"], span["span_id"]


def parent_of(span: Mapping[str, Any]) -> tuple[str, str]:
    return span["trace_id"], span["parent_id"]


def test_from_node(spans: Spans, python: Python, peer: NodeSide, queues: list[str]) -> None:
    """The CONSUMER span is a child of Node's PRODUCER span, and links to it; the handler has the body and the baggage
    as they were.
    """
    queue, _ = queues
    producer = peer.publish(queue, baggage=BAGGAGE).span("PRODUCER")
    handled = python.consume(queue)
    [consumer] = spans.of("process")
    assert (consumer.kind, consumer.status) == ("CONSUMER", "UNSET")
    assert origin(consumer) == context_of(producer)
    [link] = consumer.links
    assert link.context == context_of(producer)
    assert link.attributes["opentracing.ref_type"] == "child_of"
    assert handled.context == consumer.context
    assert handled.baggage == BAGGAGE
    assert handled.body == BODY
    assert spans.complaints == []


def test_to_node(spans: Spans, python: Python, peer: NodeSide, queues: list[str]) -> None:
    """Node's CONSUMER span is a child of our PRODUCER span, and current in Node's handler, which has the body and the
    baggage as they were.
    """
    queue, _ = queues
    request = publish_in_a_request(python, queue)
    told = peer.consume(queue)
    [producer] = spans.of("send")
    assert origin(producer) == request
    assert parent_of(told.span("CONSUMER")) == producer.context
    assert context_of(told.handled) == context_of(told.span("CONSUMER"))
    assert told.handled["baggage"] == BAGGAGE
    assert base64.b64decode(told.handled["body"]) == BODY


@pytest.mark.parametrize("plain_python", [AioKafka], ids=["aiokafka"], indirect=True)
def test_to_a_batch_of_node(spans: Spans, python: Python, peer: NodeSide, queues: list[str]) -> None:
    """In kafkajs's `eachBatch` the message's CONSUMER span links to our PRODUCER span, and is in the trace of the
    batch, whose span is current in the handler, without baggage: JS instruments it so.
    """
    queue, _ = queues
    publish_in_a_request(python, queue)
    told = peer.consume(queue, way="eachBatch")
    [producer] = spans.of("send")
    assert told.span("CONSUMER")["links"] == [list(producer.context)]
    assert parent_of(told.span("CONSUMER")) == context_of(told.span("CLIENT"))
    assert context_of(told.handled) == context_of(told.span("CLIENT"))
    assert told.handled["trace_id"] != producer.trace_id
    assert told.handled["baggage"] == {}


def test_from_node_without_telemetry(
    told: Telemetry, spans: Spans, python: Python, peer: NodeSide, queues: list[str]
) -> None:
    """The CONSUMER span is a root without links, its context counts as missing, and nobody complains."""
    queue, _ = queues
    peer.publish(queue, telemetry=False)
    handled = python.consume(queue)
    [consumer] = spans.of("process")
    assert (consumer.parent_id, list(consumer.links), consumer.status) == (None, [], "UNSET")
    assert (handled.context, handled.baggage) == (consumer.context, {})
    [missing] = [point for point in told.points if point.metric == "queueprop.context.missing"]
    assert (missing.value, missing.attributes["queueprop.reason"]) == (1, "missing")
    assert spans.complaints == []


def test_to_node_without_telemetry(spans: Spans, python: Python, peer: NodeSide, queues: list[str]) -> None:
    """The body is untouched; `traceparent` and `baggage` are there once each: strings in amqplib, and in kafkajs
    Buffers, as all of Kafka's headers are.
    """
    queue, _ = queues
    publish_in_a_request(python, queue)
    told = peer.consume(queue, telemetry=False)
    [producer] = spans.of("send")
    [(kind, text)] = told.headers("traceparent")
    assert (kind, text.split("-")[1:3]) == (WIRE_TYPES[python.broker], [producer.trace_id, producer.span_id])
    assert [kind for kind, _ in told.headers("baggage")] == [WIRE_TYPES[python.broker]]
    assert "trace_id" not in told.handled
    assert base64.b64decode(told.handled["body"]) == BODY


def test_a_chain(spans: Spans, python: Python, peer: NodeSide, queues: list[str]) -> None:
    """From Node to a handler here, which publishes the message again with the headers that it came with, and on to
    Node: one trace, each span the next one's parent, and one context in the headers, the last one. The baggage
    arrives as it began.
    """
    queue, other_queue = queues
    first = peer.publish(queue, baggage=BAGGAGE).span("PRODUCER")
    python.consume(queue, forward_to=other_queue)
    told = peer.consume(other_queue)
    [consumer], [producer] = spans.of("process"), spans.of("send")
    assert origin(consumer) == context_of(first)
    assert origin(producer) == consumer.context
    assert parent_of(told.span("CONSUMER")) == producer.context
    [(kind, text)] = told.headers("traceparent")
    assert (kind, text.split("-")[1:3]) == (WIRE_TYPES[python.broker], [producer.trace_id, producer.span_id])
    assert [kind for kind, _ in told.headers("baggage")] == [WIRE_TYPES[python.broker]]
    assert told.handled["baggage"] == BAGGAGE

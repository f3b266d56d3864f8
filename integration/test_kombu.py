"""What kombu alone has: exchanges of every type, dead letters, streams, serializers, batches, reconnecting consumers.

What every library has is in the contract.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kombu")

import kombu
from kombu.mixins import ConsumerMixin
from opentelemetry import baggage, context
from opentelemetry.trace import get_current_span

from integration.contract.run import only
from integration.contract.telemetry import SpanRecord, Telemetry, ambient_span, telemetry, wait_until
from queueprop import Settings
from queueprop.adapters import kombu as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Telemetry]:
    """The instrumentor is on, with settle spans."""
    with telemetry(tmp_path / "run.jsonl") as run:
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument(settings=Settings(settle_spans=True))
        try:
            yield run
        finally:
            instrumentor.uninstrument()


@pytest.fixture
def rabbitmq(rabbitmq_url: str) -> Iterator[Any]:
    with kombu.Connection(rabbitmq_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def of_kind(told: Telemetry, kind: str) -> list[SpanRecord]:
    return [span for span in told.spans if span.is_ours and span.kind == kind]


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def consume(connection: Any, queue: Any, count: int = 1, **options: Any) -> list[Any]:
    """The messages that came, each acked in its callback."""
    got: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        got.append(message)
        message.ack()

    with (
        connection.channel() as channel,
        kombu.Consumer(channel, [queue], callbacks=[handle], prefetch_count=10, **options),
    ):
        while len(got) < count:
            connection.drain_events(timeout=30)
    return got


@pytest.mark.parametrize(
    ("kind", "binding", "key"),
    [
        ("direct", "orders.eu", "orders.eu"),
        ("topic", "orders.*", "orders.eu"),
        ("fanout", "", ""),
        ("headers", "", ""),
    ],
)
def test_exchanges_of_every_type(told: Telemetry, rabbitmq: Any, kind: str, binding: str, key: str) -> None:
    """The producer's destination is exchange and routing key, the consumer's also the queue, without what is empty."""
    shop, name = unique("shop"), unique("orders")
    arguments = {"x-match": "any", "region": "eu"} if kind == "headers" else None
    exchange = kombu.Exchange(shop, kind, auto_delete=True)
    queue = kombu.Queue(name, exchange, binding, binding_arguments=arguments, auto_delete=True)
    queue(rabbitmq.default_channel).declare()
    kombu.Producer(rabbitmq).publish("one", exchange=shop, routing_key=key, headers={"region": "eu"})
    consume(rabbitmq, queue)
    producer, consumer = only(of_kind(told, "PRODUCER")), only(of_kind(told, "CONSUMER"))
    sent = ":".join(filter(None, (shop, key)))
    assert producer.name == f"publish {sent}"
    assert consumer.name == f"process {sent}:{name}"
    assert (consumer.trace_id, consumer.parent_id) == producer.context
    for span in (producer, consumer):
        assert span.attributes.get("messaging.rabbitmq.destination.routing_key") == (key or None)


def test_the_default_exchange_and_a_queue_that_the_server_names(told: Telemetry, rabbitmq: Any) -> None:
    """The queue's name is an attribute, marked as anonymous and temporary, and not a part of span names."""
    queue = kombu.Queue("", exclusive=True)(rabbitmq.default_channel)
    queue.declare()
    kombu.Producer(rabbitmq).publish("one", routing_key=queue.name)
    consume(rabbitmq, queue, auto_declare=False)
    producer, consumer = only(of_kind(told, "PRODUCER")), only(of_kind(told, "CONSUMER"))
    assert queue.name.startswith("amq.gen-")
    for span in (producer, consumer):
        assert span.attributes["messaging.destination.name"] == queue.name
        assert span.attributes["messaging.destination.anonymous"] is True
        assert span.attributes["messaging.destination.temporary"] is True
        assert queue.name not in span.name
    assert (consumer.trace_id, consumer.parent_id) == producer.context


def test_what_is_dead_lettered_stays_in_its_trace(told: Telemetry, rabbitmq: Any) -> None:
    """A rejected message, handled from its dead-letter queue: both deliveries are children of the one publish."""
    name, dead = unique("orders"), unique("dead")
    graveyard = kombu.Queue(dead, auto_delete=True)(rabbitmq.default_channel)
    graveyard.declare()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    queue = kombu.Queue(name, queue_arguments=arguments, auto_delete=True)(rabbitmq.default_channel)
    queue.declare()
    kombu.Producer(rabbitmq).publish("one", routing_key=name)
    with (
        rabbitmq.channel() as channel,
        kombu.Consumer(channel, [queue], callbacks=[lambda body, message: message.reject()]),
    ):
        rabbitmq.drain_events(timeout=30)
    [message] = consume(rabbitmq, graveyard)
    assert message.headers["x-death"][0]["queue"] == name
    producer = only(of_kind(told, "PRODUCER"))
    consumers = of_kind(told, "CONSUMER")
    assert [span.name for span in consumers] == [f"process {name}", f"process {dead}"]
    assert {(span.trace_id, span.parent_id) for span in consumers} == {producer.context}


def test_a_stream_gives_the_context_back(told: Telemetry, rabbitmq: Any) -> None:
    """Long strings of a stream may come back as bytes; trace and 300 bytes of baggage arrive."""
    name = unique("stream")
    queue = kombu.Queue(
        name, queue_arguments={"x-queue-type": "stream"}, consumer_arguments={"x-stream-offset": "first"}
    )
    bound = queue(rabbitmq.default_channel)
    bound.declare()
    token = context.attach(baggage.set_baggage("note", "x" * 300))
    kombu.Producer(rabbitmq).publish("one", routing_key=name)
    context.detach(token)
    seen: list[Any] = []

    def handle(message: Any) -> None:
        seen.append(baggage.get_baggage("note"))
        message.ack()

    with (
        rabbitmq.channel() as channel,
        kombu.Consumer(channel, [queue], on_message=handle, prefetch_count=10),
    ):
        rabbitmq.drain_events(timeout=30)
    assert [str(value) for value in seen] == ["x" * 300]
    assert (only(of_kind(told, "CONSUMER")).trace_id) == only(of_kind(told, "PRODUCER")).trace_id
    bound.delete()


@pytest.mark.parametrize("serializer", ["json", "pickle", "raw"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_serializers_and_compression(
    told: Telemetry, rabbitmq: Any, serializer: str, compression: str | None
) -> None:
    """Bodies arrive as they were, and are not looked at."""
    body: Any = b"\x00\x01" if serializer == "raw" else {"item": "tea", "count": 1}
    queue = kombu.Queue(unique("orders"), auto_delete=True)(rabbitmq.default_channel)
    queue.declare()
    kombu.Producer(rabbitmq).publish(
        body, routing_key=queue.name, serializer=serializer, compression=compression
    )
    [message] = consume(rabbitmq, queue, accept=["json", "pickle", "application/data"])
    assert message.payload == body
    assert only(of_kind(told, "CONSUMER")).trace_id == only(of_kind(told, "PRODUCER")).trace_id


def test_an_ack_from_elsewhere_is_still_in_the_trace(told: Telemetry, rabbitmq: Any) -> None:
    """Long after the callback, in another thread and another trace: a child of the message's CONSUMER span."""
    queue = kombu.Queue(unique("orders"), auto_delete=True)(rabbitmq.default_channel)
    queue.declare()
    kombu.Producer(rabbitmq).publish("one", routing_key=queue.name)
    got: list[Any] = []
    with rabbitmq.channel() as channel, kombu.Consumer(channel, [queue], on_message=got.append):
        rabbitmq.drain_events(timeout=30)

        def settle() -> None:
            with ambient_span("elsewhere"):
                got[0].ack()

        thread = threading.Thread(target=settle)
        thread.start()
        thread.join(30)
    consumer = only(of_kind(told, "CONSUMER"))
    settled = only(of_kind(told, "CLIENT"))
    assert settled.name == f"ack {queue.name}"
    assert (settled.trace_id, settled.parent_id) == consumer.context


def test_several_callbacks_and_consumers(told: Telemetry, rabbitmq: Any) -> None:
    """All callbacks of a message run in its one span; consumers beside each other do not nest."""
    queues = [
        kombu.Queue(unique(name), auto_delete=True)(rabbitmq.default_channel) for name in ("one", "two")
    ]
    for queue in queues:
        queue.declare()
        kombu.Producer(rabbitmq).publish(queue.name, routing_key=queue.name)
    seen: list[tuple[str, int]] = []

    def note(body: Any, message: Any) -> None:
        seen.append((body, get_current_span().get_span_context().span_id))

    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(rabbitmq.channel())
        for queue in queues:
            stack.enter_context(kombu.Consumer(channel, [queue], callbacks=[note, note], no_ack=True))
        while len(seen) < 4:
            rabbitmq.drain_events(timeout=30)
    consumers, producers = of_kind(told, "CONSUMER"), of_kind(told, "PRODUCER")
    assert len(consumers) == 2
    assert {(span.trace_id, span.parent_id) for span in consumers} == {span.context for span in producers}
    assert len(set(seen)) == 2


@pytest.mark.skipif(not hasattr(kombu.Producer, "batch"), reason="Producer.batch() came with kombu 5.7")
class TestBatches:
    def test_what_waits_in_a_batch_carries_its_own_context(self, told: Telemetry, redis_url: str) -> None:
        """On Redis publishes wait for the flush: each has a PRODUCER span, which ends with it."""
        with kombu.Connection(redis_url) as connection:
            queue = kombu.Queue(unique("orders"))(connection.default_channel)
            queue.declare()
            producer = kombu.Producer(connection)
            with ambient_span() as ambient, producer.batch():
                for body in ("one", "two", "three"):
                    producer.publish(body, routing_key=queue.name)
                assert of_kind(told, "PRODUCER") == []
            producers = of_kind(told, "PRODUCER")
            assert len(producers) == 3
            assert {span.trace_id for span in producers} == {f"{ambient.trace_id:032x}"}
            messages = consume(connection, queue, 3)
            carried = [message.headers["traceparent"].split("-")[2] for message in messages]
            assert sorted(carried) == sorted(span.span_id for span in producers)
            queue.delete()

    def test_what_is_discarded_is_an_error(self, told: Telemetry, redis_url: str) -> None:
        """An exception inside the batch: nothing was sent, and the spans say why."""
        with kombu.Connection(redis_url) as connection:
            queue = kombu.Queue(unique("orders"))(connection.default_channel)
            queue.declare()
            producer = kombu.Producer(connection)
            with pytest.raises(LookupError), producer.batch():  # noqa: PT012
                producer.publish("one", routing_key=queue.name)
                raise LookupError("no such order")
            assert queue.get() is None
            span = only(of_kind(told, "PRODUCER"))
            assert (span.status, span.attributes["error.type"]) == ("ERROR", "LookupError")
            queue.delete()

    def test_other_transports_publish_at_once(self, told: Telemetry, rabbitmq: Any) -> None:
        """RabbitMQ knows no batches: each span ends with its publish."""
        queue = kombu.Queue(unique("orders"), auto_delete=True)(rabbitmq.default_channel)
        queue.declare()
        producer = kombu.Producer(rabbitmq)
        with producer.batch():
            producer.publish("one", routing_key=queue.name)
            assert len(of_kind(told, "PRODUCER")) == 1
        consume(rabbitmq, queue)


class Worker(ConsumerMixin):  # type: ignore[misc]
    """Handles orders until it has seen all of them; what it had in hand when the broker went comes again."""

    def __init__(self, connection: Any, queue: Any, count: int) -> None:
        self.connection = connection
        self.queue = queue
        self.expected = count
        self.bodies: list[str] = []
        self.traces: list[str] = []

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
        return [Consumer(queues=[self.queue], callbacks=[self.on_order], prefetch_count=1)]

    def on_order(self, body: str, message: Any) -> None:
        self.bodies.append(body)
        self.traces.append(f"{get_current_span().get_span_context().trace_id:032x}")
        message.ack()
        self.should_stop = len(set(self.bodies)) == self.expected


@pytest.mark.parametrize("traced", [False, True])
def test_a_broker_that_goes_and_comes_back(private_rabbitmq: Any, tmp_path: Path, traced: bool) -> None:
    """Stopped and started under a ConsumerMixin: every message is handled, none is left, no span is orphaned."""
    with telemetry(tmp_path / "run.jsonl") as told, contextlib.ExitStack() as stack:
        if traced:
            adapter.KombuInstrumentor().instrument()
            stack.callback(adapter.KombuInstrumentor().uninstrument)
        options = {"confirm_publish": True}
        connection = stack.enter_context(kombu.Connection(private_rabbitmq.url, transport_options=options))
        queue = kombu.Queue("orders")(connection.default_channel)
        queue.declare()
        expected = [f"order {number}" for number in range(20)]
        worker = Worker(kombu.Connection(private_rabbitmq.url), queue, len(expected))
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        for body in expected[:10]:
            kombu.Producer(connection).publish(body, routing_key="orders", delivery_mode=2)
        wait_until(lambda: len(set(worker.bodies)) == 10, "the first half")
        private_rabbitmq.restart()
        connection.close()
        for body in expected[10:]:
            kombu.Producer(connection).publish(body, routing_key="orders", delivery_mode=2, retry=True)
        thread.join(60)
        assert not thread.is_alive()
        assert sorted(set(worker.bodies)) == sorted(expected)
        channel: Any = connection.channel()
        assert queue(channel).queue_declare(passive=True).message_count == 0
        producers, consumers = of_kind(told, "PRODUCER"), of_kind(told, "CONSUMER")
        if not traced:
            assert producers == consumers == []
            return
        assert len(producers) == len(expected)
        assert len(consumers) == len(worker.bodies)
        assert {(span.trace_id, span.parent_id) for span in consumers} == {span.context for span in producers}
        assert sorted(worker.traces) == sorted(span.trace_id for span in consumers)

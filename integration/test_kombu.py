"""What kombu alone has: exchanges of every type, dead letters, streams, serializers, batches, reconnecting consumers.

What every library has is in the contract.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kombu")

import kombu
from kombu.mixins import ConsumerMixin
from kombu.utils.limits import TokenBucket
from opentelemetry import baggage, context, trace
from opentelemetry.trace import get_current_span

from integration.contract.run import only
from integration.contract.telemetry import (
    PATIENCE,
    SpanRecord,
    Telemetry,
    ambient_span,
    telemetry,
    tell,
    wait_until,
)
from integration.live import run_killed
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
            connection.drain_events(timeout=PATIENCE)
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
        rabbitmq.drain_events(timeout=PATIENCE)
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
        rabbitmq.drain_events(timeout=PATIENCE)
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
        rabbitmq.drain_events(timeout=PATIENCE)

        def settle() -> None:
            with ambient_span("elsewhere"):
                got[0].ack()

        thread = threading.Thread(target=settle)
        thread.start()
        thread.join(PATIENCE)
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
            rabbitmq.drain_events(timeout=PATIENCE)
    consumers, producers = of_kind(told, "CONSUMER"), of_kind(told, "PRODUCER")
    assert len(consumers) == 2
    assert {(span.trace_id, span.parent_id) for span in consumers} == {span.context for span in producers}
    assert len(set(seen)) == 2


@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "not yet"])
@pytest.mark.parametrize(("length", "has_context"), [(120_000, True), (130_950, False), (131_000, False)])
def test_headers_that_are_nearly_a_frame(
    told: Telemetry, rabbitmq_url: str, length: int, has_context: bool, is_connected: bool
) -> None:
    """What RabbitMQ takes without us it takes with us: the context stays out where it might not fit."""
    confirms = {"confirm_publish": True}
    with kombu.Connection(rabbitmq_url, transport_options=confirms) as connection:
        queue = kombu.Queue(unique("orders"), durable=False, auto_delete=True)
        with kombu.Connection(rabbitmq_url) as other:
            queue(other).declare()
            if is_connected:
                connection.ensure_connection()
            kombu.Producer(connection, auto_declare=False).publish(
                "hello", routing_key=queue.name, headers={"large": "x" * length}, retry=False
            )
            message = queue(other).get(no_ack=True)
    assert message is not None
    assert ("traceparent" in message.headers, len(message.headers["large"])) == (has_context, length)


@pytest.mark.parametrize("through", ["explicit", "instrumentor", "both"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_function_that_is_registered_with_a_queue_itself(
    broker: str, through: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """``Queue.consume(callback=f)``, without a Consumer: f is given what the transport gives, inside one span."""
    url: str = request.getfixturevalue(f"{broker}_url")
    given: list[tuple[Any, str]] = []
    name = unique("orders")

    def handle(raw: Any) -> None:
        given.append((raw, f"{get_current_span().get_span_context().span_id:016x}"))
        raw.channel.basic_ack(raw.delivery_tag)
        if len(given) == 2:
            raise ValueError("out of stock")

    callback = handle if through == "instrumentor" else adapter.traced_consumer(queue=name)(handle)
    with telemetry(tmp_path / "run.jsonl") as run, contextlib.ExitStack() as stack:
        if through != "explicit":
            instrumentor = adapter.KombuInstrumentor()
            instrumentor.instrument()
            stack.callback(instrumentor.uninstrument)
        with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
            queue = kombu.Queue(name)(connection.default_channel)
            queue.declare()
            publish = adapter.traced_publish(kombu.Producer(connection).publish)
            for body in ("one", "two"):
                with ambient_span():
                    publish(body, routing_key=name)
            queue.consume(name, callback=callback)
            connection.drain_events(timeout=PATIENCE)
            with pytest.raises(ValueError, match="out of stock"):
                connection.drain_events(timeout=PATIENCE)
            queue.cancel(name)
            queue.delete()
        producers, consumers = of_kind(run, "PRODUCER"), of_kind(run, "CONSUMER")
        assert [(span.trace_id, span.parent_id) for span in consumers] == [span.context for span in producers]
        assert [span.name for span in consumers] == [f"process {name}"] * 2
        assert [span.status for span in consumers] == ["UNSET", "ERROR"]
        assert [span_id for _, span_id in given] == [span.span_id for span in consumers]
        bodies = [raw.decode() if hasattr(raw, "decode") else raw.body for raw, _ in given]
        assert bodies == ["one", "two"]
        assert [record.text for record in run.logged] == []


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


class Orders(ConsumerMixin):  # type: ignore[misc]
    """Handles orders until all are settled but one, which it keeps in hand; order 6 meets a fault the first time."""

    restart_limit: Any = TokenBucket(1000)

    def __init__(self, url: str, queue: Any, fault: Callable[[Any], None] | None, settled: int = 0) -> None:
        self.connection = kombu.Connection(url)
        self.ready = -1
        self._settled = settled
        self._queue = queue
        self._fault = fault

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
        return [Consumer(queues=[self._queue], callbacks=[self.on_order], prefetch_count=2)]

    def on_order(self, body: str, message: Any) -> None:
        tell("delivered", {"body": body})
        if body == KEPT:
            return
        if body == FAULTY and self._fault is not None:
            fault, self._fault = self._fault, None
            # KEPT fills the window beside it, so that no other delivery can come in between; and the answer says that
            # the broker has seen every ack so far.
            message.channel.basic_qos(0, 2, False)
            fault(message)
            return
        if body == DEAD:
            message.reject()
        else:
            message.ack()
        tell("settled", {"body": body})
        self._settled += 1
        self.should_stop = self._settled == ORDERS - 1

    def on_consume_end(self, connection: Any, channel: Any) -> None:
        self.ready = size(channel, self._queue)


ORDERS, KEPT, FAULTY, DEAD = 12, "5", "6", "3"


def size(channel: Any, queue: Any) -> int:
    return int(queue(channel).queue_declare(passive=True).message_count)


class TestOutages:
    """The same run without and with queueprop: as many deliveries, messages left, unacked and dead, and no orphan."""

    def test_a_connection_that_the_broker_closes(self, rabbitmq_url: str, tmp_path: Path) -> None:
        """By a publish that RabbitMQ does not know: what was unacked comes again, in its trace."""

        def fault(message: Any) -> None:
            kombu.Producer(message.channel).publish("nobody knows", immediate=True)

        self._compare(tmp_path, rabbitmq_url, fault)

    def test_a_broker_that_is_stopped_and_started(self, private_rabbitmq: Any, tmp_path: Path) -> None:
        """Durable queues and persistent messages outlive it, and so do their contexts; both sides reconnect."""
        self._compare(tmp_path, private_rabbitmq.url, lambda message: private_rabbitmq.restart())

    def test_a_consumer_that_is_killed(self, rabbitmq_url: str, tmp_path: Path) -> None:
        """With two messages in hand: others get them, in their traces; the span of the one that it died in is lost."""
        self._compare(tmp_path, rabbitmq_url, None, lost=1)

    def _compare(self, folder: Path, url: str, fault: Callable[[Any], None] | None, lost: int = 0) -> None:
        with telemetry(folder / "plain.jsonl") as told:
            plain = self._run(told, url, fault)
            assert told.spans == []
        with telemetry(folder / "traced.jsonl") as told, contextlib.ExitStack() as stack:
            adapter.KombuInstrumentor().instrument()
            stack.callback(adapter.KombuInstrumentor().uninstrument)
            traced = self._run(told, url, fault)
            producers, consumers = of_kind(told, "PRODUCER"), of_kind(told, "CONSUMER")
        assert traced == plain
        assert plain["delivered"] == sorted([*map(str, range(ORDERS)), KEPT, FAULTY])
        assert (plain["ready"], plain["unacked"], plain["dead"]) == (0, 1, 1)
        orders = [span for span in producers if span.attributes["messaging.destination.name"] == "orders"]
        assert len(orders) == ORDERS
        assert len(consumers) == len(traced["delivered"]) - lost
        assert {(span.trace_id, span.parent_id) for span in consumers} == {span.context for span in orders}

    def _run(self, told: Telemetry, url: str, fault: Callable[[Any], None] | None) -> dict[str, Any]:
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead-orders"}
        queue = kombu.Queue("orders", queue_arguments=arguments)
        dead = kombu.Queue("dead-orders")
        with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
            for it in (queue, dead):
                it(connection.default_channel).declare()
            producer = kombu.Producer(connection)
            for number in range(ORDERS - 2):
                producer.publish(str(number), routing_key="orders")
            if fault is None:
                run_killed(Orders(url, queue, _die).run)
            orders = Orders(url, queue, fault, settled=len(list(told.records("settled"))))
            thread = threading.Thread(target=orders.run, daemon=True)
            thread.start()
            wait_until(lambda: len(_bodies(told)) > 7, "a delivery after the fault")
            for number in (ORDERS - 2, ORDERS - 1):
                producer.publish(str(number), routing_key="orders", retry=True)
            thread.join(PATIENCE)
            assert not thread.is_alive()
            channel = connection.default_channel
            wait_until(lambda: size(channel, queue) * size(channel, dead) > 0, "what is given back")
            left, lost = (it(channel).delete() for it in (queue, dead))
        return {
            "delivered": sorted(_bodies(told)),
            "ready": orders.ready,
            "unacked": left - orders.ready,
            "dead": lost,
        }


def _bodies(told: Telemetry) -> list[str]:
    return [record["body"] for record in told.records("delivered")]


def _die(message: Any) -> None:
    provider: Any = trace.get_tracer_provider()
    provider.force_flush()
    os.kill(os.getpid(), signal.SIGKILL)

"""confluent-kafka's own on a real Kafka: transactions and share groups.

Each program is run without queueprop and with it, through both APIs. What it tells must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import admin as _admin
from opentelemetry.trace import get_current_span

from integration.brokers import Broker
from integration.brokers.kafka import addresses
from integration.contract.telemetry import DEADLINE, telemetry
from integration.live import NOTHING, Spans, current, origin, unique
from queueprop import Settings
from queueprop.adapters import confluent_kafka as adapter

try:
    from confluent_kafka import AcknowledgeType, Messages
except ImportError:  # before 2.15
    AcknowledgeType = Messages = Any  # type: ignore[misc, assignment]

SETTLED = Settings(settle_spans=True)
needs_aio = pytest.mark.skipif(
    not find_spec("confluent_kafka.aio"), reason="confluent_kafka.aio came with 2.13"
)


class Tracing:
    """How a program is traced: ``plain`` not at all, ``instrumentor`` unchanged, ``explicit`` by words around its
    calls, ``both`` by both.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @contextlib.contextmanager
    def on(self) -> Iterator[Tracing]:
        if self.name not in ("instrumentor", "both"):
            yield self
            return
        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument(settings=SETTLED)
        try:
            yield self
        finally:
            instrumentor.uninstrument()

    def publish(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_publish, call)

    def get(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_get, call)

    def handled(self, message: Any) -> AbstractContextManager[Any]:
        return (
            contextlib.nullcontext()
            if self.name == "plain"
            else adapter.traced_message(message, settings=SETTLED)
        )

    def together(self, messages: Any) -> AbstractContextManager[Any]:
        return (
            contextlib.nullcontext()
            if self.name == "plain"
            else adapter.traced_batch(messages, settings=SETTLED)
        )

    def settle(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_settle, call)

    def loop(self, consumer: Any) -> Any:
        if self.name == "plain":
            return iter(lambda: consumer.poll(1.0), self)
        return adapter.traced_messages(consumer, settings=SETTLED)

    def loop_async(self, consumer: Any) -> Any:
        return (
            adapter.traced_messages(consumer, settings=SETTLED) if self.name != "plain" else polled(consumer)
        )

    def _explicitly(self, word: Callable[..., Any], it: Any) -> Any:
        return word(it, settings=SETTLED) if self.name in ("explicit", "both") else it


async def polled(consumer: Any) -> Any:
    while True:
        yield await consumer.poll(1.0)


Program = Callable[[Tracing], Any]


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    with telemetry(tmp_path / "records.jsonl") as told:
        yield Spans(told)


@pytest.fixture(params=["instrumentor", "explicit"])
def as_without(request: pytest.FixtureRequest, spans: Spans) -> Callable[[Program], Any]:
    """Runs a program without queueprop and with it. What it tells must be the same, and is given back."""

    def run(program: Program) -> Any:
        plain = program(Tracing("plain"))
        assert spans.everything == []
        with Tracing(request.param).on() as tracing:
            traced = program(tracing)
        assert traced == plain
        assert current() == NOTHING
        return plain

    return run


@pytest.fixture
def servers(kafka_broker: Broker) -> str:
    if kafka_broker.rung == "embedded":
        pytest.skip(
            "librdkafka's mock cluster commits no offsets in transactions, and no reader sees an abort"
        )
    return addresses(kafka_broker.url)


def transactional(servers: str, id: str, **options: Any) -> Any:
    """Of the class by whatever name it has now."""
    producer = confluent_kafka.Producer(configured(servers, transactional_id=id, **options))
    producer.init_transactions(DEADLINE)
    return producer


@contextlib.contextmanager
def reading(servers: str, topic: str, group: str, kind: Any = None) -> Iterator[Any]:
    """A consumer of the topic's first partition, without waiting for a group to gather."""
    consumer = (kind or confluent_kafka.Consumer)(configured(servers, **of_group(group)))
    consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE)  # it fetches at once then
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        yield consumer
    finally:
        consumer.close()


def of_group(group: str) -> dict[str, Any]:
    return {"group_id": group, "enable_auto_commit": False, "isolation_level": "read_committed"}


def configured(servers: str, **options: Any) -> dict[str, Any]:
    named = {name.replace("_", "."): value for name, value in options.items()}
    return {"bootstrap.servers": servers, "log_level": 0, **named}


def fill(tracing: Tracing, servers: str, topic: str, *bodies: bytes) -> None:
    """Each is in a trace of its own."""
    producer = confluent_kafka.Producer(configured(servers))
    for body in bodies:
        tracing.publish(producer.produce)(topic, body, partition=0)
    assert producer.flush(DEADLINE) == 0


def read(tracing: Tracing, servers: str, topic: str, last: bytes) -> list[bytes]:
    """What a reader of committed messages sees until the last one."""
    seen: list[bytes] = []
    with reading(servers, topic, unique("readers")) as consumer:
        for message in tracing.loop(consumer):
            if message is None:
                continue
            seen.append(message.value())
            if seen[-1] == last:
                break
    return seen


class TestTransactions:
    def test_what_is_produced_is_committed_or_aborted(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str
    ) -> None:
        """Each message has one PRODUCER span, ended by its report within ``commit_transaction`` or
        ``abort_transaction``. One that an abort had to purge says so; one that the broker had is none the worse for it.
        Readers see what they see in any case, each in its trace.
        """
        ends: list[list[str]] = []

        def program(tracing: Tracing) -> Any:
            topic, reports = unique("orders"), []
            producer = transactional(servers, topic)
            waiting = transactional(servers, f"{topic}-waiting", linger_ms=10_000)

            def produce(by: Any, body: bytes) -> None:
                def reported(error: Any, message: Any) -> None:
                    reports.append((body, None if error is None else error.name()))

                tracing.publish(by.produce)(topic, body, partition=0, on_delivery=reported)

            with pytest.raises(KafkaException) as refused:
                produce(producer, b"outside of any")
            producer.begin_transaction()
            produce(producer, b"committed")
            producer.commit_transaction(DEADLINE)
            ends.append([span.name for span in spans.of("send") if span.status == "UNSET"])
            producer.begin_transaction()
            produce(producer, b"aborted")
            assert producer.flush(DEADLINE) == 0
            producer.abort_transaction(DEADLINE)
            waiting.begin_transaction()
            produce(waiting, b"purged")
            waiting.abort_transaction(DEADLINE)
            producer.begin_transaction()
            produce(producer, b"last")
            producer.commit_transaction(DEADLINE)
            return reports, refused.value.args[0].name(), read(tracing, servers, topic, b"last")

        reports, refusal, seen = as_without(program)
        assert seen == [b"committed", b"last"]
        assert refusal == "_STATE"
        assert dict(reports) == {
            b"committed": None,
            b"aborted": None,
            b"purged": "_PURGE_QUEUE",
            b"last": None,
        }
        assert [len(ended) for ended in ends] == [0, 1]  # plain; and when the commit had returned
        sent = sorted(spans.of("send"), key=lambda span: span.start)
        assert [span.kind for span in sent] == ["PRODUCER"] * 5
        assert [span.attributes.get("error.type") for span in sent] == [
            "cimpl.KafkaException",
            None,
            None,
            "_PURGE_QUEUE",
            None,
        ]
        assert [span.status for span in sent] == ["ERROR", "UNSET", "UNSET", "ERROR", "UNSET"]
        assert [origin(span) for span in spans.of("process")] == [sent[1].context, sent[4].context]

    def test_consume_transform_produce(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str
    ) -> None:
        """``send_offsets_to_transaction``: what is read, aborted, read again, written and committed is the same; every
        message that was written is in the trace of the one that it was made of, and so is the commit of the offsets.
        """

        def program(tracing: Tracing) -> Any:
            source, target, group = unique("orders"), unique("invoices"), unique("billing")
            fill(tracing, servers, source, b"a", b"b", b"c")
            producer, partition = transactional(servers, target), TopicPartition(source, 0)
            produce = tracing.publish(producer.produce)
            commit = tracing.settle(producer.send_offsets_to_transaction)
            handled: list[bytes] = []
            with reading(servers, source, group) as consumer:
                for message in tracing.loop(consumer):
                    if message is None:
                        continue
                    handled.append(message.value())
                    producer.begin_transaction()
                    produce(target, message.value().upper(), partition=0)
                    offsets = [TopicPartition(source, 0, message.offset() + 1)]
                    commit(offsets, consumer.consumer_group_metadata(), DEADLINE)
                    if handled == [b"a", b"b"]:
                        producer.abort_transaction(DEADLINE)
                        consumer.seek(TopicPartition(source, 0, message.offset()))
                        continue
                    producer.commit_transaction(DEADLINE)
                    if message.value() == b"c":
                        break
                [committed] = consumer.committed([partition], timeout=DEADLINE)
            return handled, committed.offset, read(tracing, servers, target, b"C")

        assert as_without(program) == ([b"a", b"b", b"b", b"c"], 3, [b"A", b"B", b"C"])
        read_spans, written_spans = (
            [span for span in spans.of("process") if kind in span.name] for kind in ("orders", "invoices")
        )
        sources = [span.context for span in spans.of("send") if span.parent_id is None]
        made = sorted((span for span in spans.of("send") if span.parent_id), key=lambda span: span.start)
        assert [origin(span) for span in read_spans] == [sources[0], sources[1], sources[1], sources[2]]
        assert [origin(span) for span in made] == [span.context for span in read_spans]
        settled = spans.of("settle")
        assert [origin(span) for span in settled] == [span.context for span in read_spans]
        assert {span.kind for span in settled} == {"CLIENT"}
        assert {span.name.partition("-")[0] for span in settled} == {"commit orders"}
        assert [origin(span) for span in written_spans] == [made[at].context for at in (0, 2, 3)]
        assert [span.trace_id for span in written_spans] == [trace_id for trace_id, _ in sources]

    @pytest.mark.parametrize(
        "as_without", ["instrumentor"], indirect=True
    )  # else nobody knows a consumer's group
    def test_the_offsets_of_one_group(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str
    ) -> None:
        """Two groups of one process read the same message. A transaction commits that of the group whose metadata it
        is given, and the other's is still to be settled.
        """

        def program(tracing: Tracing) -> Any:
            topic, target = unique("orders"), unique("invoices")
            fill(tracing, servers, topic, b"a")
            producer, offset = transactional(servers, target), [TopicPartition(topic, 0, 1)]
            with (
                reading(servers, topic, unique("billing")) as billing,
                reading(servers, topic, unique("shipping")) as shipping,
            ):
                for consumer in (billing, shipping):
                    next(message for message in tracing.loop(consumer) if message is not None)
                producer.begin_transaction()
                commit = tracing.settle(producer.send_offsets_to_transaction)
                commit(offset, billing.consumer_group_metadata(), DEADLINE)
                producer.commit_transaction(DEADLINE)
                tracing.settle(shipping.commit)(offsets=offset, asynchronous=False)
                told = (consumer.committed(offset, timeout=DEADLINE) for consumer in (billing, shipping))
                return [committed.offset for [committed] in told]

        assert as_without(program) == [1, 1]
        of_billing, of_shipping = spans.of("process")
        assert [origin(span) for span in spans.of("settle")] == [of_billing.context, of_shipping.context]

    @needs_aio
    @pytest.mark.parametrize("as_without", ["instrumentor", "explicit", "both"], indirect=True)
    def test_by_asyncio(self, as_without: Callable[[Program], Any], spans: Spans, servers: str) -> None:
        """The same of an AIOProducer and an AIOConsumer: one span a message and one a commit of its offsets, each in
        the trace of the message that was read; an aborted one is read again.
        """

        async def run(tracing: Tracing) -> Any:
            from confluent_kafka.aio import AIOConsumer, AIOProducer

            source, target, group = unique("orders"), unique("invoices"), unique("billing")
            fill(tracing, servers, source, b"a", b"b")
            producer = AIOProducer(configured(servers, transactional_id=target), batch_size=1)
            await producer.init_transactions(DEADLINE)
            consumer = AIOConsumer(configured(servers, **of_group(group)))
            await consumer.assign([TopicPartition(source, 0, 0)])
            produce = tracing.publish(producer.produce)
            commit = tracing.settle(producer.send_offsets_to_transaction)
            handled: list[bytes] = []
            async for message in tracing.loop_async(consumer):
                if message is None:
                    continue
                handled.append(message.value())
                await producer.begin_transaction()
                await produce(target, value=message.value().upper(), partition=0)
                offsets = [TopicPartition(source, 0, message.offset() + 1)]
                await commit(offsets, await consumer.consumer_group_metadata(), DEADLINE)
                if handled == [b"a"]:
                    await producer.abort_transaction(DEADLINE)
                    await consumer.seek(TopicPartition(source, 0, message.offset()))
                    continue
                await producer.commit_transaction(DEADLINE)
                if message.value() == b"b":
                    break
            await consumer.close()
            await producer.close()
            return handled, target

        def program(tracing: Tracing) -> Any:
            handled, target = asyncio.run(asyncio.wait_for(run(tracing), DEADLINE))
            return handled, read(tracing, servers, target, b"B")

        assert as_without(program) == ([b"a", b"a", b"b"], [b"A", b"B"])
        read_spans, written_spans = (
            [span for span in spans.of("process") if kind in span.name] for kind in ("orders", "invoices")
        )
        made = sorted((span for span in spans.of("send") if span.parent_id), key=lambda span: span.start)
        assert [origin(span) for span in made] == [span.context for span in read_spans]
        assert [origin(span) for span in spans.of("settle")] == [span.context for span in read_spans]
        assert [origin(span) for span in written_spans] == [made[at].context for at in (1, 2)]


@pytest.mark.skipif(
    not hasattr(find_spec("confluent_kafka.aio") and confluent_kafka.aio, "AsyncSerializingProducer"),
    reason="AsyncSerializingProducer and AsyncDeserializingConsumer came with confluent-kafka 2.16",
)
class TestAsyncSerializers:
    @pytest.mark.parametrize("as_without", ["instrumentor", "explicit", "both"], indirect=True)
    def test_from_one_to_the_other(
        self, as_without: Callable[[Program], Any], spans: Spans, kafka_broker: Broker
    ) -> None:
        """Each message's span at the producer has its key, and never its body; each is handled inside its span, in its
        producer's trace, by ``consume`` and by ``poll``.
        """

        async def run(tracing: Tracing) -> Any:
            topic, servers = unique("orders"), addresses(kafka_broker.url)
            producer = await confluent_kafka.aio.AsyncSerializingProducer(
                configured(servers, key_serializer=_to_bytes, value_serializer=_to_bytes)
            )
            produce = tracing.publish(producer.produce)
            sent = [await produce(topic, f"customer-{at}", f"secret-{at}", 0) for at in range(3)]
            await producer.flush()
            assert [(await it).offset() for it in sent] == [0, 1, 2]
            await producer.close()
            consumer = await confluent_kafka.aio.AsyncDeserializingConsumer(
                configured(servers, value_deserializer=_to_text, **of_group(unique("billing")))
            )
            await consumer.assign([TopicPartition(topic, 0, 0)])
            handled: list[Any] = []

            def handle(message: Any) -> None:
                handled.append((message.key(), message.value()))
                assert tracing.name == "plain" or get_current_span().is_recording()

            while len(handled) < 2:
                for message in await tracing.get(consumer.consume)(2 - len(handled), 1.0):
                    handle(message)
            async for message in tracing.loop_async(consumer):
                if message is not None:
                    handle(message)
                    break
            await consumer.close()
            return handled

        def program(tracing: Tracing) -> Any:
            return asyncio.run(asyncio.wait_for(run(tracing), DEADLINE))

        assert as_without(program) == [(b"customer-%d" % at, f"secret-{at}") for at in range(3)]
        made = sorted(spans.of("send"), key=lambda span: span.start)
        keys = [span.attributes["messaging.kafka.message.key"] for span in made]
        assert keys == ["customer-0", "customer-1", "customer-2"]
        assert [origin(span) for span in spans.of("process")] == [span.context for span in made]


async def _to_bytes(text: str, context: Any) -> bytes:
    return text.encode()


async def _to_text(body: bytes, context: Any) -> str:
    return body.decode()


@pytest.fixture(scope="module")
def share_servers(kafka_broker: Broker) -> str:
    """A Kafka that has share groups: 4.1 by its feature ``share.version``, newer ones by themselves."""
    if not hasattr(confluent_kafka, "ShareConsumer"):
        pytest.skip("ShareConsumer came with confluent-kafka 2.15")
    if kafka_broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster has no share groups")
    return addresses(kafka_broker.url)


@contextlib.contextmanager
def sharing(servers: str, topic: str, group: str, kind: Any = None, **options: Any) -> Iterator[Any]:
    """A member of a share group that reads the topic from its beginning."""
    kafka: Any = _admin  # whose types do not export what it is made of
    admin = kafka.AdminClient(configured(servers))
    for made in admin.create_topics([kafka.NewTopic(topic, 1, 1)]).values():
        with contextlib.suppress(KafkaException):  # it is there
            made.result(DEADLINE)
    to_set = kafka.AlterConfigOpType.SET
    earliest = kafka.ConfigEntry("share.auto.offset.reset", "earliest", incremental_operation=to_set)
    resource = kafka.ConfigResource(kafka.ResourceType.GROUP, group, incremental_configs=[earliest])
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result(DEADLINE)
    consumer = member_of(
        kind or confluent_kafka.ShareConsumer, topic, configured(servers, group_id=group, **options)
    )
    try:
        yield consumer
    finally:
        consumer.close()


def member_of(kind: Any, topic: str, configuration: Any) -> Any:
    """One that Kafka 4.1 answers: it takes no member whose id has a ``+`` or a ``/`` (KAFKA-19846). librdkafka makes
    an id by chance, and tells it to its log alone.
    """
    while True:
        log, logger = io.StringIO(), logging.Logger("librdkafka")
        logger.addHandler(logging.StreamHandler(log))
        told_all = {"debug": "cgrp", "log_level": 7, "logger": logger}
        # What is closed waits for its broker so long, should that not answer.
        consumer = kind({**configuration, **told_all, "socket.timeout.ms": 2_000})
        consumer.subscribe([topic])
        while not (told := re.search('member id "[^"]*" -> "([^"]+)"', log.getvalue())):
            assert consumer.poll(0.01).is_empty()
        if not set("+/").intersection(told[1]):
            return consumer
        consumer.close()


def polling(poll: Callable[[float], Any]) -> Iterator[Any]:
    """Batches with something in them, as long as it takes."""
    while True:
        try:
            batch = poll(1.0)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNSUPPORTED_VERSION:
                pytest.skip(f"this Kafka has no share groups: {error.args[0].str()}")
            raise
        if not batch.is_empty():
            yield batch


class TestShareConsumer:
    @pytest.mark.parametrize("handling", ["iterated", "traced_message", "records()"])
    def test_a_message_is_acknowledged_released_and_rejected(
        self, as_without: Callable[[Program], Any], spans: Spans, share_servers: str, handling: str
    ) -> None:
        """Each delivery has one CONSUMER span in its producer's trace, the second one of what was released says so;
        each acknowledgement is a child of its span; a poll's span links to all that it gave. What is polled, handled
        and delivered again is the same as without us, and nothing is current afterwards. What only looks at the batch
        before leaves the spans to who handles it.
        """

        def program(tracing: Tracing) -> Any:
            topic, group = unique("orders"), unique("billing")
            with sharing(share_servers, topic, group, share_acknowledgement_mode="explicit") as consumer:
                fill(tracing, share_servers, topic, b"good", b"later", b"bad")
                acknowledge = tracing.settle(consumer.acknowledge)
                by_offset = tracing.settle(consumer.acknowledge_offset)
                handled: list[Any] = []

                def handle(message: Any) -> None:
                    handled.append((message.value(), message.delivery_count()))
                    assert tracing.name == "plain" or get_current_span().is_recording()
                    if handled[-1] == (b"later", 1):
                        acknowledge(message, AcknowledgeType.RELEASE)
                    elif message.value() == b"bad":
                        acknowledge(message, ack_type=AcknowledgeType.REJECT)
                    elif message.value() == b"good":
                        acknowledge(message)
                    else:
                        by_offset(topic, message.partition(), message.offset())

                for batch in polling(tracing.get(consumer.poll)):
                    assert isinstance(batch, Messages)
                    assert batch.count() == len(batch) == len(batch[:]) == len(batch.records())
                    assert isinstance(batch[:], Messages)
                    assert all(message in batch for message in batch.records()[:])
                    assert list(batch) == batch.records()[:]
                    if handling == "traced_message":
                        for at in range(len(batch)):
                            with tracing.handled(batch[at]):
                                handle(batch[at])
                    else:
                        for message in batch if handling == "iterated" else batch.records():
                            handle(message)
                    assert current() == NOTHING
                    assert set(tracing.settle(consumer.commit_sync)(DEADLINE).values()) == {None}
                    if (b"later", 2) in handled:
                        return sorted(handled)

        assert as_without(program) == [(b"bad", 1), (b"good", 1), (b"later", 1), (b"later", 2)]
        good, later, bad = (span.context for span in spans.of("send"))
        processed = spans.of("process")
        assert sorted(map(origin, processed)) == sorted([good, later, later, bad])
        attempts = [span.attributes["queueprop.message.delivery_attempt"] for span in processed]
        assert sorted(attempts) == [1, 1, 1, 2]
        settled = {origin(span): span.name.partition(" ")[0] for span in spans.of("settle")}
        assert len(settled) == len(spans.of("settle")) == 4
        by_trace = {
            (trace_id, settled[trace_id, span_id])
            for trace_id, span_id in (span.context for span in processed)
        }
        assert by_trace == {
            (good[0], "accept"),
            (later[0], "release"),
            (later[0], "accept"),
            (bad[0], "reject"),
        }
        received = [link.context for span in spans.of("receive") for link in span.links]
        assert sorted(received) == sorted([good, later, later, bad])

    @pytest.mark.parametrize(
        "as_without", ["instrumentor"], indirect=True
    )  # else nobody knows whose commit it is
    def test_what_a_commit_accepts(
        self, as_without: Callable[[Program], Any], spans: Spans, share_servers: str
    ) -> None:
        """In implicit mode a commit settles all that was handled since: one span, a child of the last one's, with a
        link to the others.
        """

        def program(tracing: Tracing) -> Any:
            topic, handled = unique("orders"), []
            with sharing(share_servers, topic, unique("billing")) as consumer:
                fill(tracing, share_servers, topic, b"a", b"b")
                for batch in polling(consumer.poll):
                    handled += [message.value() for message in batch]
                    if len(handled) == 2:
                        return handled, set(consumer.commit_sync(DEADLINE).values())

        assert as_without(program) == ([b"a", b"b"], {None})
        _, last = spans.of("process")
        settled = spans.of("settle")
        assert {span.name.partition("-")[0] for span in settled} == {"commit orders"}
        if len(settled) == 1:
            assert origin(settled[0]) == last.context

    def test_a_deserializing_one(
        self, as_without: Callable[[Program], Any], spans: Spans, share_servers: str
    ) -> None:
        """A message that cannot be deserialized is a delivery all the same, handled in its trace, and its span says
        what it was; values are deserialized once.
        """

        def program(tracing: Tracing) -> Any:
            topic, made = unique("orders"), []

            def deserialize(value: bytes, context: Any) -> int:
                made.append(value)
                return int(value)

            handled: list[Any] = []
            kind = confluent_kafka.DeserializingShareConsumer
            options: Any = {"value_deserializer": deserialize, "share_acknowledgement_mode": "explicit"}
            with sharing(share_servers, topic, unique("billing"), kind, **options) as consumer:
                fill(tracing, share_servers, topic, b"1", b"one")
                for batch in polling(tracing.get(consumer.poll)):
                    for message in batch:
                        error = message.error()
                        handled.append(message.value() if error is None else error.name())
                        consumer.acknowledge(message)
                    if len(handled) == 2:
                        return handled, made

        assert as_without(program) == ([1, "_VALUE_DESERIALIZATION"], [b"1", b"one"])
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]
        told = [span.attributes.get("error.type") for span in spans.of("process")]
        assert told == [None, "_VALUE_DESERIALIZATION"]

    def test_a_batch_and_what_is_left(
        self, as_without: Callable[[Program], Any], spans: Spans, share_servers: str
    ) -> None:
        """``traced_batch`` is one span with a link to each; a loop that is left by ``break`` leaves nothing current; a
        consumer that is closed raises what it raises, and has no span of it.
        """

        def program(tracing: Tracing) -> Any:
            topic, handled = unique("orders"), []
            with sharing(share_servers, topic, unique("billing")) as consumer:
                fill(tracing, share_servers, topic, b"a", b"b")
                poll = tracing.get(consumer.poll)
                for batch in polling(poll):
                    with tracing.together(batch):
                        handled += [message.value() for message in batch[:]]
                    for _ in batch:
                        break
                    assert current() == NOTHING
                    if len(handled) == 2:
                        break
            with pytest.raises(RuntimeError) as closed:
                poll(1.0)
            return handled, type(closed.value).__name__

        assert as_without(program) == ([b"a", b"b"], "IllegalStateException")
        sent = [span.context for span in spans.of("send")]
        batches = [span for span in spans.of("process") if "messaging.batch.message_count" in span.attributes]
        assert [link.context for span in batches for link in span.links] == sent
        assert [span.status for span in spans.of("receive")] == ["UNSET"] * len(spans.of("receive"))

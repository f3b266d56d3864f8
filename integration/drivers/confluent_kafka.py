"""confluent-kafka on a live Kafka, or on librdkafka's mock cluster: every way to consume, through both APIs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import confluent_kafka
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    SerializingProducer,
    TopicPartition,
)

from integration.contract.actions import Delivery, Handler, run
from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Failing,
    Need,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import DEADLINE, tell_library_error, wait_until
from integration.drivers.kafka import CLIENT, KafkaDriver, OnMockCluster, pairs_of
from integration.live import run_killed
from queueprop.adapters import confluent_kafka as adapter


class ConfluentKafkaDriver(KafkaDriver):
    """A loop over the consumer, ``poll`` and ``consume``; a message that is handled is committed."""

    library = "confluent-kafka"
    packages = frozenset({"confluent_kafka"})
    ways: ClassVar[Sequence[str]] = ("Producer", "SerializingProducer")
    batch_ways = ("produce_batch",) if hasattr(Producer, "produce_batch") else ()  # since 2.12
    styles: ClassVar[Sequence[str]] = ("loop", "poll", "consume")
    table = "confluent-kafka"
    pulls_one, pulls_several = "poll", "consume"

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks = dict(super().lacks(column))
        if not cls.batch_ways:
            lacks["batch"] = "produce_batch came with a later version"
        return lacks

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return ("break", "return", "exception")

    @classmethod
    def receives(cls, style: str) -> bool:
        return style != "loop"

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._begins: dict[str, int] = {}
        self._producers: dict[tuple[int, Any], Any] = {}
        self._kinds: dict[str, Any] = {}

    # Life

    def open(self) -> None:
        for topic in (self.queue, self.other_queue):
            wait_until(lambda topic=topic: self._has(topic), f"the topic {topic}")  # type: ignore[misc]
        with self._plain_consumer() as consumer:
            for topic in (self.queue, self.other_queue):
                self._begins[topic] = consumer.get_watermark_offsets(_partition(topic), timeout=DEADLINE)[1]

    def _has(self, topic: str) -> bool:
        """Asking for a topic makes it."""
        found = self._producer().list_topics(topic, timeout=DEADLINE).topics[topic]
        return found.error is None and bool(found.partitions)

    def close(self) -> None:
        while self._producers:
            _, producer = self._producers.popitem()
            producer.flush(DEADLINE)

    def reconnect(self) -> None:
        self._producers.clear()

    def _producer(self, way: str | None = None, **options: Any) -> Any:
        """One a thread and kind. Of the classes by whatever name they have now."""
        kind = SerializingProducer if way == "SerializingProducer" else self._kinds.get("producer", Producer)
        key = threading.get_ident(), kind
        if options or key not in self._producers:
            # Without linger: a message of a test waits for no other.
            configuration = {**self._configuration, "client.id": CLIENT, "linger.ms": 0, **options}
            producer = kind(configuration)
            if options:
                return producer
            self._producers[key] = producer
        return self._producers[key]

    @property
    def _configuration(self) -> dict[str, Any]:
        return {"bootstrap.servers": self._servers, "reconnect.backoff.ms": 10, "log_level": 0}

    # Publishing

    def publish(
        self,
        body: str,
        headers: Mapping[str, str] | None = None,
        *,
        way: str | None = None,
        delay: float | None = None,
        refusal: str | None = None,
        retries: int = 0,
    ) -> None:
        self._refusals[body] = refusal or "committed"
        self._send(self.queue, body, pairs_of(headers), way)

    def publish_with(self, body: str, container: object) -> None:
        self._send(self.queue, body, container)

    def _send(self, topic: str, body: str, headers: Any = None, way: str | None = None) -> None:
        producer = self._producer(way)
        self._traced(producer.produce)(topic, value=body.encode(), partition=0, headers=headers)
        assert producer.flush(DEADLINE) == 0

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        producer = self._producer()
        messages = [{"value": body.encode()} for body in bodies]
        assert self._traced(producer.produce_batch)(self.queue, messages, partition=0) == len(bodies)
        assert producer.flush(DEADLINE) == 0

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        stale = {"Traceparent": b"stale", "tracestate": b"a=1", "tenant": b"a"}
        return {
            "None": lambda: None,
            "an empty list": list,
            "an empty dict": dict,
            "a list": lambda: [("tenant", b"a"), ("tenant", "b"), ("none", None)],
            "bytes as names": lambda: [(b"tenant", b"a")],
            "a dict": lambda: {"tenant": "a", "none": None},
            "a forwarded list": lambda: list(stale.items()),
            "a forwarded dict": lambda: dict(stale),
        }

    def failing(self) -> Sequence[Failing]:
        def produce(*args: Any, producer: Any = None, **kwargs: Any) -> Callable[[], object]:
            return lambda: self._traced((producer or self._producer()).produce)(self.queue, *args, **kwargs)

        def queue_is_full() -> None:
            producer = self._producer(None, **{"queue.buffering.max.messages": 1, "linger.ms": 60_000})
            with self._untraced():
                producer.produce(self.queue, b"x", partition=0)
            try:
                self._traced(producer.produce)(self.queue, b"x")
            finally:
                producer.purge()
                producer.flush(DEADLINE)

        return [
            Failing("too large", produce(b"x" * 2_000_000, partition=0)),
            Failing("no kind of headers", produce(b"x", headers=("tenant", b"a"))),
            Failing("no bytes", produce(42)),
            Failing("the queue is full", queue_is_full),
        ]

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        with self._untraced():
            producer = self._producer()
            pairs = [*(pairs_of(headers) or ()), *(pairs_of(fields) or ())]
            producer.produce(self.queue, body.encode(), partition=0, headers=pairs)
            assert producer.flush(DEADLINE) == 0

    def kept_publish(self) -> Callable[[str], object]:
        producer = self._producer()
        produce = producer.produce

        def publish(body: str) -> None:
            produce(self.queue, body.encode(), partition=0)
            assert producer.flush(DEADLINE) == 0

        return publish

    def _traced(self, publish: Any) -> Any:
        return self._wrapped(adapter.traced_publish, publish)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        handled = 0
        with self._consuming() as consumer:
            while handled < count:
                handled += self._consume_some(consumer, handler, count - handled)
            if handler.action == "check current":  # a thousand messages, and one commit
                self._commit(consumer, self._last)

    def _consume_some(self, consumer: Any, handler: Handler, count: int) -> int:
        """Handles no more than that many messages, and none behind one that is to come again. How many it were."""
        if self.style == "poll":
            self._handle(consumer, self._pull(consumer), handler)
            return 1
        handled = 0
        for message in self._messages(consumer, count):
            if message is None:
                continue
            handled += 1
            if self._handle(consumer, message, handler) or handled == count:
                break
        return handled

    def _messages(self, consumer: Any, count: int) -> Any:
        """What the loop of a style is over."""
        return self._loop(consumer) if self.style == "loop" else self._pull_several(consumer, count)

    def _handle(self, consumer: Any, message: Any, handler: Handler) -> bool:
        """One message: a loop has its span already, but not the errors of its body. Whether it comes again."""
        try:
            if self.style != "poll" and handler.action != "fail":
                scope: AbstractContextManager[Any] = contextlib.nullcontext()
            else:
                scope = self._scope(message)
            with scope:
                run(handler, self._delivery(message))
        except Exception as error:
            return self._refuse(consumer, message, error)
        self._last = message
        if handler.action != "check current":
            self._commit(consumer, message)
        return False

    def _refuse(self, consumer: Any, message: Any, error: Exception) -> bool:
        """What a user does about an exception of the body of a loop."""
        tell_library_error(error)
        body = message.value().decode()
        refusal = self._refusals[body]
        if refusal == "requeue":
            self._refusals[body] = "committed"
            consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
            return True
        if refusal == "committed":
            self._commit(consumer, message)
        return False

    def _scope(self, message: Any) -> AbstractContextManager[Any]:
        return self._explicitly(lambda: adapter.traced_message(message, settings=self._settings))

    def _commit(self, consumer: Any, message: Any) -> None:
        self._wrapped(adapter.traced_settle, consumer.commit)(message=message, asynchronous=False)

    def _loop(self, consumer: Any) -> Any:
        if self._is_explicit or (self.api == "instrumentor" and self.instrumentor().is_active):
            return adapter.traced_messages(consumer, settings=self._settings)
        return iter(lambda: consumer.poll(1.0), _NEVER)

    def _pull(self, consumer: Any) -> Any:
        if self.style == "consume":
            return self._pull_several(consumer, 1)[0]
        poll, message = self._wrapped(adapter.traced_get, consumer.poll), None
        while message is None:
            message = poll(1.0)
        assert message.error() is None, message.error()
        return message

    def _pull_several(self, consumer: Any, count: int) -> Any:
        consume, messages = self._wrapped(adapter.traced_get, consumer.consume), None
        while not messages:
            # It waits for all of them: of some that are not there yet it would wait for the whole second.
            messages = consume(min(count, 100), 1.0 if count == 1 else 0.05)
        return messages

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        with contextlib.ExitStack() as stack:
            if self.style == "loop":
                work = [self._loop_of_one(stack, skipped, handler) for skipped in range(count)]
            else:
                consumer = stack.enter_context(self._consuming())
                work = [self._handling(self._pull(consumer), handler) for _ in range(count)]
            threads = [threading.Thread(target=one) for one in work]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)

    def _loop_of_one(self, stack: contextlib.ExitStack, skipped: int, handler: Handler) -> Callable[[], None]:
        consumer = stack.enter_context(self._consuming(skipped))

        def work() -> None:
            for message in self._loop(consumer):
                if message is not None:
                    run(handler, self._delivery(message))
                    break

        return work

    def _handling(self, message: Any, handler: Handler) -> Callable[[], None]:
        def work() -> None:
            with self._scope(message):
                run(handler, self._delivery(message))

        return work

    def consume_batch(self, handler: Handler, count: int) -> None:
        with self._consuming() as consumer:
            messages: list[Any] = []
            while len(messages) < count:
                messages += self._pull_several(consumer, count)[:]
            with self._explicitly(lambda: adapter.traced_batch(messages, settings=self._settings)):
                for message in messages:
                    run(handler, self._delivery(message))
            self._commit(consumer, messages[-1])

    def consume_killed(self, handler: Handler) -> None:
        run_killed(lambda: self._consume_anew(handler))
        self.consume(handler)

    def _consume_anew(self, handler: Handler) -> None:
        _inherited.append(self._producers)  # they have no threads here, so they cannot be ended
        self._producers = {}
        self.consume(handler)

    @contextmanager
    def _consuming(self, skipped: int | None = None) -> Iterator[Any]:
        kind = self._kinds.get("consumer", Consumer)
        consumer = kind({**self._consumer_configuration, "client.id": CLIENT})
        partition = _partition(self.queue)
        # A consumer that knows its topic fetches at once; else librdkafka looks once a second for who leads it.
        consumer.get_watermark_offsets(partition, timeout=DEADLINE)
        if skipped is not None:
            partition.offset = self._begins[self.queue] + skipped
        else:
            partition.offset = self._begin(consumer, self.queue)
        consumer.assign([partition])
        try:
            yield consumer
        finally:
            consumer.close()

    def _begin(self, consumer: Any, topic: str) -> int:
        """Where the group is to go on. A broker that has just started moves the groups' coordinators about: that is to
        be asked again, which librdkafka leaves to the application.
        """
        found: list[Any] = []

        def is_told() -> bool:
            try:
                found[:] = consumer.committed([_partition(topic)], timeout=DEADLINE)
            except KafkaException as error:
                if is_moving(error):
                    return False
                raise
            return True

        wait_until(is_told, "what the group has committed")
        (committed,) = found
        assert committed.error is None, committed.error
        return int(committed.offset) if committed.offset >= 0 else self._begins[topic]

    @property
    def _consumer_configuration(self) -> dict[str, Any]:
        return {
            **self._configuration,
            "group.id": self._group,
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,  # a seek waits for the fetch that is under way
        }

    def _delivery(self, message: Any) -> Delivery:
        def publish(body: str, headers: Any = None) -> None:
            self._send(self.other_queue, body, headers)

        return Delivery(message.value().decode(), message.headers(), publish)

    def leave(self, how: str, handler: Handler) -> None:
        def handle(message: Any) -> None:
            run(handler, self._delivery(message))

        with self._consuming() as consumer:
            if self.style == "poll":
                self.leave_loop(how, [self._pull(consumer)], handle, self._scope)
            else:
                self.leave_loop(how, self._messages(consumer, 1), handle)

    # What a plain client sees

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        with self._untraced():
            messages = self._waiting(queue or self.queue)
        return [WireMessage(it.value().decode(), *split_headers(it.headers() or ())) for it in messages]

    def counts(self) -> Counts:
        with self._untraced():
            return Counts(len(self._waiting(self.queue)))

    def _waiting(self, topic: str) -> list[Any]:
        """What the group has not committed yet."""
        partition = _partition(topic)
        with self._plain_consumer() as consumer:
            partition.offset = self._begin(consumer, topic)
            count = consumer.get_watermark_offsets(partition, timeout=DEADLINE)[1] - partition.offset
            if not count:
                return []
            consumer.assign([partition])
            messages: list[Any] = []
            while len(messages) < count:
                messages += consumer.consume(count - len(messages), 1.0)
            return messages

    @contextmanager
    def _plain_consumer(self) -> Iterator[Any]:
        consumer = Consumer(self._consumer_configuration)
        try:
            yield consumer
        finally:
            consumer.close()

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.ConfluentKafkaInstrumentor:
        return adapter.ConfluentKafkaInstrumentor()

    @contextmanager
    def tracing(self, settings: Any) -> Iterator[None]:
        # Clients that were there before are not traced: those of the run are made behind instrument().
        self.close()
        with super().tracing(settings):
            yield

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        class MyProducer(confluent_kafka.Producer):
            def produce(self, *args: Any, **kwargs: Any) -> Any:
                return super().produce(*args, **kwargs)

        class MyConsumer(confluent_kafka.Consumer):
            def poll(self, *args: Any) -> Any:
                return super().poll(*args)

        self.close()
        self._kinds = {"producer": MyProducer, "consumer": MyConsumer}
        try:
            yield
        finally:
            self.close()
            self._kinds = {}

    # What is expected

    @property
    def knows_clients(self) -> bool:
        return self.api == "instrumentor"  # the C types do not tell how they were configured


class MockClusterDriver(OnMockCluster, ConfluentKafkaDriver):
    table = "confluent-kafka on the mock cluster"


_NEVER = object()
_inherited: list[Any] = []


def _partition(topic: str) -> Any:
    """Every topic has one that is used."""
    return TopicPartition(topic, 0)


def is_moving(error: KafkaException) -> bool:
    """Whether it says that the group has no coordinator at the moment."""
    return error.args[0].code() in (
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
    )

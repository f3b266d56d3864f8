"""FastStream on live brokers: a subscriber with a handler, through both APIs; each verb by a broker of its own.

What FastStream does not tell a handler's caller it logs: its logger is how the driver learns of an exception.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from aiokafka import AIOKafkaProducer
from faststream import Context
from faststream.kafka import KafkaBroker, TopicPartition
from faststream.middlewares import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue

from integration.contract.actions import Delivery, Handler, HandlerError, run_async
from integration.contract.driver import Api, Column, Need, WireMessage
from integration.contract.telemetry import DEADLINE, tell_library_error
from integration.drivers.aiokafka import AIOKafkaDriver, _partition
from integration.drivers.event_loop import AsyncioDriver, EventLoop
from integration.drivers.rabbitmq import RabbitmqDriver
from queueprop.adapters import faststream as adapter

_MESSAGE: Any = Context("message")
_OWN_LOOP = "the loop is FastStream's own"


class FastStreamDriver(AsyncioDriver["_EventLoop"]):
    """A handler of FastStream's. Brokers are made where they are used, so that the explicit API is in their list."""

    library = "faststream"
    packages = frozenset({"faststream"})
    ways: ClassVar[Sequence[str]] = ("broker.publish", "publisher.publish")
    styles: ClassVar[Sequence[str]] = ("subscriber",)
    table: ClassVar[str] = "faststream"
    holds_messages: ClassVar[bool] = False
    """Whether what is not settled is a consumer's for as long as that is connected."""

    @classmethod
    def columns(cls) -> Sequence[Column]:
        return [Column(cls.table, style, api) for style in cls.styles for api in ("explicit", "instrumentor")]

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return ()

    @classmethod
    def receives(cls, style: str) -> bool:
        return False

    @classmethod
    def at_once(cls, style: str) -> int:
        return 100

    @classmethod
    def many(cls, column: Column) -> int:
        return 1_000  # which take five seconds

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        return {15: f"{cls.many(column):,} messages on one thread"}

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._holding: list[tuple[_EventLoop, Any]] = []
        self._broker_class = self.broker_class()

    @classmethod
    @abstractmethod
    def broker_class(cls) -> Any: ...

    @abstractmethod
    def make_broker(self, prefetch: int = 1, **options: Any) -> Any:
        """One that is not connected yet, traced as the column says."""

    def options(self) -> dict[str, Any]:
        """What all brokers are made with."""
        middlewares = [adapter.QueuepropMiddleware(self._settings)] if self._is_explicit else []
        return {"middlewares": middlewares, "logger": _Log()}

    def make_event_loop(self) -> Any:
        return _EventLoop(self.make_broker)

    def close_consumers(self) -> None:
        with self._untraced():
            while self._holding:
                loop, broker = self._holding.pop()
                loop.run(broker.stop())

    # Publishing

    def publish_by(self, broker: Any, body: Any, way: str | None = None, **options: Any) -> Any:
        """The coroutine of a publish call."""
        if way == "publisher.publish":
            return broker.publisher(self.queue).publish(body, **options)
        return broker.publish(body, self.queue, **options)

    async def _publish(self, body: str, way: str | None = None, **options: Any) -> None:
        await self.publish_by(await self._event_loop.broker(self._is_explicit), body, way, **options)

    def kept_publish(self) -> Callable[[str], object]:
        broker = self._run(self._event_loop.broker(self._is_explicit))
        return lambda body: self._run(self.publish_by(broker, body))

    # Consuming

    async def consume_by(self, loop: Any, handler: Handler, count: int) -> None:
        await self.handle_by(loop, handler, count)

    async def handle_by(
        self, loop: Any, handler: Handler, count: int, at_once: int = 1, **options: Any
    ) -> None:
        broker = self.make_broker(prefetch=at_once)
        arrived: list[Any] = []
        handled: asyncio.Queue[BaseException | None] = asyncio.Queue()

        async def handle(message: Any = _MESSAGE) -> None:
            arrived.append(message)
            if len(arrived) == count:
                await self.take_no_more(subscriber)
            try:
                for body in self.bodies_of(message):
                    await run_async(handler, self._delivered(broker, message, body))
                await self.all_sent()
            except Exception as error:
                handled.put_nowait(error)
                await self.refuse(message)
                raise
            self.will_be_acked(message)
            handled.put_nowait(None)

        subscriber = self.subscriber(broker, at_once=at_once, **options)
        subscriber(handle)
        if self.holds_messages:
            self._holding.append((loop, broker))
        await broker.start()
        for _ in range(1 if "batch" in options else count):
            error = await asyncio.wait_for(handled.get(), DEADLINE)
            if error is not None and not isinstance(error, HandlerError):
                raise error
        await subscriber.lock.wait_release(DEADLINE)
        if not self.holds_messages:
            await broker.stop()

    @abstractmethod
    def subscriber(self, broker: Any, at_once: int = 1, **options: Any) -> Any:
        """A subscriber to the driver's queue."""

    @abstractmethod
    async def take_no_more(self, subscriber: Any) -> None:
        """Nothing but what has arrived is handled."""

    async def refuse(self, message: Any) -> None:
        """What a handler does about a message before it raises."""

    def will_be_acked(self, message: Any) -> None:
        """Its handler returns: FastStream settles it."""

    def bodies_of(self, message: Any) -> Sequence[bytes]:
        return message.body if isinstance(message.body, list) else [message.body]

    def _delivered(self, broker: Any, message: Any, body: bytes) -> Delivery:
        def publish(body: str, headers: Any = None) -> None:
            self.send_soon(broker.publish(body, self.other_queue, headers=headers))

        return Delivery(body.decode(), message.headers, publish)

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.FastStreamInstrumentor:
        return adapter.FastStreamInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        plain = self._broker_class

        class Broker(plain):  # type: ignore[misc, valid-type]
            async def publish(self, *args: Any, **kwargs: Any) -> Any:
                return await super().publish(*args, **kwargs)

            async def connect(self, *args: Any, **kwargs: Any) -> Any:
                return await super().connect(*args, **kwargs)

        self.close_event_loops()
        self._broker_class = Broker
        try:
            yield
        finally:
            self._broker_class = plain


class RabbitDriver(FastStreamDriver, RabbitmqDriver):
    """By aio-pika."""

    table = "faststream on rabbitmq"
    holds_messages = True

    @classmethod
    def broker_class(cls) -> Any:
        return RabbitBroker

    def make_broker(self, prefetch: int = 1, on_return_raises: bool = False, **options: Any) -> Any:
        channel = Channel(prefetch_count=prefetch, on_return_raises=on_return_raises)
        return self._broker_class(self.url, default_channel=channel, **self.options())

    def disconnect(self) -> None:
        self.close_consumers()  # while their loops are open
        self.close_event_loops()
        super().disconnect()

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
        self.declare(refusal)
        self.will_be_refused(body, refusal)
        given = None if headers is None else dict(headers)
        self._run(self._publish(body, way, headers=given))

    def publish_with(self, body: str, container: Any) -> None:
        self.declare()
        self._run(self._publish(body, headers=container))

    def kept_publish(self) -> Callable[[str], object]:
        self.declare()
        return super().kept_publish()

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        stale = {"Traceparent": "stale", "tracestate": "a=1", "tenant": "a"}
        return {
            "None": lambda: None,
            "an empty table": dict,
            "a table": lambda: {"tenant": "a", "list": [1], "table": {"a": 1}},
            "a forwarded table": lambda: dict(stale),
        }

    def failing_ways(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]:
        async def publish(queue: str, on_return_raises: bool = False, **options: Any) -> None:
            async with self.make_broker(on_return_raises=on_return_raises) as broker:
                await broker.publish("lost", queue, **options)

        async def unroutable() -> None:
            await publish(f"{self.queue}-nowhere", on_return_raises=True)

        async def nacked() -> None:
            with self.full_queue() as queue:
                await publish(queue)

        async def no_such_exchange() -> None:
            await publish("key", exchange=RabbitExchange(f"{self.queue}-none"))

        async def no_expiration() -> None:
            await publish(self.queue, expiration="soon")

        return {
            "unroutable": unroutable,
            "nacked": nacked,
            "no such exchange": no_such_exchange,
            "no expiration": no_expiration,
        }

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self.arrive()
        at_once = 100 if count > 100 else 1
        self._run(self.handle_by(self._event_loop, handler, count, at_once))

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self.arrive()
        self._run(self.handle_by(self._event_loop, handler, count, at_once=count))

    def subscriber(self, broker: Any, at_once: int = 1, **options: Any) -> Any:
        left = "left unacked" in self._refused_by.values()
        policy = AckPolicy.MANUAL if left else AckPolicy.REJECT_ON_ERROR
        return broker.subscriber(RabbitQueue(self.queue, declare=False), ack_policy=policy)

    async def take_no_more(self, subscriber: Any) -> None:
        tag, subscriber._consumer_tag = subscriber._consumer_tag, None
        await subscriber._queue_obj.cancel(tag)

    async def refuse(self, message: Any) -> None:
        requeue = self.requeues(message.body.decode(), message.raw_message.redelivered)
        if requeue is not None:
            await (message.nack() if requeue else message.reject())

    def will_be_acked(self, message: Any) -> None:
        self.acked(message.body.decode())

    # What is expected

    def process_attributes(self) -> dict[str, Any]:
        return {**super().process_attributes(), "messaging.message.id": str}  # aiormq gives each one

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {**super()._attributes(name, kind), "messaging.message.conversation_id": str}


class KafkaDriver(FastStreamDriver, AIOKafkaDriver):
    """By aiokafka. Its plain clients are that driver's."""

    table = "faststream on kafka"
    ways: ClassVar[Sequence[str]] = ("broker.publish", "publisher.publish", "no_confirm")
    batch_ways = ("publish_batch",)

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks = dict(super().lacks(column))
        del lacks["batch receive"]
        return {**lacks, "exits": _OWN_LOOP, "worker processes": "FastStream starts no processes"}

    @classmethod
    def broker_class(cls) -> Any:
        return KafkaBroker

    def make_broker(self, prefetch: int = 1, **options: Any) -> Any:
        return self._broker_class(self._servers, client_id="contract", retry_backoff_ms=10, **self.options())

    def make_event_loop(self) -> Any:
        return _KafkaEventLoop(self.make_broker, self._servers)

    def open(self) -> None:
        super().open()
        self._run(self._begin())

    async def _begin(self) -> None:
        """The group has seen what there is."""
        partition = _partition(self.queue)
        async with self._plain_consumer(group_id=self._group, enable_auto_commit=False) as consumer:
            consumer.assign([partition])
            await consumer.commit({partition: self._begins[partition]})

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
        self.publish_with(body, None if headers is None else dict(headers), way)

    def publish_with(self, body: str, container: Any, way: str | None = None) -> None:
        async def publish() -> None:
            broker = await self._event_loop.broker(self._is_explicit)
            if way == "no_confirm":
                await (await broker.publish(body, self.queue, headers=container, no_confirm=True))
            else:
                await self.publish_by(broker, body, way, headers=container)

        self._run(publish())

    @classmethod
    def can_plant(cls, value: object) -> bool:
        # What FastStream cannot read no handler of its gets: a value that is no UTF-8, or none at all.
        if not super().can_plant(value) or value is None:
            return False
        return isinstance(value, str) or _is_text(value)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        """Without the id that FastStream gives each message."""
        found = []
        for it in super().wire(queue):
            headers = {name: value for name, value in it.headers.items() if name != "correlation_id"}
            found.append(replace(it, headers=headers))
        return found

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        async def publish() -> None:
            broker = await self._event_loop.broker(self._is_explicit)
            await broker.publish_batch(*bodies, topic=self.queue)

        self._run(publish())

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        stale = {"Traceparent": "stale", "tracestate": "a=1", "tenant": "a"}
        return {
            "None": lambda: None,
            "an empty dictionary": dict,
            "a dictionary": lambda: {"tenant": "a"},
            "a forwarded dictionary": lambda: dict(stale),
        }

    def failing_ways(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]:
        async def publish(body: Any, **options: Any) -> None:
            broker = await self._event_loop.broker(self._is_explicit)
            await broker.publish(body, self.queue, **options)

        return {
            "too large": lambda: publish("x" * 2_000_000),
            "no such partition": lambda: publish("lost", partition=7),
            "a key that is no bytes": lambda: publish("lost", key="text"),
        }

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        # Of a thousand, none is committed by itself.
        self._run(self.handle_by(self._event_loop, handler, count, acks_first=count > 100))

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self._run(self.handle_by(self._event_loop, handler, count, at_once=count))

    def consume_batch(self, handler: Handler, count: int) -> None:
        self._run(self.handle_by(self._event_loop, handler, 1, batch=True, max_records=count))

    def subscriber(self, broker: Any, at_once: int = 1, **options: Any) -> Any:
        if at_once > 1:
            options["max_workers"] = at_once  # which acks first
        elif not options.pop("acks_first", False):
            left = "left uncommitted" in self._refusals.values()
            options["ack_policy"] = AckPolicy.MANUAL if left else AckPolicy.ACK
        partitions = [TopicPartition(self.queue, partition=0)]
        return broker.subscriber(partitions=partitions, group_id=self._group, **options)

    async def take_no_more(self, subscriber: Any) -> None:
        subscriber.running = False

    async def refuse(self, message: Any) -> None:
        body = message.body.decode()
        if self._refusals[body] == "requeue":
            self._refusals[body] = "committed"
            await message.nack()

    # What is expected

    @property
    def settle_name(self) -> str:
        return f"ack {self.queue}"  # as FastStream calls it

    def kept_publish(self) -> Callable[[str], object]:
        return FastStreamDriver.kept_publish(self)

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {**super()._attributes(name, kind), "messaging.message.conversation_id": str}


class _EventLoop(EventLoop):
    """Publishes by one broker."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self._make = make
        self._brokers: dict[bool, Any] = {}

    async def broker(self, is_explicit: bool) -> Any:
        if is_explicit not in self._brokers:
            broker = self._make()
            await broker.connect()
            self._brokers[is_explicit] = broker
        return self._brokers[is_explicit]

    def close(self) -> None:
        while self._brokers:
            self.run(self._brokers.popitem()[1].stop())
        super().close()


class _KafkaEventLoop(_EventLoop):
    """Has a plain producer, too."""

    def __init__(self, make: Callable[[], Any], servers: str) -> None:
        super().__init__(make)
        self._servers = servers
        self._producer: Any = None

    async def producer(self) -> Any:
        if self._producer is None:
            self._producer = AIOKafkaProducer(bootstrap_servers=self._servers, retry_backoff_ms=10)
            await self._producer.start()
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            self.run(self._producer.stop())
        super().close()


def _is_text(value: Any) -> bool:
    try:
        bytes(value).decode()
    except ValueError:
        return False
    return True


class _Log:
    """FastStream's logger: it is told what a handler raised."""

    def log(self, level: int, message: Any, /, *, exc_info: Any = None, **options: Any) -> None:
        if isinstance(exc_info, HandlerError):
            tell_library_error(exc_info)

"""kombu on live brokers: every way to consume, over amqp, redis, memory and filesystem, through both APIs."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import kombu
import redis
from kombu.mixins import ConsumerMixin
from kombu.simple import SimpleBuffer, SimpleQueue
from kombu.transport import memory as memory_transport
from kombu.utils.limits import TokenBucket

from integration.contract.actions import Delivery, Handler, HandlerError, run
from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Driver,
    Failing,
    Need,
    Refusal,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import DEADLINE, tell_library_error, wait_until
from integration.live import run_killed
from queueprop.adapters import kombu as adapter

_PUSHED = ("callbacks", "on_message", "ConsumerMixin")
_PULLED = ("Queue.get", "SimpleQueue", "SimpleBuffer")
_IMPATIENT = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


class KombuDriver(Driver):
    """A style is a way to consume, over one transport.

    Its user settles as kombu lets them: in the callback where all went well, and where the exception came out if not.
    """

    library = "kombu"
    packages = frozenset({"kombu"})
    ways = ("publish", "maybe_declare", "retry", "SimpleQueue.put")
    refusals: ClassVar[Sequence[Refusal]] = (Refusal("drop"), Refusal("reject"), Refusal("requeue", 2))
    send_time_resolution = 1.0  # AMQP's timestamp is in whole seconds

    transport: ClassVar[str]
    styles: ClassVar[Sequence[str]] = (*_PUSHED, *_PULLED[:-1])
    queue_arguments: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def columns(cls) -> Sequence[Column]:
        apis: tuple[Api, ...] = ("explicit", "instrumentor")
        return [
            Column(f"{cls.library} over {cls.transport}", style, api) for style in cls.styles for api in apis
        ]

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "batch": "kombu publishes one message a call",
            "delay": "kombu has no delays",
            "retry": "kombu has no retries of its own",
            "worker processes": "kombu has no worker processes",
        }
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        if column.style not in _PULLED:
            lacks["batch receive"] = "a callback is given one message"
            lacks["exits"] = "a callback: there is no loop of the user's to leave"
        return lacks

    @classmethod
    def receives(cls, style: str) -> bool:
        return style in _PULLED

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return ("break", "return", "exception") if style in _PULLED else ()

    @classmethod
    def many(cls, column: Column) -> int:
        # All transports, and both APIs, run the same code of ours there; a broker needs 3 ms a message.
        if cls.transport != "memory":
            return 200
        is_shown = column.style in ("callbacks", "Queue.get") and column.api == "instrumentor"
        return 10_000 if is_shown else 1_000

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        return {15: f"{cls.many(column):,} messages on one thread"}

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._consumes = style
        self.rejected = 0
        self._local = threading.local()
        self._connections: list[kombu.Connection] = []
        self._producer_class: Any = kombu.Producer
        self._consumer_class: Any = kombu.Consumer
        self._queue_class: Any = kombu.Queue
        self._simple_class: Any = SimpleQueue

    def open(self) -> None:
        self.reconnect()

    def close(self) -> None:
        with self._connection.channel() as channel:
            for name in (self.queue, self.other_queue):
                queue = self._entity(name)(channel)
                queue.delete()
                queue.exchange.delete()
        for connection in (self._connection, *self._connections):
            connection.close()

    def reconnect(self) -> None:
        self._connection = self._connect()
        with self._connection.channel() as channel:
            for name in (self.queue, self.other_queue):
                self._entity(name)(channel).declare()

    def _connect(self) -> Any:
        return kombu.Connection(self.url or "", transport_options=self._transport_options())

    def _transport_options(self) -> dict[str, Any]:
        return {}

    def _entity(self, name: str) -> Any:
        exchange = kombu.Exchange(name, "direct")
        return self._queue_class(name, exchange, name, queue_arguments=dict(self.queue_arguments))

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
        options = {
            "headers": dict(headers) if headers else None,
            "type": refusal,
            # Rounded: the wait that is told then stays within the resolution, also where a connection is made first.
            "timestamp": round(time.time()),
        }
        self._publish(self._publishing, self.queue, body, way=way, **options)

    def _publish(
        self, connection: Any, name: str, body: str, *, way: str | None = None, **options: Any
    ) -> None:
        if way == "SimpleQueue.put":
            simple = self._simple_class(connection, self._entity(name))
            self._traced(simple.put)(body, **options)
            return
        producer = self._producer_class(connection)
        options |= {"exchange": name, "routing_key": name}
        if way == "maybe_declare":
            options["declare"] = [self._entity(name)]
        elif way == "retry":
            options |= {"retry": True, "retry_policy": {"max_retries": 2}}
        self._traced(producer.publish)(body, **options)

    @property
    def _publishing(self) -> Any:
        """A connection of this thread's own: they are not to be shared."""
        if threading.current_thread() is threading.main_thread():
            return self._connection
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connect()
            self._connections.append(self._local.connection)
        found: Any = self._local.connection
        return found

    def publish_with(self, body: str, container: object) -> None:
        self._publish(self._publishing, self.queue, body, headers=container)

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {
            "a dict": lambda: {"tenant": "a", "number": 1, "list": ["a", 1], "nested": {"traceparent": "x"}},
            "an empty dict": dict,
            "None": lambda: None,
            "forwarded headers": lambda: {"tenant": "a", "Traceparent": "stale", "tracestate": "a=1"},
        }

    def failing(self) -> Sequence[Failing]:
        return [Failing("no JSON", lambda: self._fail(self._connection, object(), serializer="json"))]

    def _fail(self, channel: Any, body: Any, **options: Any) -> None:
        options = {"exchange": self.queue, "routing_key": self.queue, **options}
        self._traced(self._producer_class(channel).publish)(body, **options)

    def _traced(self, publish: Callable[..., Any]) -> Callable[..., Any]:
        return self._wrapped(adapter.traced_publish, publish)

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        with self._connection.channel() as channel:
            message = channel.prepare_message(
                body.encode(),
                content_type="text/plain",
                content_encoding="utf-8",
                headers={**(headers or {}), **fields},
                properties={"delivery_mode": 2},
            )
            channel.basic_publish(message, exchange=self.queue, routing_key=self.queue)

    def kept_publish(self) -> Callable[[str], object]:
        publish = self._producer_class(self._connection).publish
        return lambda body: publish(body, exchange=self.queue, routing_key=self.queue)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self._consume(self._connection, handler, count)

    def _consume(self, connection: Any, handler: Handler, count: int) -> None:
        job = _Job(self, connection, handler, count)
        if self._consumes == "ConsumerMixin":
            _Worker(job).run()
        elif self._consumes in _PUSHED:
            self._consume_pushed(connection, job)
        else:
            self._consume_pulled(connection, job)

    def _consume_pushed(self, connection: Any, job: _Job) -> None:
        with connection.channel() as channel, self._consumer(channel, job):
            while job.left:
                with job.refusing(), contextlib.suppress(socket.timeout):
                    connection.drain_events(timeout=1)
                job.check_deadline()

    def _consumer(self, channel: Any, job: _Job) -> kombu.Consumer:
        handlers: dict[str, Any] = (
            {"on_message": self._decorated(job.on_message)}
            if self._consumes == "on_message"
            else {"callbacks": [self._decorated(job.on_delivery)]}
        )
        return self._consumer_class(
            channel, [self._entity(self.queue)], prefetch_count=job.prefetch, **handlers
        )

    def _decorated(self, callback: Callable[..., None]) -> Callable[..., None]:
        if not self._is_explicit:
            return callback
        return adapter.traced_consumer(queue=self.queue, settings=self._settings)(callback)

    def _consume_pulled(self, connection: Any, job: _Job) -> None:
        with self._pulling(connection, job.prefetch) as get:
            while job.left:
                message = get()
                with job.refusing(), self._handling(message):
                    job.on_message(message)

    @contextmanager
    def _pulling(self, connection: Any, prefetch: int = 1) -> Iterator[Callable[[], kombu.Message]]:
        with connection.channel() as channel:
            if self._consumes == "Queue.get":
                queue = self._entity(self.queue)(channel)
                yield lambda: _polled(self._traced_get(queue.get))
                return
            with self._simple_class(channel, self._entity(self.queue)) as simple:
                simple.consumer.qos(prefetch_count=prefetch)
                yield functools.partial(self._traced_get(simple.get), timeout=DEADLINE)

    def _traced_get(self, get: Callable[..., Any]) -> Callable[..., Any]:
        return self._wrapped(adapter.traced_get, get)

    def traced_settle(self, settle: Callable[[], Any]) -> Callable[[], Any]:
        return self._wrapped(adapter.traced_settle, settle)

    def _handling(self, message: kombu.Message) -> contextlib.AbstractContextManager[Any]:
        return self._explicitly(lambda: adapter.traced_message(message, settings=self._settings))

    def consume_batch(self, handler: Handler, count: int) -> None:
        job = _Job(self, self._connection, handler, count)
        with self._connection.channel() as channel:
            queue = self._entity(self.queue)(channel)
            messages = [_polled(self._traced_get(queue.get)) for _ in range(count)]
            with adapter.traced_batch(messages, settings=self._settings):
                for message in messages:
                    job.on_message(message)

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        def consume() -> None:
            with self._connect() as connection:
                self._consume(connection, handler, 1)

        with ThreadPoolExecutor(count) as executor:
            for future in [executor.submit(consume) for _ in range(count)]:
                future.result(DEADLINE)

    def consume_killed(self, handler: Handler) -> None:
        run_killed(lambda: self._consume(self._connect(), handler, 1))
        self._await_redelivery()
        self.consume(handler)

    def _await_redelivery(self) -> None:
        """The broker gives back what a killed process had in hand."""

    def leave(self, how: str, handler: Handler) -> None:
        with contextlib.suppress(_LeftError):
            self._leave(how, handler)

    def _leave(self, how: str, handler: Handler) -> None:
        job = _Job(self, self._connection, handler, 2)
        with self._pulling(self._connection) as get:
            while True:
                message = get()
                with self._handling(message):
                    job.on_message(message)
                    if how == "break":
                        break
                    if how == "return":
                        return
                    raise _LeftError

    # What a plain client sees

    def counts(self) -> Counts:
        return Counts(left=self._size(self.queue))

    def _size(self, name: str) -> int:
        with self._connection.channel() as channel:
            return int(self._entity(name)(channel).queue_declare(passive=True).message_count)

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.KombuInstrumentor:
        return adapter.KombuInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        before = self._producer_class, self._consumer_class, self._queue_class, self._simple_class
        producer, consumer, queue, simple = (type(f"Derived{it.__name__}", (it,), {}) for it in before)
        self._producer_class, self._consumer_class, self._queue_class, self._simple_class = (
            producer,
            consumer,
            queue,
            simple,
        )
        try:
            yield
        finally:
            self._producer_class, self._consumer_class, self._queue_class, self._simple_class = before

    # What is expected

    @property
    def destination(self) -> str:
        return f"{self.queue}:{self.queue}"  # exchange and routing key; the queue is named as the latter

    @property
    def send_name(self) -> str:
        return f"publish {self.destination}"

    @property
    def receive_name(self) -> str:
        return f"poll {self.destination}"

    @property
    def process_name(self) -> str:
        return f"process {self.destination}"

    @property
    def settle_name(self) -> str:
        return f"ack {self.destination}"

    def process_attributes(self) -> dict[str, Any]:
        return {**self._attributes("process", "process"), "queueprop.message.queue_time": float}

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {
            "messaging.system": self.system,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": self.destination,
            **self._server(),
        }

    def _server(self) -> dict[str, Any]:
        address = urlsplit(self.url or "")
        return {"server.address": address.hostname, "server.port": address.port}


class AmqpDriver(KombuDriver):
    """RabbitMQ. The queue is a classic one, but a quorum queue where redeliveries are counted."""

    transport = "amqp"
    system = "rabbitmq"
    broker = "rabbitmq"
    tells_attempt = True

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._dead = f"dead-{self.queue}"
        self._queue_type = "classic"

    @property
    def queue_arguments(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {
            "x-queue-type": self._queue_type,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self._dead,
        }

    def reconnect(self) -> None:
        super().reconnect()
        with self._connection.channel() as channel:
            self._dead_queue(channel).declare()

    def publish(self, body: str, *args: Any, refusal: str | None = None, **options: Any) -> None:
        if refusal == "requeue" and self._queue_type == "classic":
            self._become_quorum()
        super().publish(body, *args, refusal=refusal, **options)

    def _become_quorum(self) -> None:
        with self._connection.channel() as channel:
            self._entity(self.queue)(channel).delete()
            self._queue_type = "quorum"
            self._entity(self.queue)(channel).declare()

    def close(self) -> None:
        with self._connection.channel() as channel:
            self._dead_queue(channel).delete()
        super().close()

    def _dead_queue(self, channel: Any) -> Any:
        return kombu.Queue(self._dead, channel=channel)

    def failing(self) -> Sequence[Failing]:
        gone = kombu.Connection("amqp://127.0.0.1:1//", transport_options=_IMPATIENT)
        return [
            *super().failing(),
            Failing("the broker is gone", lambda: self._fail(gone, "hello")),
            Failing(
                "unroutable",
                lambda: self._fail(self._connection, "hello", routing_key="nowhere", mandatory=True),
            ),
            Failing("no such exchange", lambda: self._fail(self._connection, "hello", exchange="nothing")),
        ]

    def _transport_options(self) -> dict[str, Any]:
        return {"confirm_publish": True}  # and with it an answer to each publish

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {**super().containers(), "read-only": lambda: MappingProxyType({"tenant": "a"})}

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not isinstance(value, str) or len(value) < 100_000  # headers must fit into one frame

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        found = []
        with self._connection.channel() as channel:  # closing it gives them back
            while (message := channel.basic_get(queue or self.queue)) is not None:
                body = message.body
                text = body.decode() if isinstance(body, bytes) else body
                found.append(WireMessage(text, *split_headers((message.headers or {}).items())))
        return found

    def counts(self) -> Counts:
        # RabbitMQ moves them there in its own time: a quorum queue writes that down first.
        wait_until(lambda: self._size_of_dead() >= self.rejected, "the rejected messages")
        return Counts(left=self._size(self.queue), dead=self._size_of_dead())

    def _size_of_dead(self) -> int:
        with self._connection.channel() as channel:
            return int(self._dead_queue(channel).queue_declare(passive=True).message_count)

    def send_attributes(self) -> dict[str, Any]:
        return {**super().send_attributes(), "messaging.rabbitmq.destination.routing_key": self.queue}

    def process_attributes(self) -> dict[str, Any]:
        return {
            **super().process_attributes(),
            "messaging.rabbitmq.destination.routing_key": self.queue,
            "messaging.rabbitmq.message.delivery_tag": int,
            "queueprop.message.delivery_attempt": 1,
        }


class _VirtualDriver(KombuDriver):
    """kombu itself does what a broker would: the message is JSON, and what is rejected is gone."""

    def _wire_message(self, payload: Mapping[str, Any]) -> WireMessage:
        body = payload["body"]
        if payload["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body).decode()
        return WireMessage(body, *split_headers(payload["headers"].items()))


class RedisDriver(_VirtualDriver):
    transport = "redis"
    system = "redis"
    broker = "redis"

    def _await_redelivery(self) -> None:
        with self._connection.channel() as channel:
            channel.visibility_timeout = 0  # it is over for what nobody acked

            def restore() -> bool:
                channel.qos.restore_visible(interval=1)  # as any consumer of the queue does now and then
                return self.counts().unacked == 0

            wait_until(restore, "an end of another consumer's look for the dead")

    def failing(self) -> Sequence[Failing]:
        gone = kombu.Connection("redis://127.0.0.1:1/0", transport_options=_IMPATIENT)
        return [*super().failing(), Failing("the broker is gone", lambda: self._fail(gone, "hello"))]

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not isinstance(value, bytes)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        with redis.Redis.from_url(self.url or "") as client:
            payloads: Any = client.lrange(queue or self.queue, 0, -1)
        return [self._wire_message(json.loads(payload)) for payload in reversed(payloads)]

    def counts(self) -> Counts:
        with redis.Redis.from_url(self.url or "") as client:
            left: Any = client.llen(self.queue)
            unacked: Any = client.hvals("unacked")
        return Counts(left, [json.loads(payload)[-1] for payload in unacked].count(self.queue))


class MemoryDriver(_VirtualDriver):
    transport = "memory"
    system = "memory"

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        gone = "the queues are gone with their process"
        return {**super().lacks(column), "kill": gone, "restart": gone}

    def _connect(self) -> Any:
        return kombu.Connection("memory://", transport_options={"polling_interval": 0.01})

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        return [
            self._wire_message(it) for it in list(memory_transport.Channel.queues[queue or self.queue].queue)
        ]

    def _server(self) -> dict[str, Any]:
        return {}


class FilesystemDriver(_VirtualDriver):
    transport = "filesystem"
    system = "filesystem"

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        return {
            **super().lacks(column),
            "kill": "what a killed process had in hand is gone with it",
            "restart": "folders have no server",
        }

    def _publish(self, *args: Any, **options: Any) -> None:
        super()._publish(*args, **options)
        time.sleep(0.001)  # of one millisecond's files the transport does not know which was first

    def open(self) -> None:
        self._folder = Path(self.url or tempfile.mkdtemp(prefix="queueprop-"))
        super().open()

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> Any:
        for name in ("messages", "control"):
            (self._folder / name).mkdir(exist_ok=True)
        return kombu.Connection("filesystem://", transport_options=self._transport_options())

    def _transport_options(self) -> dict[str, Any]:
        return {
            "data_folder_in": str(self._folder / "messages"),
            "data_folder_out": str(self._folder / "messages"),
            "control_folder": str(self._folder / "control"),
            "polling_interval": 0.01,
        }

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not isinstance(value, bytes)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        # Their names begin with milliseconds; times of files are coarser.
        files = sorted((self._folder / "messages").glob(f"*.{queue or self.queue}.msg"), key=_put_at)
        return [self._wire_message(json.loads(file.read_text())) for file in files]

    def _server(self) -> dict[str, Any]:
        return {}


class _BufferDriver(KombuDriver):
    """SimpleBuffer: without acks, and on RabbitMQ its connection's alone. It is there as long as the driver is."""

    styles = ("SimpleBuffer",)
    refusals = (Refusal("drop"),)

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        no_acks = "a SimpleBuffer has no acks: nothing is given back"
        return {
            **super().lacks(column),
            "concurrency": "a SimpleBuffer is its connection's alone",
            "kill": no_acks,
            "redelivery": no_acks,
            "settle": no_acks,
        }

    def reconnect(self) -> None:
        self._connection = self._connect()
        self._buffers = {
            name: self._simple_class(self._connection.channel(), name)
            for name in (self.queue, self.other_queue)
        }

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()
            buffer.channel.close()
        super().close()

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._simple_class = SimpleBuffer

    def _entity(self, name: str) -> Any:
        return self._buffers[name].queue

    @contextmanager
    def _pulling(self, connection: Any, prefetch: int = 1) -> Iterator[Callable[[], Any]]:
        yield self._get

    def _get(self) -> Any:
        return self._traced_get(self._buffers[self.queue].get)(timeout=DEADLINE)

    def consume_batch(self, handler: Handler, count: int) -> None:
        job = _Job(self, self._connection, handler, count)
        messages = [self._get() for _ in range(count)]
        with adapter.traced_batch(messages, settings=self._settings):
            for message in messages:
                job.on_message(message)

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        """Its parts are made of kombu's own classes; only itself is a subclass."""
        with super().subclassed():
            buffer = self._buffers[self.queue]
            before, buffer.__class__ = buffer.__class__, self._simple_class
            try:
                yield
            finally:
                buffer.__class__ = before

    def counts(self) -> Counts:
        return Counts(left=self._size(self.queue) + len(self._buffers[self.queue].buffer))

    def _size(self, name: str) -> int:
        return int(self._buffers[name].qsize())


class AmqpBufferDriver(_BufferDriver, AmqpDriver):
    def reconnect(self) -> None:
        super().reconnect()
        with self._connection.channel() as channel:
            self._dead_queue(channel).declare()


class RedisBufferDriver(_BufferDriver, RedisDriver):
    def _size(self, name: str) -> int:
        with redis.Redis.from_url(self.url or "") as client:
            size: Any = client.llen(name)  # an empty list is no list: kombu asks in vain how long it is
        return int(size)


class MemoryBufferDriver(_BufferDriver, MemoryDriver):
    pass


class FilesystemBufferDriver(_BufferDriver, FilesystemDriver):
    pass


def _put_at(file: Path) -> int:
    return int(file.name.partition("_")[0])


class _LeftError(Exception):
    """A loop's body raises it to leave."""


class _Job:
    """What a user of kombu writes around a handler: acks, and refuses where it raised."""

    def __init__(self, driver: KombuDriver, connection: Any, handler: Handler, count: int) -> None:
        self.driver = driver
        self.connection = connection
        self.handler = handler
        self.left = count
        self.prefetch = 1 if count < 100 else 50  # what is left over is given back, and counts as delivered
        self._message: kombu.Message | None = None
        self._requeued: set[str] = set()
        self._deadline = time.monotonic() + DEADLINE + count / 50

    def on_delivery(self, body: Any, message: kombu.Message) -> None:
        self.on_message(message)

    def on_message(self, message: kombu.Message) -> None:
        self._message = message
        self.left -= 1
        driver = self.driver

        def publish(body: str, headers: Any = None) -> None:
            driver._publish(self.connection, driver.other_queue, body, headers=headers)

        run(self.handler, Delivery(message.payload, message.headers, publish))
        driver.traced_settle(message.ack)()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Around what calls the handler: what came out of it is what kombu let through."""
        try:
            yield
        except HandlerError as error:
            tell_library_error(error)
            assert self._message is not None
            self._refuse(self._message)

    def _refuse(self, message: kombu.Message) -> None:
        refusal = message.properties.get("type")
        if refusal == "requeue" and message.payload not in self._requeued:
            self._requeued.add(message.payload)
            settle = message.requeue
        elif refusal in ("requeue", "reject"):
            settle = message.reject
            self.driver.rejected += 1
        else:
            settle = message.ack
        self.driver.traced_settle(settle)()

    def check_deadline(self) -> None:
        assert time.monotonic() < self._deadline, f"waited in vain for {self.left} more messages"


class _Worker(ConsumerMixin):  # type: ignore[misc]
    restart_limit: Any = TokenBucket(1000)

    def __init__(self, job: _Job) -> None:
        self.connection = job.connection
        self._job = job
        self._consumers: list[kombu.Consumer] = []

    def create_connection(self) -> kombu.Connection:
        return self._job.driver._connect()

    def get_consumers(self, Consumer: Any, channel: Any) -> list[kombu.Consumer]:
        self._consumers = [self._job.driver._consumer(channel, self._job)]
        return self._consumers

    @contextmanager
    def extra_context(self, connection: Any, channel: Any) -> Iterator[None]:
        with self._job.refusing():
            try:
                yield
            except HandlerError:
                self._consumers[
                    0
                ].cancel()  # or it is given back what it refuses, and loses it with the connection
                raise

    @property
    def should_stop(self) -> bool:
        self._job.check_deadline()
        return not self._job.left


def _polled(get: Callable[[], kombu.Message | None]) -> kombu.Message:
    found: list[kombu.Message] = []

    def poll() -> bool:
        message = get()
        if message is not None:
            found.append(message)
        return bool(found)

    wait_until(poll, "a message")
    return found[0]

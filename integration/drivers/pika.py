"""pika on a live RabbitMQ: every way to consume, through the explicit API and through the instrumentor."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel

from integration.contract.actions import Delivery, Handler, run, run_async
from integration.contract.driver import (
    Api,
    Failing,
    Refusal,
)
from integration.contract.telemetry import DEADLINE, tell_library_error, wait_until
from integration.drivers.pika_loop import Loop
from integration.drivers.rabbitmq import RabbitmqDriver, close
from integration.live import run_killed
from queueprop import Destination
from queueprop.adapters import pika as adapter
from queueprop.kit import rabbitmq


class PikaDriver(RabbitmqDriver):
    """BlockingConnection."""

    library = "pika"
    packages = frozenset({"pika"})
    ways: ClassVar[Sequence[str]] = ("basic_publish", "with confirms", "mandatory")
    styles: ClassVar[Sequence[str]] = ("callback", "consume()", "basic_get", "several consumers")
    loops = ("consume()",)
    pulls = ("basic_get",)
    shown_with_many = ("callback", "consume()", "SelectConnection")

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return {
            "consume()": ("break", "return", "exception", "cancel", "closed elsewhere", "dropped"),
            "basic_get": ("break", "return", "exception"),
        }.get(style, ())

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._connection_class: Any = pika.BlockingConnection

    # Life

    def reconnect(self) -> None:
        super().reconnect()
        self._lock = threading.Lock()
        self._publishers: dict[int, Any] = {}
        self._consumers: list[Any] = []

    def disconnect(self) -> None:
        for publisher in getattr(self, "_publishers", {}).values():
            close(publisher)
        super().disconnect()

    def _connect(self) -> Any:
        return self._connection_class(self._parameters)

    @property
    def _parameters(self) -> pika.URLParameters:
        return pika.URLParameters(self.url)

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
        # Rounded: the wait that is told then stays within the resolution, also where a connection is made first.
        properties = pika.BasicProperties(
            headers=dict(headers) if headers else None, timestamp=round(time.time())
        )
        self._publish(body, properties, way)

    def publish_with(self, body: str, container: object) -> None:
        self.declare()
        self._publish(body, container, None)

    def _publish(self, body: str, properties: Any, way: str | None) -> None:
        if way == "with confirms":
            publish = self._traced(self._confirming_channel().basic_publish)
            publish(exchange="", routing_key=self.queue, body=body.encode(), properties=properties)
        elif way == "mandatory":
            publish = self._traced(self._channel().basic_publish)
            publish("", self.queue, body.encode(), properties, mandatory=True)
        else:
            self._traced(self._channel().basic_publish)("", self.queue, body.encode(), properties)

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        stale = {"Traceparent": "stale", "tracestate": "a=1", "tenant": "a"}
        return {
            "None": lambda: None,
            "properties without headers": lambda: pika.BasicProperties(message_id="1", correlation_id="2"),
            "an empty table": lambda: pika.BasicProperties(headers={}),
            "a table": lambda: pika.BasicProperties(headers={"tenant": "a", "list": [1], "table": {"a": 1}}),
            "a forwarded table": lambda: pika.BasicProperties(headers=dict(stale)),
            "a read-only table": lambda: pika.BasicProperties(headers=MappingProxyType(stale)),
        }

    def failing(self) -> Sequence[Failing]:
        return [
            Failing("unroutable", lambda: self._publish_confirmed("", f"{self.queue}-nowhere")),
            Failing("nacked", self._publish_to_full_queue),
            Failing("no such exchange", lambda: self._publish_confirmed(f"{self.queue}-none", "key")),
            Failing("the channel is closed", self._publish_on_closed_channel),
            Failing("no body", lambda: self._traced(self._channel().basic_publish)("", self.queue, 7)),
        ]

    def _publish_confirmed(self, exchange: str, routing_key: str) -> None:
        channel = self._connection().channel()
        channel.confirm_delivery()
        self._traced(channel.basic_publish)(exchange, routing_key, b"lost", mandatory=True)

    def _publish_to_full_queue(self) -> None:
        with self.full_queue() as queue:
            self._publish_confirmed("", queue)

    def _publish_on_closed_channel(self) -> None:
        channel = self._connection().channel()
        channel.close()
        self._traced(channel.basic_publish)("", self.queue, b"lost")

    def kept_publish(self) -> Callable[[str], object]:
        self.declare()
        publish = self._channel().basic_publish
        return lambda body: publish("", self.queue, body.encode())

    def _traced(self, publish: Any) -> Any:
        return self._wrapped(adapter.traced_publish, publish)

    def _connection(self) -> Any:
        """A connection is for one thread."""
        thread = threading.get_ident()
        with self._lock:
            connection = self._publishers.get(thread)
            if connection is None:
                connection = self._publishers[thread] = self._connect()
                connection.queueprop_channel = connection.channel()
        return connection

    def _channel(self) -> Any:
        return self._connection().queueprop_channel

    def _confirming_channel(self) -> Any:
        channel = self._connection().channel()
        channel.confirm_delivery()
        return channel

    def flush(self) -> None:
        # Handlers publish on the channels that they consume by, which nobody else waits for.
        for connection in (*self._publishers.values(), *self._consumers):
            connection.queueprop_channel.queue_declare(self.queue, passive=True)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self.arrive()
        self._consume_here(handler, count)

    def consume_twice(self, handler: Handler) -> None:
        if self.style != "basic_get":
            super().consume_twice(handler)
            return
        self.arrive()
        with self._consuming(1) as channel:
            message = self._pull(channel)
            for _ in range(2):
                with self._scope(message):
                    run(handler, self._delivery(channel, message))
            self._ack(channel, message)

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self.arrive()
        with ThreadPoolExecutor(count) as executor:
            for future in [executor.submit(self._consume_here, handler, 1) for _ in range(count)]:
                future.result(DEADLINE)

    def consume_killed(self, handler: Handler) -> None:
        self.arrive()
        run_killed(lambda: self._consume_here(handler, 1))
        self._consume_here(handler, 1)

    def consume_batch(self, handler: Handler, count: int) -> None:
        self.arrive()
        with self._consuming(count) as channel:
            messages = [self._pull(channel) for _ in range(count)]
            with self._explicitly(lambda: adapter.traced_batch(messages, settings=self._settings)):
                for message in messages:
                    run(handler, self._delivery(channel, message))
            for message in messages:
                self._ack(channel, message)

    def _consume_here(self, handler: Handler, count: int) -> None:
        with self._consuming(count) as channel:
            if self.style == "consume()":
                self._consume_in_loop(channel, handler, count)
            elif self.style == "basic_get":
                for _ in range(count):
                    self._handle(channel, self._pull(channel), handler)
            else:
                self._consume_by_callbacks(channel, handler, count)

    @contextmanager
    def _consuming(self, count: int) -> Iterator[Any]:
        connection = self._connect()
        connection.queueprop_channel = channel = connection.channel()
        # No more than is asked for: what is given back without a word counts as delivered.
        channel.basic_qos(prefetch_count=100 if count > 100 else 1)
        with self._lock:
            self._consumers.append(connection)
        yield channel

    def _consume_by_callbacks(self, channel: Any, handler: Handler, count: int) -> None:
        handled = itertools.count(1)
        in_hand: list[Any] = []

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            in_hand[:] = [method, properties, body]
            if next(handled) == count:
                channel.stop_consuming()
            run(handler, self._delivery(channel, in_hand))
            self._ack(channel, in_hand)

        for callback in self._callbacks(on_message):
            channel.basic_consume(self.queue, callback)
        while channel.consumer_tags:
            try:
                channel.start_consuming()
            except Exception as error:
                self._refuse(channel, in_hand, error)

    def _callbacks(self, on_message: Any) -> list[Any]:
        """Consumers of one channel, each with a callback of its own."""
        if self._is_explicit:
            decorate = adapter.traced_consumer(queue=self.queue, settings=self._settings)
            return [decorate(on_message) for _ in range(self._consumer_count)]
        return [lambda *message: on_message(*message) for _ in range(self._consumer_count)]

    @property
    def _consumer_count(self) -> int:
        return 3 if self.style == "several consumers" else 1

    def _consume_in_loop(self, channel: Any, handler: Handler, count: int) -> None:
        handled = itertools.count(1)
        for message in self._loop(channel):
            if message[0] is None:
                continue
            self._handle(channel, message, handler)
            if next(handled) == count:
                break
        channel.cancel()

    def _loop(self, channel: Any, inactivity_timeout: float | None = 0.1) -> Any:
        loop = channel.consume(self.queue, inactivity_timeout=inactivity_timeout)
        if not self._is_explicit:
            return loop
        return adapter.traced_messages(loop, self._destination, settings=self._settings)

    @property
    def _destination(self) -> Destination:
        address = urlsplit(self.url or "")
        return rabbitmq.consumer_destination(
            "", self.queue, self.queue, self.system, address.hostname, address.port
        )

    def _pull(self, channel: Any) -> Any:
        get = self._wrapped(adapter.traced_get, channel.basic_get)
        found: list[Any] = []

        def pull() -> bool:
            found[:] = get(self.queue)
            return found[0] is not None

        wait_until(pull, f"a message in {self.queue}")
        return found

    def _handle(self, channel: Any, message: Any, handler: Handler) -> None:
        """One pulled message: a loop has its span already, but not the errors of its body."""
        try:
            if self.style == "consume()" and handler.action != "fail":
                scope: AbstractContextManager[Any] = contextlib.nullcontext()
            else:
                scope = self._scope(message)
            with scope:
                run(handler, self._delivery(channel, message))
        except Exception as error:
            self._refuse(channel, message, error)
        else:
            self._ack(channel, message)

    def _delivery(self, channel: Any, message: Any) -> Delivery:
        _, properties, body = message

        def publish(body: str, headers: Mapping[str, object] | None = None) -> None:
            properties = pika.BasicProperties(headers=dict(headers)) if headers is not None else None
            self._traced(channel.basic_publish)("", self.other_queue, body.encode(), properties)

        return Delivery(body.decode(), properties.headers, publish)

    def _ack(self, channel: Any, message: Any) -> None:
        method, _, body = message
        self._wrapped(adapter.traced_settle, channel.basic_ack)(method.delivery_tag)
        self.acked(body.decode())

    def _refuse(self, channel: Any, message: Any, error: Exception) -> None:
        """What a user does about an exception that came out of pika, or of the body of a loop."""
        tell_library_error(error)
        method, _, body = message
        requeue = self.requeues(body.decode(), method.redelivered)
        if requeue is not None:
            channel.basic_nack(method.delivery_tag, requeue=requeue)

    def leave(self, how: str, handler: Handler) -> None:
        self.arrive()
        with self._consuming(1) as channel:

            def handle(message: Any) -> None:
                run(handler, self._delivery(channel, message))

            if self.style == "basic_get":
                self.leave_loop(how, iter(lambda: self._pull(channel), None), handle, self._scope)
            elif how in ("break", "return", "exception"):
                # Without ticks: what it is left in the middle of is a message, however late that comes.
                self.leave_loop(how, self._loop(channel, inactivity_timeout=None), handle)
            else:
                self._leave_kept_loop(how, channel, handler)

    def _scope(self, message: Any) -> AbstractContextManager[Any]:
        return self._explicitly(lambda: adapter.traced_message(message, settings=self._settings))

    def _leave_kept_loop(self, how: str, channel: Any, handler: Handler) -> None:
        loop = self._loop(channel, inactivity_timeout=None)
        if how == "closed elsewhere":
            contextvars.copy_context().run(self._begin, loop, channel, handler)
            loop.close()
            return
        self._begin(loop, channel, handler)
        if how == "cancel":
            channel.cancel()
            if self._is_explicit:
                loop.close()  # nobody tells the explicit API of a cancel
        del loop

    def _begin(self, loop: Any, channel: Any, handler: Handler) -> None:
        for message in loop:
            run(handler, self._delivery(channel, message))
            break

    def close_consumers(self) -> None:
        with self._untraced():
            while self._consumers:
                close(self._consumers.pop())

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.PikaInstrumentor:
        return adapter.PikaInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        plain, self._connection_class = self._connection_class, _subclass_of(self._connection_class)
        try:
            yield
        finally:
            self._connection_class = plain


class PikaLoopDriver(PikaDriver):
    """SelectConnection and AsyncioConnection, whose callbacks run in a loop that the user starts.

    An exception of a callback makes pika abort the connection, so that the broker delivers the message again.
    """

    ways = ("basic_publish", "mandatory")
    refusals = (Refusal("requeue", 2),)
    styles = ("SelectConnection", "AsyncioConnection")

    @classmethod
    def at_once(cls, style: str) -> int:
        return 100 if style == "AsyncioConnection" else 8

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._loop_class: Any = None

    def failing(self) -> Sequence[Failing]:
        return super().failing()[-2:]

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        if self.style == "SelectConnection":
            super().consume_concurrently(handler, count)
            return
        self.arrive()
        self._consume_in_tasks(handler, count)

    def _consume_here(self, handler: Handler, count: int) -> None:
        """Connects as often as a handler's exception ends the connection."""
        handled = 0

        while handled < count:
            with self._looping(count) as loop:

                def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
                    nonlocal handled
                    handled += 1
                    run(handler, self._delivery(channel, (method, properties, body)))
                    self._ack(channel, (method, properties, body))
                    if handled == count:
                        loop.stop()

                for callback in self._callbacks(on_message):
                    loop.channel.basic_consume(self.queue, callback)
                loop.run()
                if loop.error is not None:
                    tell_library_error(loop.error)

    def _consume_in_tasks(self, handler: Handler, count: int) -> None:
        handled = itertools.count(1)
        with self._looping(count) as loop:

            async def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
                await run_async(handler, self._delivery(channel, (method, properties, body)))
                self._ack(channel, (method, properties, body))
                if next(handled) == count:
                    loop.stop()

            if self._is_explicit:
                handle = adapter.traced_consumer(queue=self.queue, settings=self._settings)(handle)
            tasks: list[asyncio.Task[None]] = []
            loop.channel.basic_consume(
                self.queue, lambda *message: tasks.append(loop.native.create_task(handle(*message)))
            )
            loop.run()

    @contextmanager
    def _looping(self, count: int) -> Iterator[Loop]:
        loop = self._connect_loop()
        loop.channel.basic_qos(prefetch_count=100 if count > 1 else 1)
        with self._lock:
            self._consumers.append(loop)
        try:
            yield loop
        finally:
            loop.flush(self.queue)

    def _connection(self) -> Any:
        thread = threading.get_ident()
        with self._lock:
            loop = self._publishers.get(thread)
            if loop is None:
                loop = self._publishers[thread] = self._connect_loop()
        return loop

    def _connect_loop(self) -> Loop:
        return Loop(self.style, self._parameters, self._loop_class)

    def _channel(self) -> Any:
        return self._connection().channel

    def _publish_on_closed_channel(self) -> None:
        loop = self._connect_loop()
        loop.close()
        self._traced(loop.channel.basic_publish)("", self.queue, b"lost")

    def flush(self) -> None:
        for publisher in self._publishers.values():
            publisher.flush(self.queue)

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        self._loop_class = _subclass_of(Loop.class_of(self.style))
        try:
            yield
        finally:
            self._loop_class = None


def _subclass_of(connection_class: Any) -> Any:
    """A connection with channel classes of the user's, as far as pika lets them have any."""
    if issubclass(connection_class, pika.BlockingConnection):
        below = _subclass_of(pika.SelectConnection)

        derived_facade = _derived(BlockingChannel)

        class DerivedBlocking(connection_class):  # type: ignore[misc]
            def __init__(self, parameters: Any) -> None:
                super().__init__(parameters, _impl_class=below)

            def channel(self, *args: Any) -> Any:
                channel = super().channel(*args)
                channel.__class__ = derived_facade
                return channel

        return DerivedBlocking

    derived_channel = _derived(Channel)

    class DerivedConnection(connection_class):  # type: ignore[misc]
        def _create_channel(self, *args: Any) -> Any:
            return derived_channel(self, *args)

    return DerivedConnection


def _derived(channel_class: Any) -> Any:
    class DerivedChannel(channel_class):  # type: ignore[misc]
        def basic_publish(self, *args: Any, **kwargs: Any) -> Any:
            return super().basic_publish(*args, **kwargs)

        def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
            return super().basic_consume(*args, **kwargs)

    return DerivedChannel

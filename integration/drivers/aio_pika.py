"""aio-pika on a live RabbitMQ: every way to consume, through both APIs; each verb by a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar

import aio_pika

from integration.contract.actions import Delivery, Handler, HandlerError, run, run_async
from integration.contract.driver import Api, Column, Need
from integration.contract.telemetry import DEADLINE, tell_library_error
from integration.drivers.event_loop import AsyncioDriver, EventLoop, left_by_cancel
from integration.drivers.rabbitmq import RabbitmqDriver
from queueprop.adapters import aio_pika as adapter

_LOOPS = ("async for", "iterator()")
_PULLS = ("get", "process()")


class AioPikaDriver(AsyncioDriver["_EventLoop"], RabbitmqDriver):
    """Robust connections, but for the style that says so."""

    library = "aio-pika"
    packages = frozenset({"aio_pika"})
    ways: ClassVar[Sequence[str]] = ("publish", "by keywords", "without confirms")
    styles: ClassVar[Sequence[str]] = ("callback", "sync callback", "not robust", *_LOOPS, *_PULLS)

    loops = _LOOPS
    pulls = _PULLS
    shown_with_many = ("callback", "async for")

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks = dict(super().lacks(column))
        if column.style == "process()":
            lacks["batch receive"] = "process() is of one message"
            if column.api == "explicit":
                lacks["settle"] = "process() acks by itself, which only the instrumentor sees"
        return lacks

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return ("break", "return", "exception", "cancel") if style in (*_LOOPS, *_PULLS) else ()

    @classmethod
    def at_once(cls, style: str) -> int:
        return 8 if style in ("sync callback", *_LOOPS) else 100

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._consumers: list[tuple[_EventLoop, Any]] = []
        robust = style != "not robust"
        self._connection_class: Any = aio_pika.RobustConnection if robust else aio_pika.Connection

    # Life

    def make_event_loop(self) -> _EventLoop:
        return _EventLoop(self._connection_class, self.url or "")

    def disconnect(self) -> None:
        self.close_consumers()  # while their loops are open
        self.close_event_loops()
        super().disconnect()

    def close_consumers(self) -> None:
        with self._untraced():
            while self._consumers:
                loop, connection = self._consumers.pop()
                loop.run(connection.close())

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
        message = aio_pika.Message(body.encode(), headers=dict(headers or {}), timestamp=round(time.time()))
        self._run(self._publish(message, way))

    def publish_with(self, body: str, container: Any) -> None:
        self.declare()
        self._run(self._publish(aio_pika.Message(body.encode(), headers=container)))

    async def _publish(self, message: Any, way: str | None = None) -> None:
        channel = await self._event_loop.channel(confirms=way != "without confirms")
        publish = self._traced(channel.default_exchange.publish)
        if way == "by keywords":
            await publish(message=message, routing_key=self.queue)
        else:
            await publish(message, self.queue)
        if way == "without confirms":
            await channel.get_queue(self.queue)  # the broker answers when it has the message

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
        async def unroutable() -> None:
            await publish(f"{self.queue}-nowhere", on_return_raises=True)

        async def nacked() -> None:
            with self.full_queue() as queue:
                await publish(queue)

        async def no_such_exchange() -> None:
            channel = await self._event_loop.new_channel()
            exchange = await channel.get_exchange(f"{self.queue}-none", ensure=False)
            await self._traced(exchange.publish)(aio_pika.Message(b"lost"), "key")

        async def internal() -> None:
            channel = await self._event_loop.new_channel()
            exchange = await channel.declare_exchange(f"{self.queue}-in", internal=True, auto_delete=True)
            await self._traced(exchange.publish)(aio_pika.Message(b"lost"), "key")

        async def no_expiration() -> None:
            await publish(self.queue, expiration="soon")

        async def publish(queue: str, on_return_raises: bool = False, **properties: Any) -> None:
            channel = await self._event_loop.new_channel(on_return_raises=on_return_raises)
            message = aio_pika.Message(b"lost", **properties)
            await self._traced(channel.default_exchange.publish)(message, queue)

        return {
            "unroutable": unroutable,
            "nacked": nacked,
            "no such exchange": no_such_exchange,
            "an internal exchange": internal,
            "no expiration": no_expiration,
        }

    def kept_publish(self) -> Callable[[str], object]:
        self.declare()
        publish = self._run(self._event_loop.channel()).default_exchange.publish
        return lambda body: self._run(publish(aio_pika.Message(body.encode()), self.queue))

    def _traced(self, publish: Any) -> Any:
        return self._wrapped(adapter.traced_publish, publish)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self.arrive()
        self._consume_here(handler, count)

    def _consume_here(self, handler: Handler, count: int) -> None:
        self._run(self.consume_by(self._event_loop, handler, count))

    def consume_twice(self, handler: Handler) -> None:
        async def consume() -> None:
            queue = await self._consuming(self._event_loop, 1)
            message = await self._pull(queue)
            for _ in range(2):
                async with self._scope(message, ignore_processed=True):
                    run(handler, self._delivery(message))

        if self.style not in _PULLS:
            super().consume_twice(handler)
            return
        self.arrive()
        self._run(consume())

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self.arrive()
        if self.style in ("callback", "not robust"):
            self._run(self.consume_by(self._event_loop, handler, count, prefetch=count))
        elif self.style in _PULLS:
            self._run(self._consume_in_tasks(handler, count))
        else:
            with ThreadPoolExecutor(count) as executor:
                for future in [executor.submit(self._consume_here, handler, 1) for _ in range(count)]:
                    future.result(DEADLINE)

    async def _consume_in_tasks(self, handler: Handler, count: int) -> None:
        queue = await self._consuming(self._event_loop, count)

        async def handle(message: Any) -> None:
            async with self._scope(message):
                await run_async(handler, self._delivery(message))

        await asyncio.gather(*[handle(await self._pull(queue)) for _ in range(count)])

    def consume_batch(self, handler: Handler, count: int) -> None:
        async def consume() -> None:
            queue = await self._consuming(self._event_loop, count)
            messages = [await self._pull(queue) for _ in range(count)]
            with self._explicitly(lambda: adapter.traced_batch(messages, settings=self._settings)):
                for message in messages:
                    run(handler, self._delivery(message))
            for message in messages:
                await self._ack(message)

        self.arrive()
        self._run(consume())

    async def _consuming(self, loop: _EventLoop, prefetch: int) -> Any:
        """The queue, on a channel of its own, which takes no more than is asked for."""
        connection = await loop.connect()
        self._consumers.append((loop, connection))
        channel = await connection.channel()
        await channel.set_qos(prefetch)
        return await channel.get_queue(self.queue)

    async def consume_by(self, loop: _EventLoop, handler: Handler, count: int, prefetch: int = 1) -> None:
        queue = await self._consuming(loop, 100 if count > 100 else prefetch)
        if self.style in _PULLS:
            for _ in range(count):
                await self._handle(await self._pull(queue), handler)
        elif self.style in _LOOPS:
            await self._consume_in_loop(queue, handler, count)
        else:
            await self._consume_by_callback(loop, queue, handler, count)

    async def _consume_by_callback(self, loop: _EventLoop, queue: Any, handler: Handler, count: int) -> None:
        arrived: list[Any] = []
        handled: asyncio.Queue[tuple[Any, Exception | None]] = asyncio.Queue()
        told = len(loop.told)

        async def on_message(message: Any) -> None:
            arrived.append(message)
            if len(arrived) == count:
                await queue.cancel(message.consumer_tag)
            try:
                await run_async(handler, self._delivery(message))
                await self.all_sent()
            except Exception as error:
                await self._refuse(message)
                handled.put_nowait((message, error))
                raise
            await self._ack(message)
            handled.put_nowait((message, None))

        def on_message_sync(message: Any) -> None:
            try:
                run(handler, self._delivery(message))
            except Exception as error:
                handled.put_nowait((message, error))
                raise
            handled.put_nowait((message, None))

        is_sync = self.style == "sync callback"
        callback: Any = on_message_sync if is_sync else on_message
        if self._is_explicit:
            callback = adapter.traced_consumer(queue=self.queue, settings=self._settings)(callback)
        await queue.consume(callback)
        for number in range(1, count + 1):
            message, error = await asyncio.wait_for(handled.get(), DEADLINE)
            told += error is not None
            if is_sync:
                if number == count:
                    await queue.cancel(message.consumer_tag)
                await self.all_sent()
                await (self._ack(message) if error is None else self._refuse(message))
        await loop.all_told(told)

    async def _consume_in_loop(self, queue: Any, handler: Handler, count: int) -> None:
        handled = 0
        async with self._iterable(queue) as messages:
            async for message in self._loop(messages):
                handled += 1
                if handled == count:
                    await queue.cancel(message.consumer_tag)  # else the next one would be delivered
                await self._handle(message, handler)
                if handled == count:
                    break

    def _iterable(self, queue: Any) -> Any:
        return queue.iterator() if self.style == "iterator()" else contextlib.nullcontext(queue)

    def _loop(self, messages: Any) -> Any:
        return self._wrapped(adapter.traced_messages, messages)

    async def _pull(self, queue: Any) -> Any:
        get = self._wrapped(adapter.traced_get, queue.get)
        end = time.monotonic() + DEADLINE
        while (message := await get(fail=False)) is None:
            assert time.monotonic() < end, f"waited in vain for a message in {self.queue}"
        return message

    async def _handle(self, message: Any, handler: Handler) -> None:
        """One that was pulled, or that a loop has given: that has its span already, but not the errors of its body."""
        has_span = self.style in _LOOPS and handler.action != "fail"
        try:
            async with contextlib.nullcontext() if has_span else self._scope(message):
                run(handler, self._delivery(message))
                await self.all_sent()
        except Exception as error:
            tell_library_error(error)
            if not message.processed:
                await self._refuse(message)
        else:
            if not message.processed:
                await self._ack(message)
            self.acked(message.body.decode())

    @asynccontextmanager
    async def _scope(self, message: Any, ignore_processed: bool = False) -> AsyncIterator[None]:
        """What the user of a pulled message writes."""

        def traced() -> AbstractContextManager[Any]:
            return adapter.traced_message(message, settings=self._settings)

        requeue = self._requeues(message)
        if self.style != "process()" or requeue is None:
            with self._explicitly(traced):
                yield
        else:
            with traced() if self._is_explicit else contextlib.nullcontext():
                async with message.process(requeue=requeue, ignore_processed=ignore_processed):
                    yield

    def _requeues(self, message: Any) -> bool | None:
        body = message.body.decode()
        return self.requeues(body, message.redelivered) if body in self._refused_by else False

    def _delivery(self, message: Any) -> Delivery:
        async def send(body: str, headers: Any) -> None:
            channel = await self._event_loop.channel()
            sent = aio_pika.Message(body.encode(), headers=headers)
            await self._traced(channel.default_exchange.publish)(sent, self.other_queue)

        def publish(body: str, headers: Any = None) -> None:
            self.send_soon(send(body, headers))

        return Delivery(message.body.decode(), message.headers, publish)

    async def _ack(self, message: Any) -> None:
        await self._wrapped(adapter.traced_settle, message.ack)()
        self.acked(message.body.decode())

    async def _refuse(self, message: Any) -> None:
        requeue = self._requeues(message)
        if requeue is not None:
            await message.nack(requeue=requeue)

    def leave(self, how: str, handler: Handler) -> None:
        async def leave() -> None:
            queue = await self._consuming(self._event_loop, 1)
            begun = asyncio.Event()
            leaving = self._leave(how, queue, handler, begun)
            await (left_by_cancel(leaving, begun) if how == "cancel" else leaving)

        self.arrive()
        self._run(leave())

    async def _leave(self, how: str, queue: Any, handler: Handler, begun: asyncio.Event) -> None:
        async def handle(message: Any) -> None:
            run(handler, self._delivery(message))
            begun.set()
            if how == "cancel":
                await asyncio.sleep(DEADLINE)

        async with self._iterable(queue) as messages:
            if self.style in _LOOPS:
                await self.leave_loop_async(how, self._loop(messages), handle)
                return
        with contextlib.suppress(HandlerError):
            while True:
                message = await self._pull(queue)
                async with self._scope(message):
                    await handle(message)
                    if how == "break":
                        break
                    if how == "return":
                        return
                    raise HandlerError("left")

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.AioPikaInstrumentor:
        return adapter.AioPikaInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        plain, self._connection_class = self._connection_class, _subclass_of(self._connection_class)
        try:
            yield
        finally:
            self._connection_class = plain

    # What is expected

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {**super()._attributes(name, kind), "messaging.message.id": str}  # aiormq gives each one


class _EventLoop(EventLoop):
    """Publishes by one connection."""

    def __init__(self, connection_class: Any, url: str) -> None:
        super().__init__()
        self._connection_class, self._url = connection_class, url
        self._connection: Any = None
        self._channels: dict[bool, Any] = {}

    async def connect(self) -> Any:
        return await aio_pika.connect(self._url, connection_class=self._connection_class)

    async def new_channel(self, confirms: bool = True, on_return_raises: bool = False) -> Any:
        if self._connection is None:
            self._connection = await self.connect()
        return await self._connection.channel(publisher_confirms=confirms, on_return_raises=on_return_raises)

    async def channel(self, confirms: bool = True) -> Any:
        if confirms not in self._channels:
            self._channels[confirms] = await self.new_channel(confirms)
        return self._channels[confirms]

    def close(self) -> None:
        if self._connection is not None:
            self.run(self._connection.close())
        super().close()


def _subclass_of(connection_class: Any) -> Any:
    channel_class = connection_class.CHANNEL_CLASS
    exchange_class, queue_class = channel_class.EXCHANGE_CLASS, channel_class.QUEUE_CLASS

    class Exchange(exchange_class):  # type: ignore[misc, valid-type]
        async def publish(self, *args: Any, **kwargs: Any) -> Any:
            return await super().publish(*args, **kwargs)

    class Queue(queue_class):  # type: ignore[misc, valid-type]
        async def consume(self, *args: Any, **kwargs: Any) -> Any:
            return await super().consume(*args, **kwargs)

    class Channel(channel_class):  # type: ignore[misc, valid-type]
        EXCHANGE_CLASS, QUEUE_CLASS = Exchange, Queue

    class Connection(connection_class):  # type: ignore[misc]
        CHANNEL_CLASS = Channel

    return Connection

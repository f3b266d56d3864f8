"""The aio-pika adapter without a broker: aio-pika's own exchanges, queues and messages on channels that go nowhere."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import importlib
import os
import pickle
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aio_pika")

from aio_pika import IncomingMessage, Message, RobustQueue
from aio_pika.exceptions import QueueEmpty
from aio_pika.exchange import Exchange
from aio_pika.queue import Queue, QueueIterator
from aiormq import spec
from aiormq.abc import DeliveredMessage
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import INVALID_SPAN, SpanContext, SpanKind, StatusCode, get_current_span, get_tracer
from pamqp.header import ContentHeader
from yarl import URL

import queueprop
from queueprop import Destination, Settings, guard
from queueprop.adapters import aio_pika as adapter
from queueprop.kit import rabbitmq
from queueprop.kit.libraries import MissingExtra
from queueprop.process import sigterm
from queueprop.testing import CapturedSpans
from tests.telemetry import is_since

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE_ID:032x}-b7ad6b7169203331-01"
SETTLED = Settings(settle_spans=True)
SENT_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Underlay:
    """As much of aiormq's channel as aio-pika needs. It keeps what it is given."""

    def __init__(self, url: str = "amqp://guest@rabbit.example:5672/") -> None:
        tune = SimpleNamespace(frame_max=131_072)
        self.connection = SimpleNamespace(url=URL(url), connection_tune=tune, basic_nack=True)
        self.is_closed = False
        self.published: list[dict[str, Any]] = []
        self.settled: list[tuple[str, dict[str, Any]]] = []
        self.waiting: list[DeliveredMessage] = []
        self.cancelled: list[str] = []
        self.answer: Any = spec.Basic.Ack(1)
        self.consumer: Any = None

    async def basic_publish(self, **given: Any) -> Any:
        self.published.append(given)
        given["properties"].message_id = given["properties"].message_id or "made by aiormq"
        return self.answer

    async def basic_consume(self, *, consumer_callback: Any, **given: Any) -> Any:
        self.consumer = consumer_callback
        for message in self.waiting:
            await consumer_callback(message)
        return spec.Basic.ConsumeOk("consumer")

    async def basic_cancel(self, consumer_tag: str, **given: Any) -> None:
        self.cancelled.append(consumer_tag)

    async def basic_get(self, queue: str, **given: Any) -> Any:
        empty = DeliveredMessage(
            delivery=spec.Basic.GetEmpty(),
            header=ContentHeader(),
            body=b"",
            channel=self,  # type: ignore[arg-type]
        )
        return self.waiting.pop(0) if self.waiting else empty

    async def basic_ack(self, **given: Any) -> None:
        self.settled.append(("ack", given))

    async def basic_nack(self, **given: Any) -> None:
        self.settled.append(("nack", given))

    async def basic_reject(self, **given: Any) -> None:
        self.settled.append(("reject", given))


class Channel:
    """As much of aio-pika's own channel, above that."""

    def __init__(self, underlay: Underlay, is_connected: bool = True) -> None:
        self.is_closed = False
        self._connection = SimpleNamespace(url=underlay.connection.url)
        self._channel = SimpleNamespace(channel=underlay) if is_connected else None
        self._underlay = underlay
        self._closed = asyncio.get_running_loop().create_future()

    async def get_underlay_channel(self) -> Any:
        return self._underlay

    def closed(self) -> Any:
        return self._closed


def delivered(underlay: Underlay, headers: Any = None, *, tag: int = 1, **given: Any) -> DeliveredMessage:
    """A message as aiormq hands it over."""
    redelivered, exchange = given.pop("redelivered", False), given.pop("exchange", "")
    properties = spec.Basic.Properties(headers=headers, **given)
    deliver = spec.Basic.Deliver("consumer", tag, redelivered, exchange, "orders")
    return DeliveredMessage(
        delivery=deliver,
        header=ContentHeader(properties=properties),
        body=b"hello",
        channel=underlay,  # type: ignore[arg-type]
    )


def incoming(
    underlay: Underlay, headers: Any = None, *, no_ack: bool = False, **given: Any
) -> IncomingMessage:
    return IncomingMessage(delivered(underlay, headers, **given), no_ack=no_ack)


def exchange_on(underlay: Underlay, name: str = "", *, is_connected: bool = True) -> Any:
    channel: Any = Channel(underlay, is_connected)
    return Exchange(channel, name)


def queue_on(underlay: Underlay, kind: Any = Queue) -> Any:
    channel: Any = Channel(underlay)
    return kind(channel, "orders", False, False, False, None)


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run_test


@pytest.fixture
def underlay() -> Underlay:
    return Underlay()


@pytest.fixture
def instrument() -> Iterator[Callable[..., None]]:
    instrumentor = adapter.AioPikaInstrumentor()

    def instrument(**settings: Any) -> None:
        instrumentor.instrument(settings=Settings(**settings))

    yield instrument
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def current() -> SpanContext:
    return get_current_span().get_span_context()


def only(spans: CapturedSpans, kind: SpanKind | None = None) -> Any:
    [span] = [span for span in spans if kind is None or span.kind is kind]
    return span


class TestPublish:
    @run
    async def test_the_message_is_not_altered(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """The caller's message and headers stay as they are, and go out again; everything else of them goes out."""
        message = Message(b"hello", headers={"tenant": "a"}, content_type="text/plain", correlation_id="2")
        message.lock()
        publish = adapter.traced_publish(exchange_on(underlay, "events").publish)
        for _ in range(2):
            assert await publish(message, "new", mandatory=False) is underlay.answer
        assert message.headers == {"tenant": "a"}
        assert message.message_id is None
        first, second = underlay.published
        assert (first["body"], first["exchange"], first["routing_key"]) == (b"hello", "events", "new")
        assert first["mandatory"] is False
        sent = first["properties"]
        assert (sent.content_type, sent.correlation_id) == ("text/plain", "2")
        assert set(sent.headers) == {"tenant", "traceparent"}
        assert sent.headers["traceparent"] != second["properties"].headers["traceparent"]
        span = captured_spans[0]
        assert (span.name, span.kind) == ("publish events:new", SpanKind.PRODUCER)
        assert span.attributes == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "events:new",
            "messaging.rabbitmq.destination.routing_key": "new",
            "messaging.message.id": "made by aiormq",
            "messaging.message.conversation_id": "2",
            "server.address": "rabbit.example",
            "server.port": 5672,
        }

    @run
    async def test_a_message_of_a_class_of_the_user_s(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """Properties that it makes by itself go out, with our headers."""

        class Order(Message):
            @property
            def properties(self) -> Any:
                return spec.Basic.Properties(headers={"lost": "1"}, message_type="order")

        publish = adapter.traced_publish(exchange_on(underlay).publish)
        await publish(message=Order(b"hello"), routing_key="orders")
        sent = underlay.published[0]["properties"]
        assert sent.message_type == "order"
        assert set(sent.headers) == {"traceparent"}

    @run
    async def test_a_function_around_it_may_write_to_the_message(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """It is given a message, whose headers it may add to or replace: that goes out, and not into the caller's."""
        exchange, message = exchange_on(underlay), Message(b"hello", headers={"tenant": "a"})
        given: list[Any] = []

        async def publish(message: Message, routing_key: str) -> None:
            given.append(isinstance(message, Message))
            message.headers["tenant"] = "b"
            message.headers = {**message.headers, "more": "1"}
            await exchange.publish(message, routing_key)

        await adapter.traced_publish(publish)(message, "orders")
        sent = underlay.published[0]["properties"].headers
        assert given == [True]
        assert (sent.pop("traceparent") is not None, sent) == (True, {"tenant": "b", "more": "1"})
        assert message.headers == {"tenant": "a"}

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    @run
    async def test_a_function_around_it_may_publish_a_copy(
        self, captured_spans: CapturedSpans, underlay: Underlay, copied: Any
    ) -> None:
        """Of the caller's class, with the context and what the function writes to it; the caller's stays as it was."""

        class Order(Message):
            def __copy__(self) -> Order:
                return Order(self.body, headers=self.headers)

            def __deepcopy__(self, memo: Any) -> Order:
                return Order(self.body, headers=copy.deepcopy(self.headers, memo))

        exchange, message = exchange_on(underlay), Order(b"hello", headers={"tenant": "a"})
        given: list[Any] = []

        async def urgent(message: Message, routing_key: str) -> None:
            message = copied(message)
            given.append(type(message))
            message.priority = 9
            await exchange.publish(message, routing_key)

        await adapter.traced_publish(urgent)(message, "orders")
        [sent], [span] = underlay.published, captured_spans
        assert given == [Order]
        assert (sent["body"], sent["properties"].priority) == (b"hello", 9)
        assert sent["properties"].headers["tenant"] == "a"
        assert sent["properties"].headers["traceparent"][36:52] == f"{span.context.span_id:016x}"
        assert span.status.status_code is StatusCode.UNSET
        assert (message.priority, message.headers) == (0, {"tenant": "a"})

    @pytest.mark.usefixtures("guarded")
    @run
    async def test_a_copy_that_takes_no_headers_goes_out_without_a_context(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """Of a class of the user's, whose copies are locked."""

        class Locked(Message):
            def __copy__(self) -> Locked:
                copied = Locked(self.body)
                copied.lock()
                return copied

        exchange = exchange_on(underlay)

        async def publish(message: Message, routing_key: str) -> None:
            await exchange.publish(copy.copy(message), routing_key)

        await adapter.traced_publish(publish)(Locked(b"hello"), "orders")
        assert underlay.published[0]["properties"].headers == {}

    @run
    async def test_a_function_around_it_may_pickle_it(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """As the caller's message is pickled: nothing of ours is in it."""
        kept: list[bytes] = []
        message = Message(b"hello", headers={"tenant": "a"})

        async def keep(message: Message, routing_key: str) -> None:
            kept.append(pickle.dumps(message))

        await adapter.traced_publish(keep)(message, "orders")
        assert kept == [pickle.dumps(message)]

    @run
    async def test_a_hook_is_given_the_publish(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """publish_hook sees exchange, routing key and the message with the headers that go out."""
        given: list[Any] = []
        settings = Settings(publish_hook=lambda span, message: given.append(message), body_size=True)
        publish = adapter.traced_publish(exchange_on(underlay, "events").publish, settings=settings)
        await publish(Message(b"hello"), "new")
        [publish_given] = given
        assert publish_given[:2] == ("events", "new")
        assert "traceparent" in publish_given.message.headers
        assert publish_given.message.body == b"hello"
        assert "headers" in repr(publish_given.message)  # as aio-pika logs it
        assert only(captured_spans).attributes["messaging.message.body.size"] == 5

    @run
    async def test_what_comes_back_is_an_error(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """An unroutable message is returned to the caller, as without us; its span is an ERROR that says why."""
        returned = spec.Basic.Return(312, "NO_ROUTE", "", "nowhere")
        underlay.answer = SimpleNamespace(delivery=returned)
        result = await adapter.traced_publish(exchange_on(underlay).publish)(Message(b"hello"), "nowhere")
        assert result is underlay.answer
        span = only(captured_spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "NO_ROUTE for routing key 'nowhere'"
        assert span.attributes["error.type"] == "NO_ROUTE"

    @run
    async def test_without_confirms_there_is_no_answer(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """None comes back, and is no error."""
        underlay.answer = None
        assert (
            await adapter.traced_publish(exchange_on(underlay).publish)(Message(b"hello"), "orders") is None
        )
        assert only(captured_spans).status.status_code is StatusCode.UNSET

    @run
    async def test_properties_that_cannot_be_made(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """aio-pika says so, by its own exception, which is the span's, too."""
        odd: Any = "soon"
        with pytest.raises(ValueError, match="Invalid timestamp type"):
            await adapter.traced_publish(exchange_on(underlay).publish)(
                Message(b"", expiration=odd), "orders"
            )
        assert only(captured_spans).attributes["error.type"] == "ValueError"
        assert underlay.published == []

    @run
    async def test_a_channel_that_is_closed(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """The exception of aio-pika's is the caller's, and the span's."""
        exchange = exchange_on(underlay)

        async def closed() -> Any:
            raise ConnectionError("closed")

        exchange.channel.get_underlay_channel = closed
        with pytest.raises(ConnectionError, match="closed"):
            await adapter.traced_publish(exchange.publish)(Message(b"hello"), "orders")
        assert only(captured_spans).status.status_code is StatusCode.ERROR

    @run
    async def test_headers_that_are_no_dictionary(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """They go out as they are: what is wrong with them is aio-pika's to say."""
        headers: Any = [("tenant", "a")]
        await adapter.traced_publish(exchange_on(underlay).publish)(
            Message(b"hello", headers=headers), "orders"
        )
        assert underlay.published[0]["properties"].headers is headers
        assert only(captured_spans).name == "publish orders"

    @run
    async def test_what_is_no_publish(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """No message, or arguments that do not fit: aio-pika's own exception, and no span."""
        publish = adapter.traced_publish(exchange_on(underlay).publish)
        with pytest.raises(AttributeError):
            await publish("hello", "orders")
        with pytest.raises(TypeError, match="routing_key"):
            await publish(Message(b"hello"))
        assert len(captured_spans) == 0

    @run
    async def test_headers_that_leave_no_room(
        self, captured_spans: CapturedSpans, underlay: Underlay, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Beyond a frame the broker would close the connection: the message goes out without a context, told once."""
        headers: Any = {"large": "x" * 130_980}
        message = Message(b"hello", headers=headers)
        assert 131_072 - len(message.properties.marshal()) in range(20, 100)
        await adapter.traced_publish(exchange_on(underlay).publish)(message, "orders")
        assert underlay.published[0]["properties"].headers == headers
        assert "leaves no room" in caplog.text

    @run
    async def test_a_limit_that_is_not_known(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """Before there is a connection nothing is measured."""
        exchange = exchange_on(underlay, is_connected=False)
        await adapter.traced_publish(exchange.publish)(
            Message(b"", headers={"large": "x" * 131_000}), "orders"
        )
        assert "traceparent" in underlay.published[0]["properties"].headers

    @pytest.mark.parametrize(
        ("url", "port"), [("amqp://rabbit.example/", 5672), ("amqps://rabbit.example/", 5671)]
    )
    def test_a_url_without_a_port(self, captured_spans: CapturedSpans, url: str, port: int) -> None:
        """It is the scheme's."""

        async def publish() -> None:
            await adapter.traced_publish(exchange_on(Underlay(url)).publish)(Message(b"hello"), "orders")

        asyncio.run(publish())
        assert only(captured_spans).attributes["server.port"] == port

    @run
    async def test_what_is_suppressed(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """Nothing is written, and it is the caller's own message that goes out."""
        message, given = Message(b"hello"), []

        async def publish(message: Message, routing_key: str) -> None:
            given.append(message)

        with suppress_instrumentation():
            await adapter.traced_publish(publish)(message, "orders")
        assert given[0] is message
        assert len(captured_spans) == 0


async def consuming(queue: Any, callback: Any, *messages: DeliveredMessage, **options: Any) -> None:
    """The callback is registered, and is given the messages as aiormq does."""
    await queue.consume(callback, **options)
    underlay = await queue.channel.get_underlay_channel()
    for message in messages:
        await underlay.consumer(message)


class TestCallbacks:
    @pytest.mark.parametrize("kind", [Queue, RobustQueue])
    @pytest.mark.parametrize("by", ["place", "keyword"])
    def test_a_coroutine_function(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any, kind: Any, by: str
    ) -> None:
        """It runs inside one CONSUMER span, which knows the queue; a robust queue keeps the user's own callback."""
        instrument()
        seen: list[int] = []
        began = time.time()

        async def on_message(message: IncomingMessage) -> None:
            await asyncio.sleep(0)
            seen.append(current().trace_id)

        async def consume() -> Any:
            queue = queue_on(underlay, kind)
            message = delivered(
                underlay, {"traceparent": TRACEPARENT}, exchange="shop", timestamp=SENT_AT, message_id="1"
            )
            if by == "place":
                await consuming(queue, on_message, message)
            else:
                await queue.consume(callback=on_message)
                await underlay.consumer(message)
            return queue

        queue = asyncio.run(consume())
        assert seen == [TRACE_ID]
        span = only(captured_spans)
        assert (span.name, span.kind) == ("process shop:orders", SpanKind.CONSUMER)
        waited = span.attributes["queueprop.message.queue_time"]
        assert is_since(began, began - SENT_AT.timestamp(), waited)
        assert dict(span.attributes) == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "shop:orders",
            "messaging.rabbitmq.destination.routing_key": "orders",
            "messaging.rabbitmq.message.delivery_tag": 1,
            "messaging.message.id": "1",
            "queueprop.message.delivery_attempt": 1,
            "queueprop.message.queue_time": waited,
            "server.address": "rabbit.example",
            "server.port": 5672,
        }
        if kind is RobustQueue:
            [kept] = queue._consumers.values()
            assert kept["callback"] is on_message

    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    def test_a_function(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any, api: str
    ) -> None:
        """A callback that is no coroutine function works, and aio-pika warns of it, as without us."""
        seen: list[int] = []

        def on_message(message: IncomingMessage) -> None:
            seen.append(current().trace_id)

        callback: Any = on_message
        if api == "instrumentor":
            instrument()
        else:
            callback = adapter.traced_consumer(queue="orders")(on_message)

        async def consume() -> None:
            with pytest.warns(DeprecationWarning, match="non-coroutine function .*on_message"):
                await queue_on(underlay).consume(callback)
            with pytest.warns(DeprecationWarning, match="non awaitable"):
                await underlay.consumer(delivered(underlay, {"traceparent": TRACEPARENT}))

        asyncio.run(consume())
        assert seen == [TRACE_ID]
        assert only(captured_spans).name == "process orders"

    def test_a_handler_of_two_brokers(self, captured_spans: CapturedSpans) -> None:
        """Each delivery's span names its own broker, also where exchange and routing key are the same."""
        handle: Any = adapter.traced_consumer(queue="orders")(lambda message: None)
        hosts = ["rabbit.example", "other.example", "rabbit.example"]
        for host in hosts:
            handle(incoming(Underlay(f"amqp://guest@{host}:5672/")))
        assert [(span.attributes or {})["server.address"] for span in captured_spans] == hosts

    @run
    async def test_what_it_raises(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """The very same exception comes to aio-pika, and is on the span, which process() inside doubles in nothing."""
        instrument(settle_spans=True)
        error = LookupError("no stock")
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

        async def on_message(message: IncomingMessage) -> None:
            async with message.process(ignore_processed=True), message.process():
                raise error

        with pytest.raises(LookupError) as raised:
            await consuming(queue_on(underlay), on_message, delivered(underlay))
        await asyncio.sleep(0)
        assert raised.value is error
        assert told == [error]
        span = only(captured_spans, SpanKind.CONSUMER)
        assert span.attributes["error.type"] == "LookupError"
        settled = only(captured_spans, SpanKind.CLIENT)
        assert (settled.name, settled.parent.span_id) == ("reject orders", span.context.span_id)

    @run
    async def test_what_is_no_callback(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """aio-pika is given it as it is."""
        instrument()
        odd: Any = 7
        await queue_on(underlay).consume(odd)
        with pytest.raises(TypeError, match="not callable"):
            await underlay.consumer(delivered(underlay))

    @run
    async def test_a_start_up_s_span_is_in_no_handler(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """Registered inside a span that has ended: it is neither parent nor link."""
        instrument()
        with get_tracer("start").start_as_current_span("start-up"):

            async def deliver() -> None:
                await registered.wait()
                await underlay.consumer(delivered(underlay))

            async def on_message(message: IncomingMessage) -> None: ...

            registered = asyncio.Event()
            reader = asyncio.create_task(deliver())  # which keeps the start-up's context
            await queue_on(underlay).consume(on_message)
        registered.set()
        await reader
        span = only(captured_spans, SpanKind.CONSUMER)
        assert (span.parent, span.links) == (None, ())


class TestLoops:
    @pytest.mark.parametrize("over", ["the queue", "its iterator"])
    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    def test_the_body_is_inside(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any, over: str, api: str
    ) -> None:
        """Each body in its own message's trace, one CONSUMER span each and none for the buffering."""
        if api == "instrumentor":
            instrument()
        seen: list[int] = []

        async def consume() -> None:
            queue = queue_on(underlay)
            underlay.waiting = [
                delivered(underlay, {"traceparent": f"00-{number:032x}-b7ad6b7169203331-01"}, tag=number)
                for number in (1, 2, 3)
            ]
            messages: Any = queue if over == "the queue" else queue.iterator()
            async for message in adapter.traced_messages(messages) if api == "explicit" else messages:
                seen.append(current().trace_id)
                if message.delivery_tag == 3:
                    break
            assert get_current_span() is INVALID_SPAN

        asyncio.run(consume())
        assert seen == [1, 2, 3]
        assert [(span.name, span.kind) for span in captured_spans] == [
            ("process orders", SpanKind.CONSUMER)
        ] * 3

    @run
    async def test_an_iterator_that_is_entered(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """``async with queue.iterator()`` gives the iterator itself; a second loop goes on where the first ended."""
        instrument()
        queue = queue_on(underlay)
        underlay.waiting = [delivered(underlay, tag=number) for number in (1, 2)]
        iterator = queue.iterator()
        seen: list[Any] = []
        messages = await iterator.__aenter__()
        assert messages is iterator
        for _ in range(2):
            async for message in messages:
                seen.append(message.delivery_tag)
                break
        assert seen == [1, 2]
        assert len(captured_spans) == 2

    @pytest.mark.parametrize("ended_by", ["close", "async with"])
    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    @run
    async def test_an_iterator_that_is_closed(
        self,
        captured_spans: CapturedSpans,
        underlay: Underlay,
        instrument: Any,
        ended_by: str,
        api: str,
    ) -> None:
        """``aiter(queue)`` is aio-pika's own iterator in all that this one has: it may be closed and entered, and then
        cancels its consumer, once the span of the message in hand has ended.
        """
        if api == "instrumentor":
            instrument()
        queue = queue_on(underlay)
        underlay.waiting = [delivered(underlay, {"traceparent": TRACEPARENT})]
        iterator: Any = adapter.traced_messages(queue) if api == "explicit" else aiter(queue)
        assert isinstance(iterator, QueueIterator)
        if ended_by == "close":
            await anext(iterator)
            assert (iterator.consumer_tag, current().trace_id) == ("consumer", TRACE_ID)
            await iterator.close()
        else:
            async with iterator as entered:
                assert entered is iterator
                await anext(entered)
        assert get_current_span() is INVALID_SPAN
        assert underlay.cancelled == ["consumer"]
        assert only(captured_spans).name == "process orders"

    @run
    async def test_the_error_of_a_body_is_told_by_process(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """A loop is not told what its body raised; ``message.process()`` in it is."""
        instrument()
        underlay.waiting = [delivered(underlay)]

        async def consume() -> None:
            async for message in queue_on(underlay):
                async with message.process():
                    raise LookupError("no stock")

        with pytest.raises(LookupError):
            await consume()
        gc.collect()
        assert only(captured_spans).attributes["error.type"] == "LookupError"

    @pytest.mark.parametrize("error", [SystemExit(143), asyncio.CancelledError()])
    @run
    async def test_what_sigterm_interrupts_is_left_to_others(
        self,
        captured_spans: CapturedSpans,
        underlay: Underlay,
        instrument: Any,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        """By default SIGTERM kills, and the broker delivers the message again. Where the process ends in order only
        since it is traced, ``process()`` must not reject it, neither in the handler that is interrupted nor in those
        that are cancelled with the loop.
        """
        instrument()
        monkeypatch.setattr(sigterm, "_ends_in", os.getpid())
        with pytest.raises(type(error)):
            async with incoming(underlay).process():
                raise error
        assert underlay.settled == []
        assert only(captured_spans).status.status_code is StatusCode.ERROR

    @run
    async def test_what_sigterm_interrupts_may_have_begun_before(
        self,
        captured_spans: CapturedSpans,
        underlay: Underlay,
        instrument: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also a block that was entered before aio-pika was instrumented."""
        context = incoming(underlay).process()
        await context.__aenter__()
        instrument()
        monkeypatch.setattr(sigterm, "_ends_in", os.getpid())
        error = SystemExit(143)
        await context.__aexit__(SystemExit, error, None)
        assert underlay.settled == []
        assert list(captured_spans) == []

    @run
    async def test_what_is_handled_before_the_end_is_acked(
        self,
        captured_spans: CapturedSpans,
        underlay: Underlay,
        instrument: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A handler that gets to its end meanwhile has handled its message."""
        instrument()
        monkeypatch.setattr(sigterm, "_ends_in", os.getpid())
        async with incoming(underlay).process():
            pass
        assert [name for name, _ in underlay.settled] == ["ack"]


class TestPulled:
    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    def test_get_has_a_receive_span(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any, api: str
    ) -> None:
        """The call's span is a CLIENT's; the message's, which knows the queue, is that of process()."""
        if api == "instrumentor":
            instrument()

        async def consume() -> None:
            underlay.waiting = [delivered(underlay, {"traceparent": TRACEPARENT}, exchange="shop")]
            queue = queue_on(underlay)
            if api == "explicit":
                message = await adapter.traced_get(queue.get)()
                with adapter.traced_message(message):
                    async with message.process():
                        assert current().trace_id == TRACE_ID
            else:
                async with (await queue.get()).process() as message:
                    assert current().trace_id == TRACE_ID
                    assert message.body == b"hello"
            assert get_current_span() is INVALID_SPAN

        asyncio.run(consume())
        receive, process = captured_spans
        assert (receive.name, receive.kind) == ("poll shop:orders", SpanKind.CLIENT)
        assert (process.name, process.kind) == ("process shop:orders", SpanKind.CONSUMER)
        assert underlay.settled == [("ack", {"delivery_tag": 1, "multiple": False})]

    @run
    async def test_an_empty_queue(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """None, or aio-pika's exception; no span, also of what is handled then."""
        instrument()
        queue = queue_on(underlay)
        with pytest.raises(QueueEmpty):
            await queue.get()
        message = await queue.get(fail=False)
        assert message is None
        with adapter.traced_message(message) as span:
            assert span is INVALID_SPAN
        assert len(captured_spans) == 0

    @run
    async def test_what_process_raises_is_the_span_s(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """Its body's exception, or that of the acknowledgement: the same object comes out, and nothing is current."""
        instrument()
        with pytest.raises(LookupError):
            async with incoming(underlay).process(requeue=True):
                raise LookupError("no stock")
        assert underlay.settled == [("reject", {"delivery_tag": 1, "requeue": True})]
        assert get_current_span() is INVALID_SPAN
        lost = ConnectionError("lost")

        async def fails(**given: Any) -> None:
            raise lost

        underlay.basic_ack = fails  # type: ignore[method-assign]
        with pytest.raises(ConnectionError) as raised:
            async with incoming(underlay, tag=2).process():
                pass
        assert raised.value is lost
        assert get_current_span() is INVALID_SPAN
        errors = [span.attributes["error.type"] for span in captured_spans if span.attributes]
        assert errors == ["LookupError", "ConnectionError"]

    @run
    async def test_process_across_uninstrument(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """Entered before instrument(): left as without us."""
        context = incoming(underlay).process()
        await context.__aenter__()
        instrument()
        await context.__aexit__(None, None, None)
        assert underlay.settled[0][0] == "ack"
        assert len(captured_spans) == 0

    @run
    async def test_one_that_nobody_handles_in_its_trace(
        self,
        captured_spans: CapturedSpans,
        underlay: Underlay,
        instrument: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is told, once it is dropped: a message takes no weak reference, and what stands for it goes with it."""
        instrument()
        underlay.waiting = [delivered(underlay), delivered(underlay, tag=2)]
        queue = queue_on(underlay)
        message = await queue.get()
        with pytest.raises(TypeError):
            weakref.ref(message)
        del message
        gc.collect()
        await queue.get()
        assert "with traced_message(message):` of queueprop.adapters.aio_pika" in caplog.text

    @run
    async def test_a_batch(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """One CONSUMER span with a link for each, by the destination that is given."""
        messages = [incoming(underlay, {"traceparent": TRACEPARENT}, tag=tag) for tag in (1, 2)]
        with adapter.traced_batch([*messages, None], Destination("rabbitmq", "orders")):
            pass
        span = only(captured_spans)
        assert (span.name, len(span.links)) == ("process orders", 2)

    @run
    async def test_a_message_with_odd_fields(self, captured_spans: CapturedSpans, underlay: Underlay) -> None:
        """Without a tag, with fields of other types: they are left out."""
        message: Any = incoming(underlay)
        message.delivery_tag, message.message_id, message.timestamp = None, 7, "8"
        with adapter.traced_message(message):
            pass
        attributes = only(captured_spans).attributes
        assert "messaging.message.id" not in attributes
        assert "messaging.rabbitmq.message.delivery_tag" not in attributes
        assert "queueprop.message.queue_time" not in attributes


class TestSettlements:
    @run
    async def test_each_is_a_child_of_its_message_s_span(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """However late: ack, nack and reject of the explicit API, under Settings(settle_spans=True)."""
        messages = {
            name: incoming(underlay, tag=tag) for tag, name in enumerate(("ack", "nack", "reject"), 1)
        }
        for message in messages.values():
            with adapter.traced_message(message, settings=SETTLED):
                pass
        for name, message in messages.items():
            await adapter.traced_settle(getattr(message, name), settings=SETTLED)()
        processes, settled = captured_spans[:3], captured_spans[3:]
        assert [span.name for span in settled] == ["ack orders", "nack orders", "reject orders"]
        assert [span.parent and span.parent.span_id for span in settled] == [
            span.context and span.context.span_id for span in processes
        ]

    @run
    async def test_several_at_once(
        self, captured_spans: CapturedSpans, underlay: Underlay, instrument: Any
    ) -> None:
        """``multiple``: one span for all up to that message, with links; what came later is settled alone."""
        instrument(settle_spans=True)
        messages = [incoming(underlay, {"traceparent": TRACEPARENT}, tag=tag) for tag in (1, 2, 3)]
        for message in messages:
            with adapter.traced_message(message, settings=SETTLED):
                pass
        await messages[1].ack(multiple=True)
        await messages[2].ack()
        first, second = captured_spans[3:]
        assert first.attributes is not None
        assert second.attributes is not None
        assert first.attributes["messaging.batch.message_count"] == 2
        assert len(first.links) == 1
        assert "messaging.batch.message_count" not in second.attributes

    @run
    async def test_what_needs_none_is_not_remembered(
        self, captured_spans: CapturedSpans, underlay: Underlay
    ) -> None:
        """Delivered without acks: aio-pika's own exception, and no span."""
        message = incoming(underlay, no_ack=True)
        with adapter.traced_message(message, settings=SETTLED):
            pass
        with pytest.raises(TypeError, match="no_ack"):
            await adapter.traced_settle(message.ack, settings=SETTLED)()
        assert len(captured_spans) == 1


class TestWrongObjects:
    @pytest.mark.parametrize(
        ("word", "given", "form"),
        [
            (adapter.traced_publish, Exchange.publish, "traced_publish(exchange.publish)"),
            (adapter.traced_publish, Queue.get, "traced_publish(exchange.publish)"),
            (adapter.traced_get, Exchange.publish, "traced_get(queue.get)"),
            (adapter.traced_settle, Queue.get, "traced_settle(message.ack)"),
            (adapter.traced_consumer, Message, '@traced_consumer(queue="orders")'),
            (adapter.traced_messages, 7, "traced_messages(queue)"),
        ],
    )
    def test_where_a_program_is_set_up(self, word: Any, given: Any, form: str) -> None:
        """A TypeError of one line that shows the right form."""
        with pytest.raises(TypeError) as raised:
            word(given)
        assert form in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_queue_s_name(self) -> None:
        """It is a text."""
        queue: Any = 7
        with pytest.raises(TypeError, match='queue="orders"'):
            adapter.traced_consumer(queue=queue)

    def test_what_is_no_message(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where a message is at hand: one line, no span, and the block runs. So does a handler that is given none."""
        with adapter.traced_message(Message(b"sent, not received")) as span:
            assert span is INVALID_SPAN
        assert adapter.traced_consumer(lambda *given: len(given))("hello") == 1
        assert len(captured_spans) == 0
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2
        assert all("message of aio-pika's" in line for line in lines)


def test_either_name_instruments_it(instrument: Any) -> None:
    """``aio-pika``, as pip knows it, and ``aio_pika``, as Python does."""
    instrumentor = adapter.AioPikaInstrumentor()
    for name in ("aio-pika", "aio_pika"):
        queueprop.instrument(name)
        assert instrumentor.is_instrumented_by_opentelemetry
        queueprop.uninstrument(name)
        assert not instrumentor.is_instrumented_by_opentelemetry


def test_a_fault_of_ours_is_not_the_caller_s(
    monkeypatch: pytest.MonkeyPatch, guarded: None, underlay: Underlay
) -> None:
    """Whatever raises in the reading of a message: it is published, delivered and settled all the same."""

    def raises(*args: Any) -> Any:
        raise LookupError("no")

    for name in ("producer_destination", "consumer_destination"):
        monkeypatch.setattr(rabbitmq, name, raises)
    handled: list[Any] = []

    async def all_of_it() -> None:
        await adapter.traced_publish(exchange_on(underlay).publish)(Message(b"hello"), "orders")
        adapter.traced_consumer(handled.append)(incoming(underlay))

    asyncio.run(all_of_it())
    assert underlay.published[0]["body"] == b"hello"
    assert len(handled) == 1
    assert guard._logged


def test_the_extra_is_named_when_aio_pika_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; another module that is missing is not mistaken for it."""
    monkeypatch.delitem(sys.modules, "queueprop.adapters.aio_pika")
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(MissingExtra, match=r'pip install "queueprop\[aio-pika\]"'):
        importlib.import_module("queueprop.adapters.aio_pika")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "queueprop.adapters.aio_pika")
    monkeypatch.setitem(sys.modules, "aio_pika.abc", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("queueprop.adapters.aio_pika")
    assert not isinstance(raised.value, MissingExtra)

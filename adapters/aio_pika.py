"""aio-pika: RabbitMQ's messages in their publishers' traces. aio-pika 9.4 and newer, robust connections or not.

The context travels in the message's ``headers``, as text. The caller's ``Message`` and its headers stay as they were:
what goes out is the same message with headers of ours.

Two things shape this file:

- ``async with message.process():`` is a scope that users write already, so it is the one of a message that was pulled.
- A delivery names its exchange and routing key, not its queue. The queue is known where it is consumed from.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar, overload

import wrapt
from opentelemetry.trace import Span

from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls, checks, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch, Rival, Rivals
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.kept import stand_in
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings

try:
    from aio_pika import Exchange, IncomingMessage, Queue
    from aio_pika.abc import AbstractIncomingMessage, AbstractMessage, AbstractQueueIterator
    from aio_pika.message import ProcessContext
    from aio_pika.queue import QueueIterator
except ModuleNotFoundError as error:
    if error.name != "aio_pika":
        raise
    raise missing_extra(__name__, "aio-pika", "aio-pika") from None

M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: the message is the caller's, with a copy of its headers."""

    exchange: str
    routing_key: str
    message: AbstractMessage


def traced_publish(publish: F, *, settings: Settings | None = None) -> F:
    """Wraps an exchange's publish: ``publish = traced_publish(channel.default_exchange.publish)``.

    Its span ends when the call has returned: with confirms, a nack and an unroutable message that comes back are errors
    of the span. A ``functools.partial`` of it, and a coroutine function with the same arguments around it, may be given
    as well. ``settings`` are instead of those of the environment. Raises TypeError for anything else, as all words do.
    """
    return _words.publish(publish, settings)


@overload
def traced_consumer(callback: F) -> F: ...
@overload
def traced_consumer(
    *, queue: str | None = None, destination: Destination | None = None, settings: Settings | None = None
) -> Callable[[F], F]: ...
def traced_consumer(
    callback: F | None = None,
    *,
    queue: str | None = None,
    destination: Destination | None = None,
    settings: Settings | None = None,
) -> F | Callable[[F], F]:
    """Decorates a consumer's callback, a coroutine function or not::

        @traced_consumer(queue="orders")
        async def on_message(message): ...

        await queue.consume(on_message)

    Args:
        queue: the queue that it consumes from; aio-pika's messages do not tell it.
        destination: instead of the one that exchange, routing key and queue make.
        settings: instead of those of the environment.
    """
    checks.check_name("traced_consumer", "queue", queue)
    return _words.consumer(callback, lambda _: Source(None, queue), destination, settings)


def traced_messages(
    iterable: AsyncIterable[M], destination: Destination | None = None, *, settings: Settings | None = None
) -> AsyncMessages[M]:
    """A loop over a queue, or over its ``iterator()``, whose body runs inside each message's CONSUMER span::

        async with queue.iterator() as messages:
            async for message in traced_messages(messages): ...

    The span ends when the next message is asked for, and when the loop is left. Options as for ``traced_consumer``.
    """
    return _words.messages(iterable, destination, settings, _source_of(iterable))


def traced_message(
    message: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one message that was pulled, as a context manager::

        message = await queue.get()
        with traced_message(message):
            async with message.process(): ...

    Where ``get`` is not traced, nothing but the destination tells the queue. Of None, which ``get(fail=False)`` gives
    for an empty queue, there is no span.
    """
    return _words.message(message, destination, settings)


def traced_batch(
    messages: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for messages of one queue, with a link for each, as a context manager."""
    return _words.batch(messages, destination, settings)


def traced_get(get: F, *, settings: Settings | None = None) -> F:
    """Wraps a queue's ``get``, which then has a receive span: ``get = traced_get(queue.get)``.

    It opens no scope: handle what it returns inside ``traced_message``, which then also knows the queue.
    """
    return _words.get(get, settings)


def traced_settle(settle: F, *, settings: Settings | None = None) -> F:
    """Wraps ``ack``, ``nack`` or ``reject`` of a message: ``await traced_settle(message.ack)()``.

    Under ``Settings(settle_spans=True)``, which the consumer must have too, a settlement is a span: a child of the
    message's CONSUMER span, from any task and however late.
    """
    return _words.settle(settle, settings)


class AioPikaInstrumentor(Adapter):
    """Traces what is published and consumed through aio-pika from now on, by the patterns RPC and Master as well.

    ``async with message.process():`` is the span of a message that ``queue.get()`` gave. ``opentelemetry-instrument``
    finds it by itself, unless ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_aio_pika``.
    """

    library = "aio-pika"
    requires = ("aio-pika >= 9.4",)
    rivals = Rivals("aio-pika", Rival.contrib("aio_pika", "AioPikaInstrumentor"))

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(AIO_PIKA, self.engine, lambda: self.is_active)
        yield Patch(Exchange, "publish", hooks.publish_async)
        # A RobustQueue keeps the user's own callback, and calls this again after a reconnect.
        yield Patch(Queue, "consume", hooks.registers(0, "callback", is_theirs=_is_of_an_iterator))
        yield Patch(Queue, "get", hooks.pull_async)
        for loop in (Queue, QueueIterator):
            yield Patch(loop, "__aiter__", hooks.iterates(AsyncMessages))
        for name in ("ack", "nack", "reject"):
            yield Patch(IncomingMessage, name, hooks.settle_async)
        yield Patch(ProcessContext, "__aenter__", hooks.enter_async)
        yield Patch(ProcessContext, "__aexit__", hooks.exit_async)


class _AioPika(Library):
    name = "aio-pika"
    message_form = "message of aio-pika's"
    message_type = AbstractIncomingMessage
    is_async = True

    def publication(
        self, exchange: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        given = calls.bound(_publish_arguments, args, kwargs)
        if given is None or not isinstance(given[0], AbstractMessage):
            return None
        return _Publication(exchange, *given)

    def message(self, message: Any) -> Message:
        return rabbitmq.delivered(message, message, message.body, message)

    def consumed_from(self, message: Any, source: Source | None) -> Destination:
        queue, via = (None, None) if source is None else (source.name, source.via)
        exchange, key = getattr(message, "exchange", None), getattr(message, "routing_key", None)
        address = _address(_channel_of(message) or getattr(via, "channel", None))
        return rabbitmq.consumer_destination(exchange, key, queue, rabbitmq.SYSTEM, *address)

    def identity(self, message: Any) -> tuple[object, Hashable] | None:
        return stand_in(message, "_loop"), None

    def source(self, queue: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        return _source_of(queue)

    def settlement_of(self, message: Any, source: Source | None) -> tuple[Any, Hashable] | None:
        return None if message.processed else (_channel_of(message), message.delivery_tag)

    def settled(self, message: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        multiple = calls.given(0, "multiple", args, kwargs)
        return rabbitmq.settlement(call.__name__, _channel_of(message), message.delivery_tag, multiple)


AIO_PIKA = _AioPika()

_words = Words(
    AIO_PIKA,
    publish=Call("an exchange's publish, as in traced_publish(exchange.publish)", ("publish",)),
    handler='as in @traced_consumer(queue="orders")',
    iterable="a queue or its iterator, as in traced_messages(queue)",
    get=Call("a queue's get, as in traced_get(queue.get)", ("get",)),
    settle=Call(
        "a message's ack, nack or reject, as in traced_settle(message.ack)", ("ack", "nack", "reject")
    ),
)


# Publishing


class _Publication(rabbitmq.TablePublication):
    """A ``publish``, with headers that are ours to write to."""

    library = "aio-pika"

    def __init__(self, exchange: Any, message: Any, routing_key: Any) -> None:
        self._channel = getattr(exchange, "channel", None)
        given = message.headers or {}
        headers = dict(given) if isinstance(given, dict) else None
        outgoing: Any = _Outgoing(message, headers)
        name: Any = getattr(exchange, "name", None)
        described = rabbitmq.published(message, headers, message.body, Publish(name, routing_key, outgoing))
        destination = rabbitmq.producer_destination(
            name, routing_key, rabbitmq.SYSTEM, *_address(self._channel)
        )
        super().__init__(destination, described, given, outgoing, (0, "message"))

    def frame_max(self) -> int:
        underlay = getattr(getattr(self._channel, "_channel", None), "channel", None)  # None: not connected
        tune = getattr(getattr(underlay, "connection", None), "connection_tune", None)
        return getattr(tune, "frame_max", 0)

    def encoded(self) -> int:
        return len(self.outgoing.properties.marshal())

    def end(self, result: Any) -> None:
        returned = getattr(result, "delivery", None)  # a message that came back, unless ``on_return_raises``
        if returned is not None:
            text = returned.reply_text
            self.send.fail(text, f"{text} for routing key {returned.routing_key!r}")
        self.send.close_with(
            self.outgoing.sent, lambda it: {} if it is None else {semconv.MESSAGE_ID: it.message_id}
        )


class _Outgoing(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """The caller's message in all but its headers."""

    headers: Any = None
    sent: Any = None
    """Its properties: aiormq gives them an id, where the caller gave none."""

    def __init__(self, message: Any, headers: dict[Any, Any] | None) -> None:
        super().__init__(message)
        self.headers = headers

    @property
    def properties(self) -> Any:
        self.sent = properties = self.__wrapped__.properties  # made anew each time
        properties.headers = self.headers
        return properties

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # aio-pika logs it


def _publish_arguments(
    message: Any, routing_key: Any, *, mandatory: Any = True, immediate: Any = False, timeout: Any = None
) -> tuple[Any, Any]:
    return message, routing_key


# Messages, queues and channels


def _source_of(given: Any) -> Source:
    """Of a queue or its iterator."""
    queue = getattr(given, "_amqp_queue", given)
    return Source(queue, getattr(queue, "name", None))


def _is_of_an_iterator(callback: Any) -> bool:
    return isinstance(getattr(callback, "__self__", None), AbstractQueueIterator)


def _channel_of(message: Any) -> Any:
    """aiormq's channel; ``message.channel`` raises once that is closed."""
    return getattr(message, "_IncomingMessage__channel", None)


def _address(channel: Any) -> tuple[str | None, int | None]:
    """Host and port, of a channel of aiormq's or of aio-pika's, which keeps its connection to itself."""
    url = getattr(getattr(channel, "connection", None) or getattr(channel, "_connection", None), "url", None)
    if url is None:
        return None, None
    return url.host, url.port or (5671 if url.scheme == "amqps" else 5672)

"""aio-pika: RabbitMQ's messages in their publishers' traces. aio-pika 9.4 and newer, robust connections or not.

The context travels in the message's ``headers``, as text. The caller's ``Message`` and its headers stay as they were:
what goes out is the same message with headers of ours.

Two things shape this file:

- ``async with message.process():`` is a scope that users write already, so it is the one of a message that was pulled.
- A delivery names its exchange and routing key, not its queue. The queue is known where it is consumed from.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from opentelemetry.trace import Span

from queueprop.adapters.aio_pika.channels import broker_of, channel_of, source_of
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls, checks, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.kept import stand_in
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.on_demand import on_demand
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings

try:
    import aio_pika  # noqa: F401  where it is missing, that is told by this name
    from aio_pika.abc import AbstractIncomingMessage, AbstractMessage
except ModuleNotFoundError as error:
    if error.name != "aio_pika":
        raise
    raise missing_extra(__name__, "aio-pika", "aio-pika") from None

if TYPE_CHECKING:
    from queueprop.adapters.aio_pika.instrumentor import AioPikaInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, AioPikaInstrumentor="instrumentor")

__all__ = [
    "AIO_PIKA",
    "AioPikaInstrumentor",
    "Publish",
    "traced_batch",
    "traced_consumer",
    "traced_get",
    "traced_message",
    "traced_messages",
    "traced_publish",
    "traced_settle",
]

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
    _ = AIO_PIKA.publication_type  # imported here, not within the first publish
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
    return _words.consumer(callback, Source(None, queue), destination, settings)


def traced_messages(
    iterable: AsyncIterable[M], destination: Destination | None = None, *, settings: Settings | None = None
) -> AsyncMessages[M]:
    """A loop over a queue, or over its ``iterator()``, whose body runs inside each message's CONSUMER span::

        async with queue.iterator() as messages:
            async for message in traced_messages(messages): ...

    The span ends when the next message is asked for, and when the loop is left. Options as for ``traced_consumer``.
    """
    return _words.messages(iterable, destination, settings, source_of(iterable))


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
        return self.publication_type(exchange, *given)

    @functools.cached_property
    def publication_type(self) -> Callable[..., Publication]:
        """Imported where a publish is to be traced, since it stands on wrapt: who only consumes needs none."""
        from queueprop.adapters.aio_pika.publishing import AioPikaPublication

        return AioPikaPublication

    def message(self, message: Any) -> Message:
        return rabbitmq.delivered(message, message, message.body, message)

    def route(self, message: Any) -> tuple[object, ...]:
        try:
            url = message._IncomingMessage__channel.connection.url
        except AttributeError:
            url = None  # a double, or a connection that has none
        return getattr(message, "exchange", None), getattr(message, "routing_key", None), url

    def consumed_from(self, message: Any, source: Source | None) -> Destination:
        queue, via = (None, None) if source is None else (source.name, source.via)
        exchange, key = getattr(message, "exchange", None), getattr(message, "routing_key", None)
        channel = channel_of(message) or getattr(via, "channel", None)
        return rabbitmq.consumer_destination(exchange, key, queue, *broker_of(channel))

    def identity(self, message: Any) -> tuple[object, Hashable] | None:
        return stand_in(message, "_loop"), None

    def source(self, queue: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        return source_of(queue)

    def settlement_of(self, message: Any, source: Source | None) -> tuple[Any, Hashable] | None:
        return None if message.processed else (channel_of(message), message.delivery_tag)

    def settled(self, message: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        multiple = calls.given(0, "multiple", args, kwargs)
        return rabbitmq.settlement(call.__name__, channel_of(message), message.delivery_tag, multiple)


def _publish_arguments(
    message: Any, routing_key: Any, *, mandatory: Any = True, immediate: Any = False, timeout: Any = None
) -> tuple[Any, Any]:
    return message, routing_key


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

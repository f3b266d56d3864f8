"""pika: RabbitMQ's messages in their publishers' traces. pika 1.3 and newer, every kind of its connections.

The context travels in the ``headers`` table of the basic properties, as text. The caller's properties and headers are
copied before anything is written.

Two things shape this file:

- A BlockingChannel is a facade above a Channel. Publishes are traced at the facade where there is one, since it knows
  what the broker answered; settlements at the Channel, where both meet. What pika registers there for itself only
  buffers, so it is no handler.
- A delivery names its exchange and routing key, not its queue. The queue is known where the consumer is registered,
  so it is kept there.

pika's own wrapper for Twisted hands messages over through queues of Twisted's: what is taken from there is handled
inside ``traced_message``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

from opentelemetry.trace import Span

from queueprop.adapters.pika.channels import (
    broker_of,
    channel_below,
    is_wrapped_by_another,
    parameters_of,
    published_to,
)
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls, checks, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.iteration import Messages
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import is_spoken_for
from queueprop.kit.on_demand import on_demand
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings

try:
    from pika import BasicProperties
    from pika.channel import Channel
    from pika.spec import Basic
except ModuleNotFoundError as error:
    if error.name != "pika":
        raise
    raise missing_extra(__name__, "pika", "pika") from None

if TYPE_CHECKING:
    from queueprop.adapters.pika.instrumentor import PikaInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, PikaInstrumentor="instrumentor")

__all__ = [
    "PIKA",
    "Delivery",
    "PikaInstrumentor",
    "Publish",
    "traced_batch",
    "traced_consumer",
    "traced_get",
    "traced_message",
    "traced_messages",
    "traced_publish",
    "traced_settle",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: the call's arguments, with a copy of the caller's properties."""

    exchange: str
    routing_key: str
    body: Any
    properties: BasicProperties


class Delivery(NamedTuple):
    """What a ``consume_hook`` is given: a message as pika hands it over."""

    method: Any
    properties: BasicProperties
    body: bytes


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a channel's publish: ``publish = traced_publish(channel.basic_publish)``.

    The PRODUCER span ends when the call returns. On a BlockingChannel with confirms that is the broker's answer: a nack
    and an unroutable message are errors of the span. Properties and headers are copied before the context is written.

    Args:
        publish: ``basic_publish`` of a BlockingChannel or a Channel, a ``functools.partial`` of it, or a callable with
            the same arguments around it.
        settings: instead of those of the environment.

    Raises TypeError for what can be none of these, as do the other words here.
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
    """Decorates a consumer's callback ``(channel, method, properties, body)``, for any kind of connection::

        @traced_consumer(queue="orders")
        def on_message(channel, method, properties, body): ...

        channel.basic_consume("orders", on_message)

    It may be a method, take further arguments, and be a coroutine function that a task is made of.

    Args:
        queue: the queue that it consumes from; pika's deliveries do not tell it.
        destination: instead of the one that exchange, routing key and queue make.
        settings: instead of those of the environment.
    """
    checks.check_name("traced_consumer", "queue", queue)
    return _words.consumer(callback, lambda channel: Source(channel, queue), destination, settings)


def traced_messages(
    iterable: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> Messages[Any]:
    """A pull loop whose body runs inside each message's CONSUMER span::

        for method, properties, body in traced_messages(channel.consume("orders")): ...

    An idle tick (``(None, None, None)``) is outside. The span ends when the next message is asked for, and when the
    loop is left, unless the iterator is kept: then it ends when that is closed or dropped.

    Args:
        iterable: gives ``(method, properties, body)``, as ``BlockingChannel.consume`` does.
        destination: pika's deliveries do not tell their queue; without it, exchange and routing key name the span.
        settings: instead of those of the environment.
    """
    return _words.messages(iterable, destination, settings)


def traced_message(
    message: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one pulled message, as a context manager::

        message = channel.basic_get("orders")
        with traced_message(message): ...

    Args as for ``traced_messages``; ``message`` is ``(method, properties, body)``. Of an empty queue
    (``(None, None, None)``) there is no span.
    """
    return _words.message(message, destination, settings)


def traced_batch(
    messages: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each message, as a context manager.

    Args as for ``traced_messages``; ``messages`` are ``(method, properties, body)``, from one queue. What was nothing
    (``(None, None, None)``) does not count.
    """
    return _words.batch(messages, destination, settings)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a BlockingChannel's pull call, which then has a receive span: ``get = traced_get(channel.basic_get)``.

    It opens no scope: handle what it returns inside ``traced_message``, which then also knows the queue.
    """
    if isinstance(getattr(get, "__self__", None), Channel) and checks.library_of(get) == "pika":
        raise checks.refused(
            "traced_get", f"{_GET.form} (of other channels, decorate the callback by @traced_consumer)", get
        )
    return _words.get(get, settings)


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps ``basic_ack``, ``basic_nack`` or ``basic_reject`` of a channel: ``ack = traced_settle(channel.basic_ack)``.

    Under ``Settings(settle_spans=True)``, which the consumer must have too, a settlement is a span: a child of the
    message's CONSUMER span, from any thread and however late. Of a channel's unsettled messages the latest 10,000 are
    remembered, without their bodies; an earlier one is settled without a span.
    """
    return _words.settle(settle, settings)


class _Pika(Library):
    name = "pika"
    message_form = "delivery of pika's, (method, properties, body)"
    message_type = Delivery

    def publication(
        self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        given = calls.bound(_publish_arguments, args, kwargs)
        if given is None or is_spoken_for(channel, getattr(channel, "_cookie", None)):
            return None
        return _Publication(channel, *given)

    def native(self, given: Any) -> Any:
        try:
            return given if self.is_nothing(given) else Delivery(*given)
        except TypeError:
            return given  # no delivery; see ``is_message``

    def message(self, delivery: Any) -> Message:
        return rabbitmq.delivered(delivery.method, delivery.properties, delivery.body, delivery)

    def route(self, native: Any) -> tuple[object, ...]:
        method = native[0]
        return getattr(method, "exchange", ""), getattr(method, "routing_key", "")

    def consumed_from(self, native: Any, source: Source | None) -> Destination:
        method = None if native is None else native[0]
        queue, channel = (None, None) if source is None else (source.name, source.via)
        return rabbitmq.consumer_destination(
            getattr(method, "exchange", ""),
            getattr(method, "routing_key", ""),
            queue,
            *broker_of(channel),
        )

    def delivery_among(self, given: Sequence[Any]) -> tuple[Any, Any] | None:
        """pika's method object, with properties and body behind it and the channel before it."""
        if len(given) == 4:  # as pika calls it
            channel, method, properties, body = given
            if isinstance(method, _DELIVERIES) and properties is not None:
                return calls.named(Delivery, (method, properties, body)), channel
        for index, argument in enumerate(given):
            if isinstance(argument, _DELIVERIES):
                properties, body = (*given[index + 1 : index + 3], None, None)[:2]
                message = None if properties is None else Delivery(argument, properties, body)
                return message, given[index - 1] if index else None
        return None

    def is_nothing(self, native: Any) -> bool:
        if type(native) is Delivery:
            return native[0] is None
        return native is None or (isinstance(native, tuple) and len(native) > 0 and native[0] is None)

    def is_message(self, native: Any) -> bool:
        return isinstance(native, Delivery) and hasattr(native.properties, "headers")

    def identity(self, native: Any) -> tuple[object, Hashable]:
        return native[0], None  # it goes with the message wherever the user takes it

    def source(self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        return Source(
            channel, calls.given(0, "queue", args, kwargs), bool(calls.given(1, "auto_ack", args, kwargs))
        )

    def leaves_alone(self, channel: Any) -> bool:
        return is_wrapped_by_another(channel)

    def settlement_of(self, native: Any, source: Source | None) -> tuple[Any, Hashable] | None:
        method = native[0]
        channel = channel_below(None if source is None else source.via)
        if not isinstance(channel, Channel):
            return None, method.delivery_tag
        needs_none = None if source is None else source.needs_no_settlement
        if needs_none is None:
            needs_none = getattr(method, "consumer_tag", None) in channel._consumers_with_noack
        return None if needs_none else (channel, method.delivery_tag)

    def settled(self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        operation = str(getattr(call, "__name__", "settle")).removeprefix("basic_")
        tag = calls.given(0, "delivery_tag", args, kwargs) or 0
        multiple = calls.given(1, "multiple", args, kwargs)
        return rabbitmq.settlement(operation, channel_below(channel), tag, multiple)


PIKA = _Pika()

_GET = Call("a BlockingChannel's basic_get, as in traced_get(channel.basic_get)", ("basic_get",))
_words = Words(
    PIKA,
    publish=Call(
        "a channel's basic_publish, as in traced_publish(channel.basic_publish)",
        ("basic_publish",),
        takes="properties",
    ),
    handler='as in @traced_consumer(queue="orders")',
    iterable='a loop over messages, as in traced_messages(channel.consume("orders"))',
    get=_GET,
    settle=Call(
        "a channel's basic_ack, basic_nack or basic_reject, as in traced_settle(channel.basic_ack)",
        ("basic_ack", "basic_nack", "basic_reject"),
    ),
)

_DELIVERIES = (Basic.Deliver, Basic.GetOk)


# Publishing


class _Publication(rabbitmq.TablePublication):
    """A ``basic_publish``, with properties and headers that are ours to write to."""

    library = "pika"

    def __init__(self, channel: Any, exchange: Any, routing_key: Any, body: Any, given: Any) -> None:
        self._channel = channel
        properties = BasicProperties() if given is None else _copied(given)
        own_headers: Any = (
            getattr(properties, "headers", _ODD) or {}
        )  # whatever is empty pika takes for an empty table
        headers = None
        if type(own_headers) is dict or isinstance(own_headers, Mapping):
            properties.headers = headers = dict(own_headers)
        destination = published_to(channel, exchange, routing_key)
        publish = calls.named(Publish, (exchange, routing_key, body, properties))
        told = body if isinstance(body, (bytes, str)) else None
        message = rabbitmq.published(properties, headers, told, publish)
        super().__init__(destination, message, own_headers, properties, (3, "properties"))

    def frame_max(self) -> int:
        return getattr(parameters_of(self._channel), "frame_max", 0)

    def encoded(self) -> int:
        return sum(map(len, self.outgoing.encode()))


def _copied(properties: Any) -> Any:
    """A copy as ``copy.copy`` makes it, without the calls by which that finds out how."""
    if type(properties) is not BasicProperties:
        return copy.copy(properties)
    copied: Any = object.__new__(BasicProperties)
    copied.__dict__.update(properties.__dict__)
    return copied


def _publish_arguments(
    exchange: Any, routing_key: Any, body: Any, properties: Any = None, mandatory: bool = False
) -> tuple[Any, Any, Any, Any]:
    return exchange, routing_key, body, properties


_ODD = object()

"""kombu: messages in their publishers' traces, whatever the transport. kombu 5.3 and newer.

The context travels in the message's headers, as text. The caller's headers are copied before anything is written.

Where a delivery meets the user's code is ``Consumer._receive_callback``: it knows callbacks as well as an
``on_message`` that was set later, and what could not be decoded. Code of kombu's or Celery's own that is registered
there only buffers or dispatches (``SimpleQueue``, remote control, events, tasks): a CONSUMER span around it would be
false, so there is none.

``itermessages``, ``drain_consumer`` and ``collect_replies`` of kombu.common are loops over such a buffer: their bodies
run inside each message's span. ``fetch`` and ``iterqueue`` of kombu.compat are pull calls; the callbacks that ``fetch``
is asked to call run inside their message's span. ``Exchange.publish`` and ``Channel.basic_publish`` take what was made
ready before, and stay as they are; so do remote control and events.

``messaging.system`` is ``rabbitmq`` for the amqp transports, else the broker: ``redis``, ``memory``, ``filesystem``.
kombu gives every broker the exchanges and queues of AMQP, so destinations are named as RabbitMQ's everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast, overload

from opentelemetry.trace import Span

from queueprop.engine.message import Destination
from queueprop.engine.message import Message as CoreMessage
from queueprop.kit import calls, checks, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped, beneath_partials
from queueprop.kit.iteration import Messages
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import is_carried, work_at_hand
from queueprop.kit.on_demand import on_demand
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings
from queueprop.wire.headers import is_altered

try:
    from kombu.entity import Exchange, Queue
    from kombu.message import Message
    from kombu.messaging import Producer
    from kombu.simple import SimpleBase
except ModuleNotFoundError as error:
    if error.name != "kombu":
        raise
    raise missing_extra(__name__, "kombu", "kombu") from None

from queueprop.adapters.kombu.celery import is_control
from queueprop.adapters.kombu.raw import read
from queueprop.adapters.kombu.signatures import PUBLISH, parameters_of
from queueprop.kit.kombu import broker_of, client_at, client_of, fitted_to_frame
from queueprop.kit.kombu_batches import defer

if TYPE_CHECKING:
    from queueprop.adapters.kombu.instrumentor import KombuInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, KombuInstrumentor="instrumentor")

__all__ = [
    "KOMBU",
    "KombuInstrumentor",
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
    """What a ``publish_hook`` is given: a publish as its caller asked for it."""

    exchange: str
    routing_key: str
    body: Any
    headers: Mapping[str, Any]
    options: Mapping[str, Any]
    """The other arguments that were given by name: properties such as ``correlation_id``, ``retry``, ``declare``."""


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a call that publishes: ``publish = traced_publish(producer.publish)``.

    The PRODUCER span ends when the call returns, after all of its retries. Inside ``producer.batch()`` (kombu 5.7)
    it ends when the batch is flushed, and is an error where the batch is discarded. Headers are copied before the
    context is written.

    Args:
        publish: ``publish`` of a Producer or ``put`` of a SimpleQueue or SimpleBuffer; also a ``functools.partial``
            of one of them, and what a subclass makes of them, if it takes ``headers``.
        settings: instead of those of the environment.

    Raises TypeError for anything else.
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
    """Decorates a consumer's callback ``(body, message)`` or its ``on_message(message)``, function or method::

        @traced_consumer(queue="orders")
        def on_order(body, message): ...

        Consumer(channel, orders, callbacks=[on_order])

    Of several decorated callbacks of one consumer the first makes the message's CONSUMER span, and the others run in
    its context.

    Args:
        queue: the queue that it consumes from; kombu's messages do not tell it.
        destination: instead of the one that exchange, routing key and queue make.
        settings: instead of those of the environment.
    """
    checks.check_name("traced_consumer", "queue", queue)
    return _words.consumer(callback, Source(None, queue), destination, settings)


def traced_messages(
    iterable: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> Messages[Any]:
    """A pull loop whose body runs inside each message's CONSUMER span::

        for body, message in traced_messages(itermessages(connection, channel, queue, limit=None)): ...

    The span ends when the next message is asked for, and when the loop is left, unless the iterator is kept: then it
    ends when that is closed or dropped.

    Args:
        iterable: gives messages or ``(body, message)``; ``None`` is an idle tick.
        destination: kombu's messages do not tell their queue; without it, exchange and routing key name the span.
        settings: instead of those of the environment.
    """
    return _words.messages(iterable, destination, settings)


def traced_message(
    message: Message | None, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one pulled message, as a context manager::

        message = queue.get()
        with traced_message(message): ...

    Args as for ``traced_messages``. Of an empty queue (``None``) there is no span.
    """
    return _words.message(message, destination, settings)


def traced_batch(
    messages: Iterable[Message], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each message, as a context manager.

    Args as for ``traced_messages``; without ``destination`` it is the first message's.
    """
    return _words.batch(messages, destination, settings)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a pull call, which then has a receive span: ``get = traced_get(queue.get)``.

    It opens no scope: handle what it returns inside ``traced_message``, which then also knows the queue.

    Args:
        get: ``get`` of a Queue, or ``get`` or ``get_nowait`` of a SimpleQueue or SimpleBuffer; also a
            ``functools.partial`` of one of them.
        settings: instead of those of the environment.

    Raises TypeError for anything else.
    """
    return _words.get(get, settings)


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps ``ack``, ``reject`` or ``requeue`` of a message: ``traced_settle(message.ack)()``.

    Under ``Settings(settle_spans=True)`` the settlement of a message that went through one of the words above is a
    span: a child of the message's CONSUMER span, from any thread and however late.

    Raises TypeError for anything else.
    """
    return _words.settle(settle, settings)


SETTLEMENTS = ("ack", "reject", "requeue")


class _Kombu(Library):
    name = "kombu"
    message_form = "message of kombu's, as get and itermessages give them"
    message_type = Message
    message_fields = ("__dict__", "body", "channel", "delivery_info", "delivery_tag", "headers", "properties")

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        producer = _producer_of(call, producer)
        parameters = parameters_of(call) or PUBLISH
        given = {**kwargs, **dict(zip(parameters, args, strict=False))}
        headers = given.get("headers")
        if headers is not None and not isinstance(headers, Mapping):
            return None  # not what kombu takes; it says so
        if headers and is_carried(headers):
            return None
        publication = _Publication(producer, given, parameters)
        outer = work_at_hand("publish", self.name)
        if isinstance(outer, _Publication) and outer.hands_on(publication):
            publication.about = outer.about
        return None if is_control(publication.exchange) else publication

    def message(self, message: Any) -> CoreMessage:
        properties, body, tag = message.properties, message.body, message.delivery_tag
        return CoreMessage(
            headers=message.headers,
            id=_text(properties.get("message_id")),
            conversation_id=_text(properties.get("correlation_id")),
            body=body if isinstance(body, (bytes, str)) else None,
            sent_at=properties.get("timestamp"),
            attempt=rabbitmq.delivery_attempt(message.headers, message.delivery_info.get("redelivered")),
            # Of AMQP; other transports make one up.
            attributes={rabbitmq.DELIVERY_TAG: tag} if isinstance(tag, int) else None,
            native=message,
        )

    def consumed_from(self, message: Any, source: Source | None) -> Destination:
        queue = "" if source is None else source.name or ""
        if message is None:
            # Not its `channel`: that raises where there is none yet, or opens one.
            channel = None if source is None else getattr(source.via, "_channel", None)
            return rabbitmq.consumer_destination("", "", queue, *broker_of(client_at(channel)))
        info = message.delivery_info
        exchange, routing_key = str(info.get("exchange") or ""), str(info.get("routing_key") or "")
        broker = broker_of(client_at(message.channel))
        return rabbitmq.consumer_destination(exchange, routing_key, queue, *broker)

    def delivery_among(self, given: Sequence[Any]) -> tuple[Any, Any] | None:
        found = super().delivery_among(given)
        if found is not None:
            return found
        read_ones = (read(argument) for argument in given)
        return next(((message, None) for message in read_ones if message is not None), None)

    def native(self, given: Any) -> Any:
        found = self.delivery_among(given) if isinstance(given, tuple) else None
        return given if found is None else found[0]

    def identity(self, message: Any) -> tuple[object, None]:
        if type(message).__weakrefoffset__:
            return message, None
        own = message.__dict__  # kombu's own class takes no references
        return own.get(_ANCHOR) or own.setdefault(_ANCHOR, _Anchor()), None

    def source(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        queue = via.queue if isinstance(via, SimpleBase) else via
        return Source(queue, queue.name, about=queue)

    def settlement_of(self, message: Any, source: Source | None) -> tuple[Any, None] | None:
        no_acks: Any = getattr(message.channel, "no_ack_consumers", None)
        if no_acks and message.delivery_info.get("consumer_tag") in no_acks:
            return None  # kombu then does nothing
        return self.identity(message)

    def settled(self, message: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        place = self.settlement_of(message, None)
        return None if place is None else Settlement(call.__name__, place[:1])


class _Anchor:
    """What is kept beside a message is found by this, which lives as long."""


_ANCHOR = "_queueprop"

KOMBU = _Kombu()


def _owner(function: Any) -> Any:
    return getattr(beneath_partials(function), "__self__", None)


def _publishes(publish: Any) -> bool:
    method = beneath_partials(publish)
    return isinstance(_producer_of(method), Producer) and parameters_of(method) is not None


_words = Words(
    KOMBU,
    publish=Call(
        "Producer.publish or SimpleQueue.put, as in traced_publish(producer.publish)",
        ("publish", "put"),
        is_one=_publishes,
    ),
    handler='as in @traced_consumer(queue="orders")',
    iterable="a loop over messages, as in traced_messages(itermessages(connection, channel, queue))",
    get=Call(
        "Queue.get or SimpleQueue.get, as in traced_get(queue.get)",
        ("get", "get_nowait"),
        is_one=lambda get: isinstance(_owner(get), (Queue, SimpleBase)),
    ),
    settle=Call(
        "Message.ack, reject or requeue, as in traced_settle(message.ack)",
        SETTLEMENTS,
        is_one=lambda settle: (
            isinstance(_owner(settle), Message) and beneath_partials(settle).__name__ in SETTLEMENTS
        ),
    ),
)


class _Publication(Publication):
    """A ``Producer.publish`` or ``SimpleQueue.put``; ``parameters`` are its positional ones."""

    _written: Mapping[Any, Any] | None = None
    """The headers that were put into the call."""

    def __init__(self, producer: Any, given: Mapping[str, Any], parameters: Sequence[str]) -> None:
        self._producer = producer
        self._parameters = parameters
        self._given_headers: Mapping[Any, Any] = given.get("headers") or {}
        exchange, routing_key = given.get("exchange") or producer.exchange, given.get("routing_key")
        self.exchange = exchange.name if isinstance(exchange, Exchange) else exchange
        name, body = self.exchange or "", given.get("body", given.get("message"))
        key = (producer.routing_key if routing_key is None else routing_key) or ""
        options = {name: value for name, value in given.items() if name not in _NO_OPTIONS}
        message = CoreMessage(
            headers=dict(self._given_headers),
            id=_text(given.get("message_id")),
            conversation_id=_text(given.get("correlation_id")),
            body=body if isinstance(body, (bytes, str)) else None,
            native=Publish(name, key, body, self._given_headers, options),
        )
        self._client = client = client_of(producer)
        destination = rabbitmq.producer_destination(name, key, *broker_of(client))
        # An on_return callback may publish another message inside a publish, an errback the same one elsewhere.
        super().__init__(destination, message, about=object())
        self._headers = cast("dict[Any, Any]", message.headers)
        self._body = body

    def hands_on(self, inner: _Publication) -> bool:
        """Whether a publish within this one is this one's: of the same body, and by the same producer, or with the
        headers that this one has written.
        """
        is_its_own = inner._producer is self._producer or inner._given_headers is self._written
        return is_its_own and inner._body is self._body

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        headers = self._headers
        if not is_altered(headers, self._given_headers):
            return args, kwargs
        where = "publishing with kombu"
        headers = fitted_to_frame(headers, self._given_headers, self._client, where, self.destination)
        self._written = headers
        if "headers" in self._parameters[: len(args)]:
            return calls.replaced(self._parameters.index("headers"), "headers", headers, args, kwargs)
        return args, {**kwargs, "headers": headers}

    def end(self, result: Any) -> None:
        if not defer(self._producer, self.send):
            self.send.close()


_NO_OPTIONS = frozenset(("body", "message", "headers", "exchange", "routing_key"))


def _producer_of(method: Any, instance: Any = None) -> Any:
    owner = getattr(method, "__self__", instance)
    return owner.producer if isinstance(owner, SimpleBase) else owner


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

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
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

from opentelemetry.context import get_current
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Process, ProcessBatch
from queueprop.engine.scope import current_scope, is_spoken_for, speaking_for
from queueprop.kit import calls, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.handlers import prepared, run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rivals, missing_extra
from queueprop.kit.iteration import GeneratorMessages, Messages, iterate_inside
from queueprop.settings import Settings
from queueprop.wire.headers import is_altered

try:
    from pika import BasicProperties
    from pika.adapters.blocking_connection import BlockingChannel
    from pika.channel import Channel
    from pika.spec import Basic
except ModuleNotFoundError as error:
    if error.name != "pika":
        raise
    raise missing_extra(__name__, "pika", "pika") from None

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
    """
    return calls.hooked(publish, _Hooks(engine_for(settings)).publish)


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
    hooks = _Hooks(engine_for(settings))

    def decorate(decorated: F) -> F:
        return hooks.callback(decorated, queue, destination)

    return decorate if callback is None else decorate(callback)


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
    hooks = _Hooks(engine_for(settings))
    return iterate_inside(iterable, lambda message: hooks.process(message, None, None, destination))


def traced_message(
    message: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one pulled message, as a context manager::

        message = channel.basic_get("orders")
        with traced_message(message): ...

    Args as for ``traced_messages``; ``message`` is ``(method, properties, body)``. Of an empty queue
    (``(None, None, None)``) there is no span.
    """
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: hooks.process(message, None, None, destination), _READING)


def traced_batch(
    messages: Sequence[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each message, as a context manager.

    Args as for ``traced_messages``; ``messages`` are ``(method, properties, body)``, from one queue. What was nothing
    (``(None, None, None)``) does not count.
    """
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: hooks.process_batch(messages, destination), _READING)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a BlockingChannel's pull call, which then has a receive span: ``get = traced_get(channel.basic_get)``.

    It opens no scope: handle what it returns inside ``traced_message``, which then also knows the queue.
    """
    return calls.hooked(get, _Hooks(engine_for(settings)).get)


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps ``basic_ack``, ``basic_nack`` or ``basic_reject`` of a channel: ``ack = traced_settle(channel.basic_ack)``.

    Under ``Settings(settle_spans=True)``, which the consumer must have too, a settlement is a span: a child of the
    message's CONSUMER span, from any thread and however late. Of a channel's unsettled messages the latest 10,000 are
    remembered, without their bodies; an earlier one is settled without a span.
    """
    return calls.hooked(settle, _Hooks(engine_for(settings)).settle)


class PikaInstrumentor(Adapter):
    """Traces every channel of pika that publishes or consumes from now on."""

    library = "pika"
    requires = ("pika >= 1.3",)
    rivals = Rivals("pika", "opentelemetry.instrumentation.pika:PikaInstrumentor")

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(self.engine, lambda: self.is_active, _is_wrapped_by_another)
        for channel in (Channel, BlockingChannel):
            yield Patch(channel, "basic_publish", hooks.publish)
            yield Patch(channel, "basic_consume", hooks.consume)
        yield Patch(BlockingChannel, "consume", hooks.iterate)
        yield Patch(BlockingChannel, "cancel", hooks.cancel)
        yield Patch(BlockingChannel, "basic_get", hooks.get)
        yield Patch(Channel, "basic_get", hooks.get_later)
        for name in ("basic_ack", "basic_nack", "basic_reject"):
            yield Patch(Channel, name, hooks.settle)
        yield Patch(Channel, "basic_recover", hooks.recover)


class _Hooks:
    """What is done around pika's own methods, each as ``hook(bound method, its channel, args, kwargs)``."""

    def __init__(
        self,
        engine: Engine,
        is_active: Callable[[], bool] = lambda: True,
        is_left_alone: Callable[[Any], bool] = lambda channel: False,
    ) -> None:
        self.engine = engine
        self._is_active = is_active
        self._is_left_alone = is_left_alone
        self._loops: weakref.WeakKeyDictionary[Any, weakref.ref[GeneratorMessages[Any]]] = (
            weakref.WeakKeyDictionary()
        )

    # The producer's side

    def publish(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_publish``, of the facade and of the Channel below it: the upper one has the span."""
        try:
            given = Publish(*_publish_arguments(*args, **kwargs))
        except TypeError:
            return wrapped(*args, **kwargs)  # pika says what is wrong with them
        if self.engine.is_sending(_OWNER) or self._is_left_alone(channel):
            return wrapped(*args, **kwargs)
        if is_spoken_for(channel):
            with speaking_for():  # for the Channel below, too
                return wrapped(*args, **kwargs)
        try:
            message = _message_for(given)
            send = self.engine.send(_published_to(given, channel), message, owner=_OWNER)
        except Exception as error:
            guard.fault("preparing a publish with pika", error)
            return wrapped(*args, **kwargs)
        with send:
            if _goes_out(message, given, channel):
                args, kwargs = calls.replaced(
                    _PROPERTIES, "properties", message.native.properties, args, kwargs
                )
            return wrapped(*args, **kwargs)

    # The consumer's side

    def consume(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_consume``: the callback that it registers."""
        return self._register("on_message_callback", wrapped, args, kwargs)

    def get_later(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a Channel's ``basic_get``, which answers by a callback, too."""
        return self._register("callback", wrapped, args, kwargs)

    def _register(self, name: str, wrapped: Wrapped, args: Arguments, kwargs: Options) -> Any:
        callback = calls.given(1, name, args, kwargs)
        if not callable(callback) or str(getattr(callback, "__module__", "")).startswith("pika."):
            return wrapped(*args, **kwargs)
        auto_ack = bool(calls.given(2, "auto_ack", args, kwargs))
        traced = self.callback(callback, calls.given(0, "queue", args, kwargs), None, auto_ack)
        args, kwargs = calls.replaced(1, name, traced, args, kwargs)
        return wrapped(*args, **kwargs)

    def callback(
        self, callback: F, queue: Any, destination: Destination | None, auto_ack: bool | None = None
    ) -> F:
        """A handler that runs inside its message's span, whatever it is given before and behind the message."""

        def begin(args: Arguments, kwargs: Options) -> Process | None:
            given = (*args, *kwargs.values()) if kwargs else args
            for index, argument in enumerate(given):
                if isinstance(argument, _DELIVERIES):
                    properties, body = (*given[index + 1 : index + 3], None, None)[:2]
                    if properties is None:
                        return None
                    channel = given[index - 1] if index else None
                    return self.process((argument, properties, body), channel, queue, destination, auto_ack)
            return None

        return run_inside(callback, begin)

    def iterate(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``consume``, which gives a generator. A second one on the channel goes on where the first ended."""
        if is_spoken_for(channel):
            return wrapped(*args, **kwargs)
        self._leave_loop(channel)
        queue, auto_ack = (
            calls.given(0, "queue", args, kwargs),
            bool(calls.given(1, "auto_ack", args, kwargs)),
        )
        messages = wrapped(*args, **kwargs)
        loop = GeneratorMessages(
            messages, lambda message: self.process(message, channel, queue, None, auto_ack)
        )
        self._loops[channel] = weakref.ref(loop)
        return loop

    def cancel(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``cancel``, which ends the generator of ``consume``: the last message of one that is kept is over.

        pika then rejects what was fetched and not handed over yet, each in its message's trace.
        """
        self._leave_loop(channel)
        if self.engine.settings.settle_spans and not self._is_left_alone(channel):
            try:
                for queue, delivery in _fetched(channel):
                    destination = _consumed_from(delivery, queue, channel)
                    _waiting.add(channel, delivery.method.delivery_tag, _Unsettled(destination, delivery))
            except Exception as error:
                guard.fault("preparing a cancel with pika", error)
        return wrapped(*args, **kwargs)

    def _leave_loop(self, channel: Any) -> None:
        reference = self._loops.pop(channel, None)
        loop = reference() if reference is not None else None
        if loop is not None:
            loop.leave()

    def process(
        self,
        message: Any,
        channel: Any,
        queue: Any,
        destination: Destination | None,
        auto_ack: bool | None = None,
    ) -> Process | None:
        if _is_nothing(message):
            return None
        if not self._is_active() or self._is_left_alone(channel):
            return None
        delivery = Delivery(*message)
        pulled = _pulled.find(delivery.method)
        if destination is None:
            destination = pulled.destination if pulled is not None else None
        if destination is None:
            destination = _consumed_from(delivery, queue, channel)
        process = self.engine.process(destination, _message_of(delivery), owner=_OWNER)
        if self.engine.settings.settle_spans:
            self._await_settlement(delivery, channel, auto_ack, process, pulled)
        return process

    def _await_settlement(
        self,
        delivery: Delivery,
        channel: Any,
        auto_ack: bool | None,
        process: Process,
        unsettled: _Unsettled | None,
    ) -> None:
        if unsettled is None and not _is_channel(channel):
            _loose.add(process)
            return
        if unsettled is None and not (_needs_no_ack(delivery, channel) if auto_ack is None else auto_ack):
            tag = delivery.method.delivery_tag
            unsettled = _waiting.find(channel, tag, delivery.properties)
            if unsettled is None:
                unsettled = _Unsettled(process.operation.destination, delivery)
                _waiting.add(channel, tag, unsettled)
        if unsettled is not None:
            unsettled.handled_in(process)

    def process_batch(
        self, messages: Sequence[Any], destination: Destination | None
    ) -> AbstractContextManager[Span]:
        deliveries = [Delivery(*message) for message in messages if not _is_nothing(message)]
        pulled = [_pulled.find(delivery.method) for delivery in deliveries]
        first = pulled[0] if pulled else None
        if destination is None:
            destination = first.destination if first is not None else None
        if destination is None:
            destination = _consumed_from(deliveries[0] if deliveries else None, None, None)
        process = self.engine.process(destination, [_message_of(delivery) for delivery in deliveries])
        for one in pulled:
            if one is not None:
                one.handled_in(process)
        return process

    def get(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a BlockingChannel's ``basic_get``: a pull call, which opens no scope for what follows."""
        if _is_pulling.get():
            return wrapped(*args, **kwargs)
        started_at = time.time_ns()
        queue = calls.given(0, "queue", args, kwargs)
        try:
            with calls.during(_is_pulling, True):
                message = wrapped(*args, **kwargs)
        except BaseException as error:
            self._received(None, channel, queue, started_at, error)
            raise
        auto_ack = bool(calls.given(1, "auto_ack", args, kwargs))
        self._received(message, channel, queue, started_at, auto_ack=auto_ack)
        return message

    def _received(
        self,
        message: Any,
        channel: Any,
        queue: Any,
        started_at: int,
        error: BaseException | None = None,
        auto_ack: bool = False,
    ) -> None:
        try:
            if self._is_left_alone(channel) or (error is None and _is_nothing(message)):
                return
            delivery = None if message is None else Delivery(*message)
            destination = _consumed_from(delivery, queue, channel)
            receive = self.engine.receive(destination, started_at=started_at)
            if delivery is not None:
                pulled = _Unsettled(destination, delivery)
                _pulled.add(delivery.method, pulled)
                if self.engine.settings.settle_spans and not auto_ack and _is_channel(channel):
                    _waiting.add(channel, delivery.method.delivery_tag, pulled)
                receive.add(_message_of(delivery))
            if self.engine.settings.receive_spans:
                receive.open()
                receive.close(error)
        except Exception as fault:
            guard.fault("tracing a basic_get of pika", fault)

    def settle(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_ack``, ``basic_nack`` and ``basic_reject``."""
        if not self.engine.settings.settle_spans:
            return wrapped(*args, **kwargs)
        try:
            operation = wrapped.__name__.removeprefix("basic_")
            tag = calls.given(0, "delivery_tag", args, kwargs) or 0
            multiple = operation != "reject" and bool(calls.given(1, "multiple", args, kwargs))
            settled = _waiting.take(channel, tag, multiple) or _in_hand(tag)
        except Exception as error:
            guard.fault("preparing a settlement with pika", error)
            settled = []
        if not settled:
            return wrapped(*args, **kwargs)  # not one that was handed to the user
        messages = [one.message for one in settled]
        with self.engine.settle(settled[-1].destination, messages, operation=operation):
            return wrapped(*args, **kwargs)

    def recover(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_recover``: what is unsettled comes again, with other delivery tags."""
        result = wrapped(*args, **kwargs)
        _waiting.take(channel, 0, multiple=True)
        return result


_OWNER = "pika"
_READING = "reading a message of pika"
_DELIVERIES = (Basic.Deliver, Basic.GetOk)
_PROPERTIES = 3  # its place among the arguments of basic_publish

# The explicit API above the instrumentor pulls the very same message: that is one pull.
_is_pulling: ContextVar[bool] = ContextVar("queueprop-pika-pulling", default=False)


# Arguments


def _publish_arguments(
    exchange: Any, routing_key: Any, body: Any, properties: Any = None, mandatory: bool = False
) -> tuple[Any, Any, Any, Any]:
    return exchange, routing_key, body, properties


# Messages


def _message_for(given: Publish) -> Message:
    """The message of a publish, with properties and headers that are ours to write to."""
    properties = BasicProperties() if given.properties is None else copy.copy(given.properties)
    headers: Any = getattr(properties, "headers", _ODD)
    if not headers or isinstance(headers, Mapping):  # pika takes whatever is empty for an empty table
        properties.headers = headers = dict(headers or {})
    else:
        headers = None  # not what pika takes; it says so
    return Message(
        headers=headers,
        id=_text(getattr(properties, "message_id", None)),
        conversation_id=_text(getattr(properties, "correlation_id", None)),
        body=given.body if isinstance(given.body, (bytes, str)) else None,
        native=given._replace(properties=properties),
    )


_ODD = object()


def _goes_out(message: Message, given: Publish, channel: Any) -> bool:
    """Whether the properties with the context go out, instead of the caller's own."""
    try:
        return _is_written(message, given) and _has_room(message, given, channel)
    except Exception as error:
        guard.fault("writing the headers of a publish with pika", error)
        return False


def _is_written(message: Message, given: Publish) -> bool:
    written = message.headers
    return isinstance(written, dict) and is_altered(written, getattr(given.properties, "headers", None) or {})


def _has_room(message: Message, given: Publish, channel: Any) -> bool:
    if _fits(message.native.properties, channel):
        return True
    guard.mistake(
        f"publishing to {given.exchange}:{given.routing_key}",
        "the headers leave no room for a trace context in one AMQP frame; the message goes out without it",
    )
    return False


def _fits(properties: BasicProperties, channel: Any) -> bool:
    """Whether the properties keep to the size of a frame; else the broker would close the connection."""
    limit = getattr(_parameters(channel), "frame_max", 0)
    if not limit or _at_most(properties.headers) < limit:
        return True
    try:
        return sum(map(len, properties.encode())) + _FRAME <= limit
    except Exception:
        return True  # pika says what is wrong with them


def _at_most(headers: Any) -> int:
    """An upper bound of the encoded size, which costs next to nothing; beyond every limit where tables are nested."""
    size = _OTHER_PROPERTIES
    for name, value in headers.items():
        if not isinstance(name, (str, bytes)):
            return _UNKNOWN
        if isinstance(value, (str, bytes)):
            size += 4 * (len(name) + len(value)) + 16
        else:
            size += 4 * len(name) + (16 if value is None or isinstance(value, int) else _UNKNOWN)
    return size


_FRAME = 64  # what stands around the properties in a frame, and to spare
_OTHER_PROPERTIES = 13 * 256
_UNKNOWN = 1 << 40


def _is_nothing(message: Any) -> bool:
    """Whether it is an idle tick, or what an empty queue gives."""
    return message is None or message[0] is None


def _message_of(delivery: Delivery) -> Message:
    properties = delivery.properties
    return Message(
        headers=properties.headers,
        id=_text(properties.message_id),
        conversation_id=_text(properties.correlation_id),
        body=delivery.body,
        sent_at=properties.timestamp,
        attempt=rabbitmq.delivery_attempt(properties.headers, delivery.method.redelivered),
        native=delivery,
        key=delivery.method,
        describe=_describe,
    )


def _describe(delivery: Delivery) -> Mapping[str, AttributeValue]:
    return {rabbitmq.DELIVERY_TAG: delivery.method.delivery_tag}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class _Unsettled:
    """A delivery, for its settlement: without its body, which may be large, and without pika's objects."""

    def __init__(self, destination: Destination, delivery: Delivery) -> None:
        self.destination = destination
        self.properties = delivery.properties
        self._attributes = _describe(delivery)
        self._process: Process | ProcessBatch | None = None

    def handled_in(self, process: Process | ProcessBatch) -> None:
        if isinstance(process, Process) and self._is_being_handled():
            return  # a second layer around the same handling, which will have no span of its own
        self._process = process

    @property
    def message(self) -> Message:
        properties = self.properties
        message = Message(
            headers=properties.headers,
            id=_text(properties.message_id),
            conversation_id=_text(properties.correlation_id),
            attributes=self._attributes,
        )
        message.process_context = None if self._process is None else self._process.settle_context
        return message

    def _is_being_handled(self) -> bool:
        outer = self._process
        return isinstance(outer, Process) and not outer.closed and current_scope(get_current()) is outer


class _Pulled:
    """What was pulled: ``basic_get`` knows queue and channel, its message does not.

    By pika's method object, which goes with the message wherever the user takes it. (It has no hash.)
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], _Unsettled]] = {}

    def add(self, method: Any, pulled: _Unsettled) -> None:
        key, found = id(method), self._found
        found[key] = (weakref.ref(method, lambda _: found.pop(key, None)), pulled)

    def find(self, method: Any) -> _Unsettled | None:
        found = self._found.get(id(method))
        return found[1] if found is not None and found[0]() is method else None


class _Waiting:
    """Deliveries that wait for their ack, by channel and delivery tag. Kept only where settlements are traced.

    Nobody may ever tell of a settlement (a user who does not wrap the call): then the oldest go.

    There is no lock, since signal handlers and finalizers run wherever a thread stands, and may settle, too; and a
    process may fork while another thread is here. Each step on a dictionary is atomic.
    """

    def __init__(self) -> None:
        self._channels: weakref.WeakKeyDictionary[Channel, OrderedDict[int, _Unsettled]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, channel: Any, tag: int, unsettled: _Unsettled) -> None:
        waiting = self._channels.setdefault(_channel_below(channel), OrderedDict())
        waiting[tag] = unsettled
        if len(waiting) > _REMEMBERED:
            waiting.popitem(last=False)

    def find(self, channel: Any, tag: int, properties: BasicProperties) -> _Unsettled | None:
        """The delivery of these properties, where a layer above has seen it already."""
        waiting = self._channels.get(_channel_below(channel))
        unsettled = waiting.get(tag) if waiting is not None else None
        return unsettled if unsettled is not None and unsettled.properties is properties else None

    def take(self, channel: Any, tag: int, multiple: bool) -> list[_Unsettled]:
        """The deliveries that a settlement is about; with ``multiple`` all up to its tag, and 0 is all."""
        waiting = self._channels.get(_channel_below(channel)) if _is_channel(channel) else None
        if not waiting:
            return []
        tags = [it for it in sorted(waiting) if it <= tag or not tag] if multiple else [tag]
        taken = [waiting.pop(it, None) for it in tags]
        return [one for one in taken if one is not None]


_REMEMBERED = 10_000  # of one channel

_pulled = _Pulled()
_waiting = _Waiting()

# What is handled with no channel known: a loop of the explicit API. It can be settled while it is in hand.
_loose: weakref.WeakSet[Process] = weakref.WeakSet()


def _in_hand(tag: int) -> list[_Unsettled]:
    """The message that is being processed here, if it is this one and no channel knows it."""
    scope = current_scope(get_current())
    if not isinstance(scope, Process) or scope not in _loose or scope.closed:
        return []
    delivery = scope.message.native
    if delivery.method.delivery_tag != tag:
        return []
    _loose.discard(scope)
    unsettled = _Unsettled(scope.operation.destination, delivery)
    unsettled.handled_in(scope)
    return [unsettled]


def _needs_no_ack(delivery: Delivery, channel: Any) -> bool:
    tag = getattr(delivery.method, "consumer_tag", None)
    return tag in getattr(_channel_below(channel), "_consumers_with_noack", ())


def _fetched(channel: Any) -> list[tuple[Any, Delivery]]:
    """What ``consume`` has fetched and not handed over yet, each with its queue; nothing where it needs no ack."""
    consumer = channel._queue_consumer_generator
    if consumer is None:
        return []
    queue, auto_ack, _ = consumer.params
    events = [] if auto_ack else list(consumer.pending_events)
    return [
        (queue, Delivery(event.method, event.properties, event.body))
        for event in events
        if hasattr(event, "method")  # and no word of the broker's that the consumer is cancelled
    ]


# Channels


def _is_channel(channel: Any) -> bool:
    return isinstance(_channel_below(channel), Channel)


def _is_wrapped_by_another(channel: Any) -> bool:
    """Whether another instrumentation has wrapped this very channel, which lasts when that one is switched off."""
    for one in (channel, getattr(channel, "_cookie", None)):  # a Channel's cookie is the facade above it
        if hasattr(getattr(one, "__dict__", _NOTHING).get("basic_publish"), "_original_function"):
            guard.mistake(
                "instrumenting pika",
                "opentelemetry.instrumentation.pika has instrumented a channel, and a channel stays so; queueprop "
                "leaves that one to it. To have queueprop's spans, never instrument it with the other",
            )
            return True
    return False


_NOTHING: Mapping[str, Any] = {}


def _channel_below(channel: Any) -> Any:
    return getattr(channel, "_impl", channel)


# Destinations


def _published_to(given: Publish, channel: Any) -> Destination:
    return rabbitmq.producer_destination(_name(given.exchange), _name(given.routing_key), *_broker(channel))


def _consumed_from(delivery: Delivery | None, queue: Any, channel: Any) -> Destination:
    method = None if delivery is None else delivery.method
    exchange, routing_key = _name(getattr(method, "exchange", "")), _name(getattr(method, "routing_key", ""))
    return rabbitmq.consumer_destination(exchange, routing_key, _name(queue), *_broker(channel))


def _name(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _broker(channel: Any) -> tuple[str, str | None, int | None]:
    """``messaging.system``, host and port."""
    parameters = _parameters(channel)
    return rabbitmq.SYSTEM, getattr(parameters, "host", None), getattr(parameters, "port", None)


def _parameters(channel: Any) -> Any:
    connection = getattr(channel, "connection", None)
    return getattr(getattr(connection, "_impl", connection), "params", None)

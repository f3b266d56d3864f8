"""FastStream: messages in their publishers' traces. FastStream 0.5 and newer, every broker that it has.

The context travels in the headers of FastStream's command, a copy of the caller's, as text. On Redis that is the
envelope that FastStream itself puts around a body.

Four things shape this file:

- What a handler returns is published when the middleware's ``consume_scope`` is over, and before its ``__aexit__``. So
  the span of a message is open until then, and current while its handler runs and while its answers are published.
- The middlewares of the user's run inside ours, once, as without us, and may do what they like: write headers, publish
  again, or by another client. So what concerns this one message alone is done around the producer's own call, below
  all of them.
- A client's adapter below would see the same publish and the same delivery again. FastStream speaks for its client
  while its producer publishes; its subscribers, and what they consume by, are taken over.
- A batch has one set of headers in FastStream, and each of its messages a context of its own. The middlewares are given
  the first one's, and the producer those of the next message each time that it copies them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.trace import Span, SpanKind

from queueprop import guard
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import HandledAgain, Process, ProcessBatch
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import speaking_for
from queueprop.kit.on_demand import on_demand
from queueprop.settings import Settings

try:
    import faststream
    from faststream import BaseMiddleware
    from faststream.exceptions import AckMessage
except ModuleNotFoundError as error:
    if error.name != "faststream":
        raise
    raise missing_extra(__name__, "FastStream", "faststream") from None

from queueprop.adapters.faststream.brokers import broker_of
from queueprop.adapters.faststream.chain import around_last, is_given_back, is_rival_s, links
from queueprop.adapters.faststream.middlewares import has_rival, middlewares_of
from queueprop.adapters.faststream.parts import Part, part_of, parts_of, unread_parts
from queueprop.adapters.faststream.polling import get_one, looped, starts
from queueprop.adapters.faststream.publishing import NAME, HandOver, OnePublish, command_of
from queueprop.adapters.faststream.versions import StreamMessage

if TYPE_CHECKING:
    from queueprop.adapters.faststream.instrumentor import FastStreamInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, FastStreamInstrumentor="instrumentor")

__all__ = [
    "FASTSTREAM",
    "FastStreamInstrumentor",
    "QueuepropMiddleware",
    "traced_get",
    "traced_message",
    "traced_messages",
]

F = TypeVar("F", bound=Callable[..., Any])


class QueuepropMiddleware:
    """Traces what a broker of FastStream's publishes, and what its subscribers handle::

        broker = KafkaBroker("localhost:9092", middlewares=[QueuepropMiddleware()])

    Put it first (before FastStream 0.5.31: last): the others then run inside the message's span. One object may serve
    several brokers, of any kind. The first one puts a wrapper around the start of FastStream's subscribers, by which
    the adapter of a client below knows that the polling is theirs; nothing else is patched.

    Where a ``TelemetryMiddleware`` of FastStream's has the message, this one leaves it alone.

    Args:
        settings: instead of those of the environment.

    Raises TypeError for what are no settings.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._hooks = Hooks(FASTSTREAM, checks.engine_of(settings, "QueuepropMiddleware"))
        starts.watch(_is_explicit)

    def __call__(self, msg: Any = None, /, **options: Any) -> BaseMiddleware:
        """FastStream calls it for each publish, and for each delivery."""
        return _Middleware(msg, self._hooks, options)


def traced_message(
    message: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of a message that ``get_one`` gave, as a context manager::

        message = await subscriber.get_one()
        with traced_message(message): ...

    Args:
        message: of FastStream's; of None, which ``get_one`` gives for an empty queue, there is no span.
        destination: instead of the one that the message tells.
        settings: instead of those of the environment.
    """
    engine, known = checks.at_hand("traced_message", settings, destination)
    return Hooks(FASTSTREAM, engine).handled(message, known)


def traced_messages(
    subscriber: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AsyncMessages[Any]:
    """A loop whose body runs inside each message's CONSUMER span::

        async for message in traced_messages(subscriber): ...

    The span ends when the next message is asked for, and when the loop is left.

    Args:
        subscriber: of FastStream's, without handlers.
        destination: instead of the one that each message tells.
        settings: instead of those of the environment.

    Raises TypeError for what is none.
    """
    form = "a subscriber, as in traced_messages(subscriber)"
    checks.check_iterable("traced_messages", subscriber, form)
    engine, known = checks.at_hand("traced_messages", settings, destination)
    return looped(Hooks(FASTSTREAM, engine), subscriber, aiter(subscriber), known)


def traced_get(get: F, *, settings: Settings | None = None) -> F:
    """Wraps a subscriber's ``get_one``, which then has a receive span: ``get_one = traced_get(subscriber.get_one)``.

    It opens no scope: handle the message inside ``traced_message``.
    """
    checks.check_call("traced_get", get, "faststream", ("get_one",), "as in traced_get(subscriber.get_one)")
    hooks = Hooks(FASTSTREAM, checks.engine_of(settings, "traced_get"))
    return calls.hooked(get, functools.partial(get_one, hooks))


class _Middleware(BaseMiddleware):
    """What is done around one publish, or around one delivery and what its handler's answers are published by."""

    def __init__(self, msg: Any, hooks: Hooks | None, options: Options) -> None:
        super().__init__(msg, **options)
        self._hooks = hooks
        self._scope: Process | ProcessBatch | HandledAgain | None = None
        self._is_handled = False

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        self._is_handled = True
        scope = self._scope = self._begin(call_next, msg)
        if scope is None:
            return await call_next(msg)
        scope.open()
        try:
            with speaking_for(()):  # a `TestBroker` handles a message while it publishes it
                result = await call_next(msg)
        except BaseException as error:
            scope.close(None if isinstance(error, AckMessage) else error)
            raise
        scope.detach()  # an answer is published by `publish_scope`, and `__aexit__` follows
        return result

    async def publish_scope(self, call_next: Any, *args: Any, **kwargs: Any) -> Any:
        hooks, scope = self._hooks, self._scope
        if hooks is None or is_rival_s(call_next, SpanKind.PRODUCER):
            return await call_next(*args, **kwargs)
        publish = around_last(call_next, HandOver.of)
        if scope is None:
            return await hooks.publish_async(publish, None, args, kwargs)
        scope.reattach()
        try:
            return await hooks.publish_async(publish, None, args, kwargs)
        finally:
            scope.detach()

    async def __aexit__(self, kind: Any = None, error: BaseException | None = None, trace: Any = None) -> Any:
        scope = self._scope
        if scope is not None:
            scope.close(error)
        elif isinstance(error, Exception) and self.msg is not None and not self._is_handled:
            self._tell_unhandled(error)
        return await super().__aexit__(kind, error, trace)

    def _begin(self, call_next: Any, msg: Any) -> Process | ProcessBatch | HandledAgain | None:
        hooks = self._hooks
        try:
            if hooks is None or is_rival_s(call_next, SpanKind.CONSUMER):
                return None
            if hooks.settles:
                _settle_by(hooks, msg)
            if is_given_back(call_next):
                return None
            source = Source(self._subscriber())
            parts = parts_of(msg)
            return hooks.process(msg, source) if parts is None else _batch(hooks, parts, source)
        except Exception as error:
            guard.fault("reading a message of FastStream", error)
            return None

    def _tell_unhandled(self, error: Exception) -> None:
        """One that no handler got: FastStream could not read it, or has no handler for it."""
        hooks = self._hooks
        try:
            subscriber = self._subscriber()
            if hooks is None or subscriber is None or has_rival(subscriber):
                return
            source, parts = Source(subscriber), unread_parts(broker_of(subscriber), self.msg)
            scope = hooks.process(parts[0], source) if len(parts) == 1 else _batch(hooks, parts, source)
            if scope is not None:
                scope.open()
                scope.close(error)
        except Exception as fault:
            guard.fault("reading a message that FastStream could not handle", fault)

    def _subscriber(self) -> Any:
        context = getattr(self, "context", None)
        if context is None:  # before 0.6 there is one for the process
            context = getattr(faststream, "context", None)
        return None if context is None else context.get_local("handler_")


class _FastStream(Library):
    name = NAME
    message_form = "message of FastStream's"
    message_type = StreamMessage
    is_async = True

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        *_, last = links(call)
        hand_over: HandOver = last.__self__
        if hand_over.publication is not None:
            return None  # it is the same one in another middleware of ours
        publish = hand_over.publish
        is_batch = publish.__name__ == "publish_batch"
        command = command_of(publish, is_batch, args, kwargs)
        if command is None:
            return None
        producer = publish.__self__
        publication = hand_over.publication = OnePublish(broker_of(producer), producer, command, is_batch)
        return publication

    def message(self, native: Any) -> Message:
        part = part_of(native)
        message = part.broker.message(part.raw, part.headers, part.body)
        message.native = native
        conversation_id = getattr(native, "correlation_id", None)
        message.conversation_id = conversation_id if isinstance(conversation_id, str) else None
        return message

    def consumed_from(self, native: Any, source: Source | None) -> Destination:
        subscriber = None if source is None else source.via
        if native is None:
            return Destination(broker_of(subscriber).system)
        part = part_of(native)
        return part.broker.consumed_from(part.raw, part.consumer, subscriber)

    def leaves_alone(self, subscriber: Any) -> bool:
        return False  # a subscriber is taken over by us

    def is_message(self, native: Any) -> bool:
        return isinstance(native, (StreamMessage, Part))

    def settlement_of(self, message: Any, source: Source | None) -> tuple[Any, Any] | None:
        return (message, None) if isinstance(message, StreamMessage) else None

    def settled(self, message: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        return None if message.committed else Settlement(call.__name__, (message,))


FASTSTREAM = _FastStream()


def _batch(hooks: Hooks, parts: Sequence[Part], source: Source) -> ProcessBatch | None:
    if not parts or not hooks.is_active():
        return None
    destination = FASTSTREAM.consumed_from(parts[0], source)
    scope = hooks.handled_together(parts, destination)
    return scope if isinstance(scope, ProcessBatch) else None


def _settle_by(hooks: Hooks, msg: Any) -> None:
    """A settlement is a call of the message's own: FastStream's, or the handler's."""
    if type(msg).ack is not StreamMessage.ack:  # else nothing is settled
        calls.hook_methods(msg, [(name, hooks.settle_async) for name in ("ack", "nack", "reject")])


def _is_explicit(subscriber: Any) -> bool:
    try:
        return any(isinstance(it, QueuepropMiddleware) for it in middlewares_of(subscriber))
    except Exception as error:
        guard.fault("preparing a subscriber of FastStream", error)
        return False

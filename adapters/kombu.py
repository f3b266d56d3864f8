"""kombu: messages in their publishers' traces, whatever the transport. kombu 5.3 and newer.

The context travels in the message's headers, as text. The caller's headers are copied before anything is written.

Where a delivery meets the user's code is ``Consumer._receive_callback``: it knows callbacks as well as an
``on_message`` that was set later, and what could not be decoded. Code of kombu's or Celery's own that is registered
there only buffers or dispatches (``SimpleQueue``, remote control, events, tasks): a CONSUMER span around it would be
false, so there is none.

``itermessages``, ``drain_consumer`` and ``collect_replies`` of kombu.common are loops over such a buffer: their bodies
run inside each message's span. ``fetch`` and ``iterqueue`` of kombu.compat are pull calls. ``Exchange.publish`` and
``Channel.basic_publish`` take what was made ready before, and stay as they are; so do remote control and events.

``messaging.system`` is ``rabbitmq`` for the amqp transports, else the broker: ``redis``, ``memory``, ``filesystem``.
kombu gives every broker the exchanges and queues of AMQP, so destinations are named as RabbitMQ's everywhere.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast, overload

import wrapt
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, get_current_span
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.message import Destination
from queueprop.engine.message import Message as _CoreMessage
from queueprop.engine.operations import Process, ProcessBatch, Send, Settle
from queueprop.engine.scope import Carried, current_scope, is_suppressed
from queueprop.kit import calls, rabbitmq
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.handlers import Scoped, prepared, run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rivals, missing_extra
from queueprop.kit.iteration import GeneratorMessages, Messages, iterate_inside
from queueprop.settings import Settings
from queueprop.wire import propagation
from queueprop.wire.headers import is_altered

try:
    from kombu import common
    from kombu.entity import Exchange, Queue
    from kombu.message import Message
    from kombu.messaging import Consumer, Producer
    from kombu.simple import SimpleBase
except ModuleNotFoundError as error:
    if error.name != "kombu":
        raise
    raise missing_extra(__name__, "kombu", "kombu") from None

if TYPE_CHECKING:
    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy

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
    bound, owner = _method(publish)
    producer = owner.producer if isinstance(owner, SimpleBase) else owner
    parameters = _parameters(bound.func) if isinstance(producer, Producer) else None
    if parameters is None:
        raise TypeError(f"traced_publish wraps Producer.publish or SimpleQueue.put, not {publish!r}")
    hooks = _Hooks(engine_for(settings))

    @functools.wraps(publish)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = hooks.publish_by(
            bound.func, producer, parameters, (*bound.args, *args), {**bound.keywords, **kwargs}
        )
        return result

    return call


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
    hooks = _Hooks(engine_for(settings))

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scoped | None:
        message = _message_among((*args, *kwargs.values()))
        if message is None:
            return None
        context = message.__dict__.get(_CONTEXT)
        return hooks.process(message, queue, destination) if context is None else Carried(context)

    def decorate(decorated: F) -> F:
        return run_inside(decorated, begin)

    return decorate if callback is None else decorate(callback)


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
    hooks = _Hooks(engine_for(settings))

    def begin(item: Any) -> Process | None:
        message = _message_of(item)
        if message is None or _is_carried_on(message):
            return None
        return hooks.process(message, None, destination)

    return iterate_inside(iterable, begin)


def traced_message(
    message: Message | None, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one pulled message, as a context manager::

        message = queue.get()
        with traced_message(message): ...

    Args as for ``traced_messages``. Of an empty queue (``None``) there is no span.
    """
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: None if message is None else hooks.process(message, None, destination), _READING)


def traced_batch(
    messages: Sequence[Message], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each message, as a context manager.

    Args as for ``traced_messages``; without ``destination`` it is the first message's.
    """
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: hooks.process_batch(messages, destination), _READING)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a pull call, which then has a receive span: ``get = traced_get(queue.get)``.

    It opens no scope: handle what it returns inside ``traced_message``, which then also knows the queue.

    Args:
        get: ``get`` of a Queue, or ``get`` or ``get_nowait`` of a SimpleQueue or SimpleBuffer; also a
            ``functools.partial`` of one of them.
        settings: instead of those of the environment.

    Raises TypeError for anything else.
    """
    bound, owner = _method(get)
    queue = owner.queue if isinstance(owner, SimpleBase) else owner
    if not isinstance(queue, Queue):
        raise TypeError(f"traced_get wraps Queue.get or SimpleQueue.get, not {get!r}")
    hooks = _Hooks(engine_for(settings))

    @functools.wraps(get)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = hooks.pull(bound, queue, args, kwargs)
        return result

    return call


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps ``ack``, ``reject`` or ``requeue`` of a message: ``traced_settle(message.ack)()``.

    Under ``Settings(settle_spans=True)`` the settlement of a message that went through one of the words above is a
    span: a child of the message's CONSUMER span, from any thread and however late.

    Raises TypeError for anything else.
    """
    bound, message = _method(settle)
    operation = getattr(bound.func, "__name__", None)
    if not isinstance(message, Message) or operation not in _SETTLEMENTS:
        raise TypeError(f"traced_settle wraps Message.ack, reject or requeue, not {settle!r}")
    hooks = _Hooks(engine_for(settings))

    @functools.wraps(settle)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = hooks.settle(operation, bound, message, args, kwargs)
        return result

    return call


class KombuInstrumentor(Adapter):
    """Traces every producer of kombu, and every consumer that begins to consume from now on.

    Celery's own traffic is left alone: its events and remote control, and its consumers. A task message has a
    PRODUCER span unless Celery's own instrumentation made one.
    """

    library = "kombu"
    requires = ("kombu >= 5.3",)
    rivals = Rivals("kombu")

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(self.engine, lambda: self.is_active)
        yield Patch(Producer, "publish", hooks.publish)
        yield Patch(Queue, "consume", hooks.consume)
        yield Patch(Queue, "get", hooks.get)
        yield Patch(SimpleBase, "get", hooks.simple_get)
        yield Patch(common, "drain_consumer", hooks.drain)
        for operation in _SETTLEMENTS:
            yield Patch(Message, operation, functools.partial(hooks.settle, operation))


_OWNER = "kombu"
_READING = "reading a message of kombu"
_SETTLEMENTS = ("ack", "reject", "requeue")

# The queue that is being pulled from: the explicit API above the instrumentor, or a SimpleQueue above its Queue, pulls
# the very same message.
_pulled_from: ContextVar[Any] = ContextVar("queueprop-kombu-pulled-from", default=None)


def _method(function: Callable[P, R]) -> tuple[functools.partial[R], Any]:
    """What it calls, with the arguments that are bound already, and the object whose method that is."""
    bound = function if isinstance(function, functools.partial) else functools.partial(function)
    return bound, getattr(bound.func, "__self__", None)


def _parameters(method: Callable[..., Any]) -> Sequence[str] | None:
    """The names of its positional parameters; None where it takes no headers."""
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if "headers" not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        return None
    names = _positional(method)
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        names += _PUBLISH[len(names) :]  # a subclass that hands on what it is given
    return names


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [it.name for it in parameters if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]


_PUBLISH = _positional(Producer.publish)[1:]


class _Hooks:
    """What is done around kombu's own methods, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine, is_active: Callable[[], bool] = lambda: True) -> None:
        self.engine = engine
        self.is_active = is_active

    # The producer's side

    def publish(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Producer.publish``, through which everything goes that kombu sends."""
        caller = _caller(sys._getframe(1))
        if _is_housekeeping(caller):
            return wrapped(*args, **kwargs)
        if caller == _CELERY_TASKS:
            return self._publish_task(wrapped, producer, args, kwargs)
        return self.publish_by(wrapped, producer, _PUBLISH, args, kwargs)

    def _publish_task(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Celery sends a task for its user."""
        headers = kwargs.get("headers")
        carried = propagation.read(headers)
        has_span = get_current_span().get_span_context().is_valid
        if _has_celery_s_span(headers) and (has_span or carried.reason is None):
            return wrapped(*args, **(kwargs if carried.reason is None else self._with_current(kwargs)))
        if has_span or carried.reason is not None:
            return self.publish_by(wrapped, producer, _PUBLISH, args, kwargs)
        # A retry inherits the headers of its task, and nothing need be current in the worker.
        inherited = Carried(carried.context)
        inherited.open()
        try:
            return self.publish_by(wrapped, producer, _PUBLISH, args, kwargs)
        finally:
            inherited.close()

    def _with_current(self, kwargs: Options) -> Options:
        """The span of Celery's own instrumentation is current, and did not come into the headers: it leaves alone what
        is empty, as the headers of Celery's first task protocol are.
        """
        written: dict[str, Any] = {}
        try:
            current = get_current()
            if not is_suppressed(current):
                self.engine.write(_CoreMessage(headers=written), current)
        except Exception as error:
            guard.fault("writing the headers of a task", error)
        return {**kwargs, "headers": {**(kwargs.get("headers") or {}), **written}} if written else kwargs

    def publish_by(
        self, wrapped: Wrapped, producer: Any, parameters: Sequence[str], args: Arguments, kwargs: Options
    ) -> Any:
        """``parameters`` are the names of those that ``wrapped`` takes by position, in order."""
        given = {**kwargs, **dict(zip(parameters, args, strict=False))}
        try:
            send = self._send(producer, given)
        except Exception as error:
            guard.fault("preparing a publish with kombu", error)
            send = None
        if send is None:
            return wrapped(*args, **kwargs)
        send.open()
        try:
            args, kwargs = _with_headers(send, given, parameters, args, kwargs)
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            send.close(error)
            raise
        if not _defer(producer, send):
            send.close()
        return result

    def _send(self, producer: Any, given: Mapping[str, Any]) -> Send | None:
        headers = given.get("headers")
        if headers is not None and not isinstance(headers, Mapping):
            return None  # not what kombu takes; it says so
        body = given.get("body", given.get("message"))
        # An on_return callback may publish another message inside a publish.
        owner = f"{_OWNER} {id(body)}"
        if self.engine.is_sending(owner) or (headers and _is_published_already(headers)):
            return None
        exchange, routing_key = given.get("exchange") or producer.exchange, given.get("routing_key")
        name = exchange.name if isinstance(exchange, Exchange) else exchange
        if _is_control(name):
            return None
        key = producer.routing_key if routing_key is None else routing_key
        options = {name: value for name, value in given.items() if name not in _NO_OPTIONS}
        message = _CoreMessage(
            headers=dict(headers or {}),
            id=_text(given.get("message_id")),
            conversation_id=_text(given.get("correlation_id")),
            body=body if isinstance(body, (bytes, str)) else None,
            native=Publish(name or "", key or "", body, headers or {}, options),
        )
        destination = rabbitmq.producer_destination(name or "", key or "", *_broker(_client_of(producer)))
        return self.engine.send(destination, message, owner=owner)

    # The consumer's side

    def consume(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Queue.consume``: the callback that a Consumer registers, where the queue is still known."""
        callback = args[1] if len(args) > 1 else kwargs.get("callback")
        if not isinstance(callback, types.MethodType) or not isinstance(callback.__self__, Consumer):
            return wrapped(*args, **kwargs)
        ours = functools.partial(self._deliver, callback, queue.name)
        if len(args) > 1:
            return wrapped(args[0], ours, *args[2:], **kwargs)
        return wrapped(*args, **{**kwargs, "callback": ours})

    def _deliver(self, callback: types.MethodType, queue: str, raw: Any) -> Any:
        receive: Callable[[Any], Any] = callback
        try:
            consumer = callback.__self__
            if self.is_active() and _has_handler_of_the_user(consumer) and not _is_control(_exchange_of(raw)):
                receive = _rebound(callback, _Receiving(consumer, self, queue))
        except Exception as error:
            guard.fault("looking at a delivery of kombu", error)
        return receive(raw)

    def get(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Queue.get``: a pull call, which opens no scope for what follows."""
        if _is_housekeeping(_caller(sys._getframe(1))):
            return wrapped(*args, **kwargs)
        return self.pull(wrapped, queue, args, kwargs)

    def simple_get(self, wrapped: Wrapped, simple: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``SimpleQueue.get``, which waits, or calls ``Queue.get``."""
        return self.pull(wrapped, simple.queue, args, kwargs)

    def pull(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        if _pulled_from.get() is queue:
            return wrapped(*args, **kwargs)
        with calls.during(_pulled_from, queue):
            return self._pull(wrapped, queue, args, kwargs)

    def _pull(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        started_at = time.time_ns()
        try:
            message = wrapped(*args, **kwargs)
        except BaseException as error:
            self._received(queue, None, started_at, error)
            raise
        self._received(queue, message, started_at, None)
        return message

    def _received(self, queue: Any, message: Any, started_at: int, error: BaseException | None) -> None:
        try:
            if isinstance(message, Message):
                destination = _delivered_from(message, queue.name, message.channel)
                message.__dict__[_DESTINATION] = destination
            else:
                # Not its `channel`: that raises where there is none yet, or opens one.
                destination = rabbitmq.consumer_destination(
                    "", "", queue.name, *_broker(_client_at(queue._channel))
                )
            if not self.engine.settings.receive_spans:
                return
            receive = self.engine.receive(destination, started_at=started_at)
            if isinstance(message, Message):
                receive.add(_delivery(message))
            receive.open()
            receive.close(error)
        except Exception as fault:
            guard.fault("tracing a get of kombu", fault)

    def drain(self, wrapped: Wrapped, _: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``drain_consumer``, the generator behind ``itermessages`` and ``collect_replies``."""
        consumer = args[0] if args else kwargs.get("consumer")

        def begin(item: Any) -> Scoped | None:
            message = _message_of(item) if self.is_active() else None
            if message is None:
                return None
            context = message.__dict__.get(_CONTEXT)  # of callbacks of the user's
            return self.process(message, _only_queue(consumer), None) if context is None else Carried(context)

        return GeneratorMessages(wrapped(*args, **kwargs), begin)

    def process(self, message: Message, queue: str | None, destination: Destination | None) -> Process:
        """The handling of one message. Its destination stays with it, for its settlement."""
        if destination is None:
            destination = _destination_of(message, queue)
        message.__dict__[_DESTINATION] = destination
        return self.engine.process(destination, _delivery(message), owner=_OWNER)

    def process_batch(self, messages: Sequence[Message], destination: Destination | None) -> ProcessBatch:
        known = [destination or _destination_of(message) for message in messages]
        for message, its_own in zip(messages, known, strict=True):
            message.__dict__[_DESTINATION] = its_own
        whole = known[0] if known else rabbitmq.consumer_destination("", "", "", *_broker(None))
        return self.engine.process(whole, [_delivery(message) for message in messages])

    def settle(self, operation: str, wrapped: Wrapped, message: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Message.ack``, ``reject`` and ``requeue``, of messages that were handed to the user."""
        try:
            settle = self._settle(operation, message)
        except Exception as error:
            guard.fault("preparing a settlement with kombu", error)
            settle = None
        if settle is None:
            return wrapped(*args, **kwargs)
        message.__dict__[_IS_SETTLING] = True
        try:
            with settle:
                return wrapped(*args, **kwargs)
        finally:
            message.__dict__.pop(_IS_SETTLING, None)

    def _settle(self, operation: str, message: Any) -> Settle | None:
        destination = message.__dict__.get(_DESTINATION) if self.engine.settings.settle_spans else None
        if destination is None or _IS_SETTLING in message.__dict__ or _is_settled_by_the_broker(message):
            return None
        return self.engine.settle(destination, _delivery(message), operation=operation)


class _Receiving(_Proxy):
    """A consumer as its ``_receive_callback`` sees it for one delivery: what it calls runs in the message's span.

    The consumer itself stays as it is: it is the user's, and several threads may look at it.
    """

    def __init__(self, consumer: Any, hooks: _Hooks, queue: str) -> None:
        super().__init__(consumer)
        self._self_hooks = hooks
        self._self_queue = queue
        self._self_is_undecodable = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__wrapped__" or name.startswith("_self_"):
            super().__setattr__(name, value)
        else:
            setattr(self.__wrapped__, name, value)

    @property
    def on_message(self) -> Any:
        handler = self.__wrapped__.on_message
        return handler and (lambda message: self._self_handle(message, handler, message))

    def receive(self, body: Any, message: Any) -> Any:
        return self._self_handle(message, self.__wrapped__.receive, body, message)

    @property
    def on_decode_error(self) -> Any:
        handler = self.__wrapped__.on_decode_error
        return handler if self._self_is_undecodable else functools.partial(self._self_refuse, handler)

    def _self_handle(self, message: Any, handler: Callable[..., Any], *args: Any) -> Any:
        process = self._self_process(message)
        if process is None:
            return handler(*args)
        with process:
            return handler(*args)

    def _self_refuse(self, handler: Any, message: Any, error: Exception) -> None:
        """What could not be decoded is an error of its span, also where a callback of the user's deals with it."""
        self._self_is_undecodable = True
        process = self._self_process(message)
        if process is not None:
            process.open()
        try:
            if handler is None:
                raise error
            handler(message, error)
        except BaseException as raised:
            if process is not None:
                process.close(raised)
            raise
        if process is not None:
            process.close(error)

    def _self_process(self, message: Any) -> Process | None:
        try:
            return self._self_hooks.process(message, self._self_queue, None)
        except Exception as error:
            guard.fault("reading a message before its handler", error)
            return None


def _rebound(callback: types.MethodType, consumer: Any) -> Callable[[Any], Any]:
    """The same method of another object, with whatever wrapper somebody else has put around it."""
    if type(callback) is types.MethodType:
        return types.MethodType(callback.__func__, consumer)
    owner = type(callback.__self__)
    bound: Callable[[Any], Any] = inspect.getattr_static(owner, callback.__name__).__get__(consumer, owner)
    return bound


# Publishes that a batch holds back


def _defer(producer: Any, send: Send) -> bool:
    """Whether the message waits in a batch (``Producer.batch()``, kombu 5.7), which will end its span."""
    batch = getattr(getattr(producer, "_batch_local", None), "current", None)
    session = getattr(batch, "session", None)
    if session is None or not getattr(session, "_buffered", 0):
        return False  # no batch, a transport that publishes at once, or flushed because the batch was full
    try:
        send.detach()
        waiting = getattr(session, "_queueprop", None)
        if waiting is None:
            waiting = session._queueprop = _Waiting(session)
        waiting.sends.append(send)
    except Exception as error:
        guard.fault("waiting for a batch of kombu", error)
        return False
    return True


class _Waiting:
    """The publishes of one batch that have not gone out yet. They end as the batch does."""

    def __init__(self, session: Any) -> None:
        self.sends: list[Send] = []
        session.flush = functools.partial(self._flush, session.flush)
        session.discard = functools.partial(self._discard, session.discard)
        session.close = functools.partial(self._discard, session.close)

    def _flush(self, flush: Callable[[], Any]) -> Any:
        sends, self.sends = self.sends, []
        try:
            result = flush()
        except BaseException as error:
            for send in sends:
                send.close(error)
            raise
        for send in sends:
            send.close()
        return result

    def _discard(self, end: Callable[[], Any]) -> Any:
        sends, self.sends = self.sends, []
        reason = sys.exc_info()[1]
        for send in sends:
            send.fail("discarded", "the batch was discarded before it was sent")
            send.close(reason)
        return end()


# Who publishes, and who handles


_CELERY_TASKS = "celery.app.amqp"


def _caller(frame: types.FrameType | None) -> str:
    """The module of the code that called a patched function."""
    name = ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(_BETWEEN):
            break
        frame = frame.f_back
    return name


# Wrappers (wrapt has frames without its C extension) and kombu's own loops around a call that may be repeated.
_BETWEEN = ("wrapt.", "sentry_sdk.", "kombu.connection", "kombu.utils.functional")


def _is_housekeeping(module: str) -> bool:
    """Whether this is code of Celery's or kombu's own that does not act for the user.

    Heartbeats, remote control, results, moving queues; what Celery publishes for its user are tasks.
    """
    return module == "kombu.pidbox" or (module.startswith("celery.") and module != _CELERY_TASKS)


def _has_celery_s_span(headers: Any) -> bool:
    """Whether OpenTelemetry's instrumentation of Celery made this task's PRODUCER span.

    It does where it finds the task's id: in the headers, or in the body of the first protocol's if there are none.
    """
    module = sys.modules.get("opentelemetry.instrumentation.celery")
    instance = getattr(getattr(module, "CeleryInstrumentor", None), "_instance", None)
    if instance is None or not instance.is_instrumented_by_opentelemetry:
        return False
    return not headers or "id" in headers


def _is_control(exchange: Any) -> bool:
    """Whether messages of this exchange are Celery's events or kombu's remote control."""
    return isinstance(exchange, str) and (exchange == "celeryev" or exchange.endswith(".pidbox"))


def _is_published_already(headers: Mapping[Any, Any]) -> bool:
    """Whether a PRODUCER span is current that has put its context there: Celery's instrumentation, ``send_span``."""
    span = get_current_span()
    if getattr(span, "kind", None) is not SpanKind.PRODUCER:
        return False
    carried, current = propagation.read(headers).span_context, span.get_span_context()
    return carried.span_id == current.span_id and carried.trace_id == current.trace_id


def _has_handler_of_the_user(consumer: Any) -> bool:
    if consumer.on_message:
        handlers: Sequence[Any] = (consumer.on_message,)
    elif _has_receive_of_its_own(consumer):
        handlers = (consumer.receive,)
    else:
        handlers = consumer.callbacks
    return not handlers or not all(map(_is_of_a_library, handlers))


def _has_receive_of_its_own(consumer: Any) -> bool:
    if "receive" in vars(consumer):
        return True
    return next(kind for kind in type(consumer).__mro__ if "receive" in vars(kind)) is not Consumer


def _is_of_a_library(handler: Any) -> bool:
    """Whether this callback is kombu's or Celery's own, which buffers or dispatches."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return str(getattr(handler, "__module__", "")).partition(".")[0] in ("celery", "kombu")


def _message_among(candidates: Iterable[Any]) -> Message | None:
    return next((one for one in candidates if isinstance(one, Message)), None)


def _message_of(item: Any) -> Message | None:
    """The message of a loop's step, which is it or ``(body, message)``."""
    return _message_among(item if isinstance(item, tuple) else (item,))


def _is_carried_on(message: Message) -> bool:
    """Whether a loop below, whose callbacks have handled this message, has made their span's context current."""
    context = message.__dict__.get(_CONTEXT)
    scope = None if context is None else current_scope(context)
    return isinstance(scope, Process) and scope.closed and current_scope(get_current()) is scope


# kombu's messages


_CONTEXT = "_queueprop_context"
_DESTINATION = "_queueprop_destination"
_IS_SETTLING = "_queueprop_is_settling"
# They are kept on the message itself, which goes wherever the user takes it: to a settlement in another thread.

_NO_OPTIONS = frozenset(("body", "message", "headers", "exchange", "routing_key"))


class _Delivery(_CoreMessage):
    """A message that finds its process span's context again, however often it is made of the same kombu message.

    kombu's message does not know this one: together they would wait for the garbage collector.
    """

    __slots__ = ()

    @property
    def process_context(self) -> Context | None:
        context: Context | None = self.native.__dict__.get(_CONTEXT)
        return context

    @process_context.setter
    def process_context(self, context: Context | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if context is not None:
            self.native.__dict__[_CONTEXT] = context


def _destination_of(message: Message, queue: str | None = None) -> Destination:
    """Where it was pulled or delivered from, if that is known; else as much as it tells."""
    known: Destination | None = message.__dict__.get(_DESTINATION)
    return known or _delivered_from(message, queue, message.channel)


def _delivery(message: Message) -> _Delivery:
    properties = message.properties
    body = message.body
    return _Delivery(
        headers=message.headers,
        id=_text(properties.get("message_id")),
        conversation_id=_text(properties.get("correlation_id")),
        body=body if isinstance(body, (bytes, str)) else None,
        sent_at=properties.get("timestamp"),
        attempt=rabbitmq.delivery_attempt(message.headers, message.delivery_info.get("redelivered")),
        native=message,
        describe=_describe,
    )


def _describe(message: Message) -> Mapping[str, AttributeValue]:
    tag = message.delivery_tag  # of AMQP; other transports make one up
    return {rabbitmq.DELIVERY_TAG: tag} if isinstance(tag, int) else {}


def _only_queue(consumer: Any) -> str | None:
    queues: Sequence[Any] = getattr(consumer, "queues", ())
    return queues[0].name if len(queues) == 1 else None


def _exchange_of(raw: Any) -> Any:
    return (getattr(raw, "delivery_info", None) or {}).get("exchange")


def _is_settled_by_the_broker(message: Message) -> bool:
    """Whether its consumer asked for no acks: kombu then does nothing."""
    tags: Any = getattr(message.channel, "no_ack_consumers", None)
    return bool(tags) and message.delivery_info.get("consumer_tag") in tags


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _with_headers(
    send: Send, given: Mapping[str, Any], parameters: Sequence[str], args: Arguments, kwargs: Options
) -> tuple[Arguments, Options]:
    """The arguments with the headers that carry the context; as they are where there is none."""
    headers = cast("dict[str, Any]", send.messages[0].headers)
    if not is_altered(headers, given.get("headers") or {}):
        return args, kwargs
    if "headers" in parameters[: len(args)]:
        place = parameters.index("headers")
        return (*args[:place], headers, *args[place + 1 :]), kwargs
    return args, {**kwargs, "headers": headers}


# Destinations


def _client_of(producer: Any) -> Any:
    """The Connection, without asking for a channel that is not open yet."""
    return producer.__connection__ or _client_at(producer._channel)


def _client_at(channel: Any) -> Any:
    return getattr(getattr(channel, "connection", None), "client", None)


def _broker(client: Any) -> tuple[str, str | None, int | None]:
    """``messaging.system``, host and port."""
    if client is None:
        return "kombu", None, None
    transport = client.transport
    kind: str = transport.driver_type
    if transport.can_parse_url or not transport.default_port:
        # No server, or one that is not found by host and port, or all of its URL is the name: with the password.
        return _SYSTEMS.get(kind, kind), None, None
    host: str = client.hostname or "localhost"
    if host.startswith("socket://"):
        return kind, host.removeprefix("socket://"), None
    return _SYSTEMS.get(kind, kind), host, int(client.port or transport.default_port)


# Where the conventions have a name of their own for a transport's broker.
_SYSTEMS = {
    "amqp": "rabbitmq",
    "azureservicebus": "servicebus",
    "gcpubsub": "gcp_pubsub",
    "sqs": "aws_sqs",
}


def _delivered_from(message: Message, queue: str | None, channel: Any) -> Destination:
    info = message.delivery_info
    return rabbitmq.consumer_destination(
        str(info.get("exchange") or ""),
        str(info.get("routing_key") or ""),
        queue or "",
        *_broker(_client_at(channel)),
    )

"""Dramatiq: messages in their senders' traces. Dramatiq 1.17 to 2, every broker that Dramatiq's own workers consume.

The context travels in the message's options, as ``options["queueprop"]``, a mapping of text. It is that of the moment
when the message is enqueued, not when it is built, and is put into a copy: ``send`` and ``enqueue`` return what went
out, and so what arrives; a message of the caller's own stays as it was.

What Dramatiq itself enqueues again (a retry, a delayed message that is due) is no publish: it keeps the context of its
first one. A pipeline's next message, callbacks of actors and of groups are publishes, inside the span of the message
that led to them.

Two things shape this file:

- Middleware hooks come in pairs that do not always meet, and in an order that depends on who was added first. So the
  two calls that matter are wrapped whole, on objects that the hooks hand out: ``Broker.enqueue`` of the broker, and
  ``process_message`` of a worker's thread. Where the middleware stands among others makes no difference then.
- A time limit and a shutdown are raised in a worker's thread at any point of it, code of ours included. Whatever
  was current before a message is put back behind it, in the frame that saw it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from queueprop import guard
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Send, Settle
from queueprop.kit import calls, checks, redis
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.instrumentor import Adapter, Patch, Rival, Rivals
from queueprop.kit.jobs import (
    Children,
    Performance,
    carrier_for,
    carrier_in,
    perform,
    performance_at_hand,
    with_carrier,
)
from queueprop.kit.libraries import missing_extra
from queueprop.kit.nesting import Everything, Mark, speaking_for, work_at_hand
from queueprop.settings import Settings
from queueprop.wire.headers import is_altered, text

try:
    import dramatiq
    from dramatiq.broker import Broker, MessageProxy
    from dramatiq.common import q_name
    from dramatiq.errors import ActorNotFound
    from dramatiq.middleware import Middleware
    from dramatiq.worker import _ConsumerThread, _WorkerThread
except ModuleNotFoundError as error:
    if error.name != "dramatiq":
        raise
    raise missing_extra(__name__, "Dramatiq", "dramatiq") from None

OPTION = "queueprop"
"""The message's option in which the context travels."""

SYSTEM = "dramatiq"
"""``messaging.system``: the conventions have no value for Dramatiq, and this is what its users would search for."""

MESSAGE_FAILED = "message_failed"
"""``error.type`` of a message that a middleware had rejected, without an exception."""


class QueuepropMiddleware(Middleware):
    """Traces what a broker enqueues, and what its workers process::

        broker.add_middleware(QueuepropMiddleware())

    Add it where the broker is made, before actors are declared or after, but before a worker starts; and anywhere
    among other middleware: what these enqueue is inside the message's span in any case. One object may serve several
    brokers.

    Dramatiq tells a middleware of its broker by the first hook. A broker without any actor or queue has none before
    its first message: that one has its span and its context, but an error of its enqueue is not on the span, and
    leaves the context in its options, until it is enqueued again; what its enqueue returns may be without the context;
    and pika's instrumentor, if it is on, traces it as well.

    Args:
        settings: instead of those of the environment.

    Raises TypeError for what are no settings.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._hooks = _Hooks(checks.engine_of(settings, "QueuepropMiddleware"))
        self._children = Children(self._hooks.engine.settings.flush_timeout)

    # What a broker calls first, whatever it is used for.

    def before_declare_actor(self, broker: Any, actor: Any) -> None:
        self._hooks.join_broker(broker)

    def after_declare_actor(self, broker: Any, actor: Any) -> None:
        self._hooks.join_broker(broker)

    def before_declare_queue(self, broker: Any, queue_name: str) -> None:
        self._hooks.join_broker(broker)

    def after_declare_queue(self, broker: Any, queue_name: str) -> None:
        self._hooks.join_broker(broker)

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._hooks.join_broker(broker)
        self._hooks.enqueue_unseen(broker, message, delay)

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._hooks.enqueued_unseen(message)

    # A worker's threads, before they begin.

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        self._hooks.join_consumer(thread)

    def after_worker_thread_boot(self, broker: Any, thread: Any) -> None:
        self._hooks.join_worker(thread)

    # What became of a message: its exception stays within ``process_message``.

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        _note_failure(message, exception)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        _note_skip(message)


class DramatiqInstrumentor(Adapter):
    """Traces every broker and worker.

    ``opentelemetry-instrument dramatiq app`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_dramatiq``.
    """

    library = "dramatiq"
    requires = ("dramatiq >= 1.17",)
    rivals = Rivals(
        "dramatiq",
        Rival(
            "opentelemetry_instrumentor_dramatiq:DramatiqInstrumentor", "opentelemetry-instrumentor-dramatiq"
        ),
    )

    def patches(self) -> Iterable[Patch]:
        hooks = self._hooks = _Hooks(self.engine)
        self._children = Children(self.engine.settings.flush_timeout)
        self._covered: set[type] = set()
        yield Patch(Broker, "__init__", self._cover_another)
        yield Patch(Broker, "emit_after", hooks.emit_after)
        for kind in _subclasses(Broker):
            yield from self._patches_of(kind)
        for name, hook in hooks.of_consumer():
            yield Patch(_ConsumerThread, name, hook)
        for name, hook in hooks.of_worker():
            yield Patch(_WorkerThread, name, hook)
        if _AUTO_INSTRUMENTATION in sys.modules:
            yield Patch(importlib.import_module("dramatiq.cli"), "main", _with_launcher_in_path)

    def _uninstrument(self, **options: Any) -> None:
        super()._uninstrument(**options)
        self._children = None

    _children: Children | None = None

    def _cover_another(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of a broker, whose class may have come later than this instrumentor."""
        try:
            for kind in type(broker).__mro__:
                if issubclass(kind, Broker) and kind is not Broker:
                    with _lock:
                        self._undo.extend(map(self._patch, self._patches_of(kind)))
        except Exception as error:
            guard.fault("instrumenting a broker of Dramatiq", error)
        return wrapped(*args, **kwargs)

    def _patches_of(self, kind: type) -> Iterator[Patch]:
        if kind in self._covered:
            return
        self._covered.add(kind)
        for name, hook in self._hooks.of_broker():
            if name in vars(kind):
                yield Patch(kind, name, hook)


_lock = threading.Lock()


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    subclass: type[Any]
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


class _Hooks:
    """What is done around Dramatiq's own methods, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def of_broker(self) -> Iterable[tuple[str, Hook]]:
        return (("enqueue", self.enqueue), ("consume", self.consume))

    def of_consumer(self) -> Iterable[tuple[str, Hook]]:
        return (
            ("handle_message", self.handle_message),
            ("handle_delayed_messages", self.handle_delayed_messages),
            ("post_process_message", self.post_process_message),
        )

    def of_worker(self) -> Iterable[tuple[str, Hook]]:
        return (("process_message", self.process_message),)

    # On the objects of one broker, without patching classes

    def join_broker(self, broker: Any) -> None:
        _join(broker, self.of_broker())

    def join_consumer(self, thread: Any) -> None:
        _join(thread, self.of_consumer())

    def join_worker(self, thread: Any) -> None:
        _join(thread, self.of_worker())

    # The producer's side

    def enqueue(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``enqueue`` of a broker, by which every message goes out, whoever sends it."""
        message = calls.given(0, "message", args, kwargs)
        outer = work_at_hand("publish", SYSTEM)
        if not _can_carry(message) or outer == message.message_id:
            return wrapped(*args, **kwargs)  # or the same message in both APIs, or in a subclass
        with _enqueueing(message.message_id), speaking_for(_channels(broker)):
            if outer is _HAND_OVER:
                return wrapped(*args, **kwargs)
            return self._enqueue(wrapped, broker, message, args, kwargs)

    def _enqueue(self, wrapped: Wrapped, broker: Any, message: Any, args: Arguments, kwargs: Options) -> Any:
        try:
            delay = _delay(message, kwargs.get("delay"))
            send = None if _is_retry(message) else self._send(broker, message, delay)
        except Exception as error:
            guard.fault("preparing the publish of a message", error)
            return wrapped(*args, **kwargs)
        with send or contextlib.nullcontext():
            sent = message
            try:
                carrier = _carrier_again(message, delay) if send is None else _written(send, delay)
                sent = _with_carrier(message, carrier)
            except Exception as error:
                guard.fault("writing the context of a message", error)
            args, kwargs = calls.replaced(0, "message", sent, args, kwargs)
            try:
                return wrapped(*args, **kwargs)
            finally:
                if sent is not message:
                    _hand_on_additions(sent, message)

    def _send(self, broker: Any, message: Any, delay: float | None) -> Send:
        known = Message(
            headers=_carrier_for(message),
            id=_id_of(message),
            delay=delay,
            native=message,
            describe=functools.partial(_describe, broker),
        )
        return self.engine.send(_destination(broker, message), known)

    def enqueue_unseen(self, broker: Any, message: Any, milliseconds: Any) -> None:
        """For a publish that began before the middleware knew of the broker, or by an ``enqueue`` kept from then.

        It is too late to put a copy into its place, or to see it fail.
        """
        try:
            if (
                not _can_carry(message)
                or work_at_hand("publish", SYSTEM) == message.message_id
                or _is_retry(message)
            ):
                return
            written = _written_unseen.get()
            if written is not None and message.options.get(OPTION) is written:
                return  # another attempt of RabbitMQ's broker
            delay = _delay(message, milliseconds)
            send = self._send(broker, message, delay)
            with send:
                carrier = _written(send, delay)
            if carrier is not None:
                message.options[OPTION] = carrier
                _written_unseen.set(carrier)
        except Exception as error:
            guard.fault("writing the context of a message", error)

    def enqueued_unseen(self, message: Any) -> None:
        """The message may be the caller's own."""
        written = _written_unseen.get()
        if written is not None and message.options.get(OPTION) is written:
            del message.options[OPTION]
            _written_unseen.set(None)

    # The consumer's side

    def consume(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of a consumer, which on RabbitMQ begins a loop over a channel of its own."""
        with speaking_for(Everything()):
            return wrapped(*args, **kwargs)

    def process_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one message, up to its ack."""
        message = calls.given(0, "message", args, kwargs)
        return self._process(self._performance(thread.broker, message), wrapped, args, kwargs)

    def handle_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what a consumer does with a message that it was given: one without an actor ends here."""
        message = calls.given(0, "message", args, kwargs)
        error = _actor_not_found(thread.broker, message)
        if error is None:
            return wrapped(*args, **kwargs)
        return self._process(self._performance(thread.broker, message, error), wrapped, args, kwargs)

    def handle_delayed_messages(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the enqueueing of what is due."""
        with _enqueueing(_HAND_OVER):
            return wrapped(*args, **kwargs)

    def post_process_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the ack or nack of a message."""
        message = calls.given(0, "message", args, kwargs)
        settle = self._settle(message)
        with _enqueueing(None), settle or contextlib.nullcontext():
            return wrapped(*args, **kwargs)

    def emit_after(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what a broker tells its middleware, as the middleware is told it."""
        signal, message = (*args, None, None)[:2]
        if signal == "process_message":
            _note_failure(message, kwargs.get("exception"))
        elif signal == "skip_message":
            _note_skip(message)
        return wrapped(*args, **kwargs)

    def _settle(self, message: Any) -> Settle | None:
        performance = _performance_of(message)
        if performance is None or not self.engine.settings.settle_spans or performance.is_settled:
            return None
        performance.is_settled = True
        try:
            process, operation = performance.process, "nack" if message.failed else "ack"
            return self.engine.settle(process.labels.destination, process.message, operation=operation)
        except Exception as error:
            guard.fault("preparing the settlement of a message", error)
            return None

    def _performance(
        self, broker: Any, message: Any, error: BaseException | None = None
    ) -> _Performance | None:
        if _performance_of(message) is not None:
            return None
        try:
            return _Performance(self.engine, broker, message, error)
        except Exception as fault:
            guard.fault("preparing the processing of a message", fault)
            return None

    def _process(
        self, performance: _Performance | None, wrapped: Wrapped, args: Arguments, kwargs: Options
    ) -> Any:
        return perform(SYSTEM, performance, wrapped, args, kwargs)


class _Performance(Performance):
    """One message being processed once."""

    is_settled = False

    def __init__(self, engine: Engine, broker: Any, message: Any, error: BaseException | None) -> None:
        self.message = message
        self.retries = retries = carrier_in(message.options, _RETRIES)
        carrier = carrier_in(message.options, OPTION)
        known = Message(
            headers=carrier,
            id=_id_of(message),
            sent_at=_seconds(carrier, _SENT_AT),
            delay=_seconds(carrier, _DELAY),
            attempt=1 + retries if type(retries) is int and 0 <= retries < _MOST_RETRIES else 1,
            native=message,
            describe=functools.partial(_describe, broker),
        )
        super().__init__(engine.process(_destination(broker, message), known), error)

    def conclude(self, error: BaseException | None) -> None:
        super().conclude(error)
        if error is None and self.message.failed:
            self.process.fail(MESSAGE_FAILED, "The message was rejected.")


_HAND_OVER = object()


def _enqueueing(what: object) -> Mark:
    """``what``: the id of the message; ``_HAND_OVER`` where the next one is no publish; None where all are again."""
    return Mark("publish", SYSTEM, work=what)


_written_unseen: ContextVar[object] = ContextVar("queueprop-dramatiq-written-unseen", default=None)


def _performance_of(message: Any) -> _Performance | None:
    performance: _Performance | None = performance_at_hand(SYSTEM)
    return performance if performance is not None and performance.message is message else None


def _note_failure(message: Any, error: BaseException | None) -> None:
    performance = _performance_of(message)
    if performance is not None:
        performance.note(error)


def _note_skip(message: Any) -> None:
    """A middleware may skip a message, which is no failure, unless it rejected it as well."""
    if _performance_of(message) is not None and message.failed:
        _note_failure(message, sys.exc_info()[1])


def _is_retry(message: Any) -> bool:
    """Whether it is the message that is being processed, which Dramatiq has just counted one retry further."""
    performance: _Performance | None = performance_at_hand(SYSTEM)
    return (
        performance is not None
        and performance.message.message_id == message.message_id
        and message.options.get(_RETRIES) != performance.retries
    )


def _actor_not_found(broker: Any, message: Any) -> ActorNotFound | None:
    try:
        if message.options.get("eta") is None:  # else it waits until it is due
            broker.get_actor(message.actor_name)
    except ActorNotFound as error:
        return error
    except Exception as error:
        # A message that is none, or the broker's own get_actor: Dramatiq is about to meet the same.
        if guard.is_not_ours(error):
            raise
    return None


def _join(owner: Any, hooks: Iterable[tuple[str, Hook]]) -> None:
    try:
        calls.hook_methods(owner, hooks)
    except Exception as error:
        guard.fault("putting hooks around a part of Dramatiq", error, about=type(owner).__name__)


# Worker processes


_AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"


def _with_launcher_in_path(wrapped: Wrapped, cli: Any, args: Arguments, kwargs: Options) -> Any:
    """Around the command line's main process: workers that it spawns are programs that ``opentelemetry-instrument``
    shall find as well, which until 0.65 takes itself out of PYTHONPATH.
    """
    launcher = os.path.dirname(cast(str, sys.modules[_AUTO_INSTRUMENTATION].__file__))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if launcher not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [launcher, *paths]))
    os.environ.update(guard.environment())
    return wrapped(*args, **kwargs)


# Dramatiq's messages

_RETRIES = "retries"  # Dramatiq's own option: how many there were
_MOST_RETRIES = 2**31
"""A message may say anything, and an exporter logs a traceback for each number that it cannot send."""

# Beside the context, in seconds.
_SENT_AT = "sent_at"
_DELAY = "delay"
_TIMES = (_SENT_AT, _DELAY)


def _can_carry(message: Any) -> bool:
    """Whether it is a message that Dramatiq itself would take, or refuse for what the context has no part in.

    Options that are no dict stay what they are: a copy of them would be one, and be taken.
    """
    return (
        isinstance(message, (dramatiq.Message, MessageProxy))
        and isinstance(message.options, dict)
        and isinstance(message.queue_name, str)
    )


def _delay(message: Any, milliseconds: Any) -> float | None:
    """The seconds for which a message is meant to wait: by the call, or by an option of its own."""
    try:
        if isinstance(milliseconds, (int, float)):
            return max(0.0, milliseconds / 1000)
        eta = message.options.get("eta")
        return max(0.0, eta / 1000 - time.time()) if isinstance(eta, (int, float)) else None
    except OverflowError:  # an integer that is no float any more
        return None


def _carrier_for(message: Any) -> dict[str, Any]:
    return carrier_for(message.options, OPTION, apart_from=_TIMES)


def _written(send: Send, delay: float | None) -> dict[str, str] | None:
    """What a publish wrote, with its time; None where it was asked to leave the message alone."""
    known = send.messages[0]
    carrier = cast("dict[str, str]", known.headers)
    if send.closed and carrier == _carrier_for(known.native):
        return None
    return _with_times(carrier, delay) if carrier else {}


def _carrier_again(message: Any, delay: float | None) -> dict[str, str] | None:
    """For a retry: the same context, sent now."""
    carrier = message.options.get(OPTION)
    return _with_times(carrier, delay) if isinstance(carrier, dict) else None


def _with_times(carrier: Mapping[str, str], delay: float | None) -> dict[str, str]:
    times = {_SENT_AT: repr(time.time())}
    if delay is not None:
        times[_DELAY] = repr(delay)
    return {**{k: v for k, v in carrier.items() if k not in _TIMES}, **times}


def _with_carrier(message: Any, carrier: dict[str, str] | None) -> Any:
    options = message.options if carrier is None else with_carrier(message.options, OPTION, carrier)
    return message if options is message.options else message._replace(options=options)


def _hand_on_additions(sent: Any, message: Any) -> None:
    """Gives the caller's message what middleware wrote into our copy of it, as without us into itself.

    A broker that makes a copy of its own has nothing written into ours.
    """
    try:
        written = {name: value for name, value in sent.options.items() if name != OPTION}
        given = {name: value for name, value in message.options.items() if name != OPTION}
        if not is_altered(written, given):
            return
        for name in given.keys() - written.keys():
            del message.options[name]
        message.options.update(written)
    except Exception as error:
        guard.fault("handing on what middleware wrote into a message", error)


def _id_of(message: Any) -> str | None:
    """A delivery may have anything in its place."""
    return message.message_id if isinstance(message.message_id, str) else None


def _seconds(carrier: Any, name: str) -> float | None:
    written = text(carrier.get(name)) if isinstance(carrier, dict) else None
    try:
        value = float(written or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _channels(broker: Any) -> Container[object]:
    """Those of pika that RabbitMQ's broker publishes by."""
    try:
        channels = getattr(broker, "channels", None)
    except Exception as error:  # somebody's own broker
        guard.fault("asking a broker for its channels", error)
        return ()
    return channels if isinstance(channels, (set, frozenset)) else ()


@functools.lru_cache(maxsize=1024)
def _destination_at(name: str, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def _destination(broker: Any, message: Any) -> Destination:
    return _destination_at(q_name(message.queue_name), *_server(broker))


def _server(broker: Any) -> tuple[str | None, int | None]:
    """Host and port, where the broker is one of Dramatiq's own on a server."""
    parameters = getattr(broker, "parameters", None)
    if isinstance(parameters, list):  # of RabbitMQ: the first that answers
        parameters = parameters[0] if len(parameters) == 1 else None
    host, port = getattr(parameters, "host", None), getattr(parameters, "port", None)
    if host is not None:
        return host, port
    return redis.address_of(getattr(broker, "client", None))


def _describe(broker: Any, message: Any) -> dict[str, str]:
    name = message.actor_name
    if not isinstance(name, str):
        return {}
    actor = broker.actors.get(name)
    if actor is None:
        return {_FUNCTION: name}
    function: Any = actor.fn if hasattr(actor.fn, "__qualname__") else type(actor.fn)  # of a generic actor
    return {_FUNCTION: f"{function.__module__}.{function.__qualname__}"}


_FUNCTION = "code.function.name"

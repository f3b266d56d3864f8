"""The spans of any queue, for whoever publishes and consumes by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span

from queueprop import guard
from queueprop.engine.engine import engine_for
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Receive
from queueprop.engine.scope import CarriedContext
from queueprop.kit import checks
from queueprop.kit.handlers import run_inside
from queueprop.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def send_span(
    destination: Destination,
    message: Message | Sequence[Message] | None = None,
    *,
    headers: object = None,
    settings: Settings | None = None,
) -> AbstractContextManager[Span]:
    """The span of a publish (kind PRODUCER). Its context is in the headers when the body of the ``with`` runs::

        headers = {}
        with send_span(orders, headers=headers):
            my_queue.put(body, headers)

    Args:
        destination: where it goes; build it once.
        message: what is known of the message. A sequence is a batch: each message carries the context of a create span
            of its own, and the span of the call (kind CLIENT) links to them.
        headers: short for ``Message(headers=...)``: a dict or a list of pairs that is yours; written in place.
        settings: instead of those of the environment.

    An exception of the body makes the span an error and goes on. Nothing else is raised: a wrong argument is said once,
    in one line, and makes no span.
    """
    try:
        message = Message(headers) if message is None else _message(message, headers)
        return engine_for(settings).send(destination, message)
    except Exception as error:
        return _recovered(send_span, error, destination, message, headers, settings)


def process_span(
    destination: Destination,
    message: Message | Sequence[Message] | None = None,
    *,
    headers: object = None,
    settings: Settings | None = None,
) -> AbstractContextManager[Span]:
    """The span of the handling of a delivery (kind CONSUMER), in the trace that its headers tell::

        with process_span(orders, headers=job.headers):
            handle(job)

    The body runs inside the span, with the baggage of the message. A sequence of messages is a batch: one span with a
    link for each. Arguments as for ``send_span``; ``headers`` are only read. An exception of the body makes the span
    an error and goes on. Nothing else is raised.
    """
    try:
        message = Message(headers) if message is None else _message(message, headers)
        return engine_for(settings).process(destination, message)
    except Exception as error:
        return _recovered(process_span, error, destination, message, headers, settings)


def receive_span(
    destination: Destination,
    message: Message | Sequence[Message] | None = None,
    *,
    headers: object = None,
    settings: Settings | None = None,
) -> ReceiveSpan:
    """The span of a pull call (kind CLIENT), which links to what was pulled::

        with receive_span(orders) as receipt:
            job = my_queue.get()
            receipt.add(headers=job.headers)

    A call that returned nothing (or raised ``queue.Empty`` or a timeout) makes no span. The handling of the message
    gets its own from ``process_span``. Arguments as for ``process_span``; messages that are known beforehand count as
    pulled.
    """
    try:
        found = Message(headers) if message is None else _message(message, headers)
        receive = engine_for(settings).receive(destination, batch=isinstance(found, Sequence))
    except Exception as error:
        recovered = _recovered(receive_span, error, destination, message, headers, settings)
        return recovered if isinstance(recovered, ReceiveSpan) else ReceiveSpan(None)
    if message is not None or headers is not None:
        for one in [found] if isinstance(found, Message) else found:
            receive.add(one)
    return ReceiveSpan(receive)


def settle_span(
    destination: Destination,
    message: Message | Sequence[Message] | None = None,
    *,
    headers: object = None,
    operation: str = "ack",
    settings: Settings | None = None,
) -> AbstractContextManager[Span]:
    """The span of an ack, nack, reject or commit (kind CLIENT): a child of the message's process span.

    Give the same ``Message`` as to ``process_span`` when it is settled elsewhere: later, or in another thread.
    Of a sequence of messages that are settled at once it is the last one's child, and links to the others.
    ``operation`` names it (``nack orders``). Other arguments as for ``process_span``.
    """
    try:
        message = Message(headers) if message is None else _message(message, headers)
        return engine_for(settings).settle(destination, message, operation=operation)
    except Exception as error:
        return _recovered(settle_span, error, destination, message, headers, settings, operation=operation)


def traced_consumer(
    destination: Destination,
    *,
    headers: Callable[..., object] | None = None,
    settings: Settings | None = None,
) -> Callable[[F], F]:
    """Decorates a handler: each call runs inside the CONSUMER span of its message::

        @traced_consumer(orders, headers=lambda job: job.headers)
        def handle(job): ...

    Works for functions, coroutine functions, generators and async generators.

    Args:
        destination: where its messages come from.
        headers: is called with the handler's own arguments and gives the message's headers, or a ``Message`` where
            more is known. Without it, the first argument that has an attribute ``headers`` tells.
        settings: instead of those of the environment.

    Raises TypeError for what is no destination, also where the parentheses are forgotten, and for what is no function.
    """
    if not isinstance(destination, Destination):
        raise checks.refused(
            "traced_consumer", f"a Destination, as in @queueprop.traced_consumer({_ORDERS})", destination
        )
    if headers is not None and not callable(headers):
        raise checks.refused("traced_consumer", "a function, as in headers=lambda job: job.headers", headers)
    engine = checks.engine_of(settings, "traced_consumer")

    def decorate(handler: F) -> F:
        checks.check_handler("traced_consumer", handler, "a function or method to decorate")
        headers_of = (
            _headers_of_arguments(handler) if headers is None else _guarded(headers, "calling headers=")
        )

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return engine.process(destination, _as_message(headers_of(args, kwargs)))

        return run_inside(handler, begin)

    return decorate


def carry_context(fn: F) -> F:
    """Binds the current context to ``fn``, so that it stays in the trace in a thread or an executor::

        pool.submit(carry_context(work), order)

    Span and baggage that are current now are current whenever ``fn`` runs, and gone from there afterwards. Works for
    functions, coroutine functions and generators. Raises TypeError for what cannot be called.
    """
    if not callable(fn):
        raise checks.refused("carry_context", "a function, as in pool.submit(carry_context(work), order)", fn)
    context = get_current()
    return run_inside(fn, lambda args, kwargs: CarriedContext(context))


class ReceiveSpan:
    """A pull call in progress: tell it what was pulled."""

    def __init__(self, receive: Receive | None) -> None:
        self._receive = receive

    def add(self, message: Message | None = None, *, headers: object = None) -> None:
        """A message that the call returned; ``headers`` is short for ``Message(headers=...)``."""
        if message is None:
            message = Message(headers)
        elif headers is not None:
            _said_twice()
        if not isinstance(message, Message):
            checks.say(
                "receive_span", "add wants a Message, or headers by name: add(headers=job.headers)", message
            )
        elif self._receive is not None:
            self._receive.add(message)

    def __enter__(self) -> ReceiveSpan:
        if self._receive is not None:
            self._receive.open()
        return self

    def __exit__(self, exc_type: object, error: BaseException | None, trace: object) -> None:
        if self._receive is not None:
            self._receive.close(error)


_ORDERS = 'queueprop.Destination("my-queue", "orders")'


def _message(message: Message | Sequence[Message], headers: object) -> Message | Sequence[Message]:
    if headers is not None:
        _said_twice()
    if not isinstance(message, Message) and not _are_messages(message):
        raise _NoMessageError
    return message


class _NoMessageError(Exception):
    """Somebody gave something else."""


def _are_messages(given: object) -> bool:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        return False
    try:
        return all(isinstance(one, Message) for one in given)
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        return False


def _recovered(
    word: Callable[..., Any],
    error: Exception,
    destination: object,
    message: object,
    headers: object,
    settings: object,
    **options: object,
) -> AbstractContextManager[Any]:
    """What a word gives where something that it was given is something else: looked for behind an error alone."""
    if guard.is_not_ours(error):
        raise error
    name = word.__name__
    if not isinstance(destination, Destination):
        form = f"a Destination, as in {name}({_ORDERS}, headers=headers)"
        checks.say(name, f"it wants {form}; the message goes on without a span", destination)
    elif isinstance(error, _NoMessageError):
        form = f"a Message or a list of them, or headers by name: {name}(destination, headers=job.headers)"
        checks.say(name, f"it wants {form}; the message goes on without a span", message)
    elif settings is not None and not isinstance(settings, Settings):
        checks.say_settings(name, settings)
        made = word(destination, message, headers=headers if message is None else None, **options)
        return cast(AbstractContextManager[Any], made)
    else:
        # A field of the Destination's, or the operation's name, is of a type that it cannot be.
        guard.slip(f"reading the arguments of {name}", error)
    return nullcontext(INVALID_SPAN)


def _said_twice() -> None:
    guard.mistake(
        "message= and headers= were both given", "the headers of message= are used; give one of the two"
    )


def _as_message(found: object) -> Message:
    return found if isinstance(found, Message) else Message(found)


HeadersOf = Callable[[tuple[Any, ...], dict[str, Any]], object]


def _headers_of_arguments(handler: object) -> HeadersOf:
    """The headers of the first argument that has some. ``handler`` is whose they are."""
    where = f"traced_consumer on {checks.shown(handler)}"

    def find(*args: Any, **kwargs: Any) -> object:
        have_none = False
        for argument in (*args, *kwargs.values()):
            found = getattr(argument, "headers", _NOTHING)
            if found is not None and found is not _NOTHING:
                return found
            have_none = have_none or found is None
        if not have_none:
            guard.mistake(where, _WITHOUT_HEADERS)
        return None

    return _guarded(find, "reading the attribute headers of an argument", where)


def _guarded(function: Callable[..., object], what: str, where: str = "traced_consumer") -> HeadersOf:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            guard.slip(f"{where}, {what}", error)
            return None

    return read


_NOTHING = object()

_WITHOUT_HEADERS = (
    "no argument of it has an attribute headers, so no context is read; say where they are, "
    "as in traced_consumer(destination, headers=lambda job: job.headers)"
)

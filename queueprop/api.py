"""The spans of any queue, for whoever publishes and consumes by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from opentelemetry.context import get_current
from opentelemetry.trace import Span

from queueprop import guard
from queueprop.engine.engine import engine_for
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Receive
from queueprop.engine.scope import CarriedContext
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

    An exception of the body makes the span an error and goes on. Nothing else is raised.
    """
    if message is None:
        message = Message(headers)
    elif headers is not None:
        _said_twice()
    return engine_for(settings).send(destination, message)


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
    if message is None:
        message = Message(headers)
    elif headers is not None:
        _said_twice()
    return engine_for(settings).process(destination, message)


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
    receive = engine_for(settings).receive(destination, batch=isinstance(message, Sequence))
    receipt = ReceiveSpan(receive)
    if message is not None or headers is not None:
        found = _message(message, headers)
        for one in [found] if isinstance(found, Message) else found:
            receive.add(one)
    return receipt


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
    return engine_for(settings).settle(destination, _message(message, headers), operation=operation)


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
    """
    engine = engine_for(settings)
    headers_of = headers if headers is not None else _headers_of_arguments

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return engine.process(destination, _as_message(_read_headers(headers_of, args, kwargs)))

    def decorate(handler: F) -> F:
        return run_inside(handler, begin)

    return decorate


def carry_context(fn: F) -> F:
    """Binds the current context to ``fn``, so that it stays in the trace in a thread or an executor::

        pool.submit(carry_context(work), order)

    Span and baggage that are current now are current whenever ``fn`` runs, and gone from there afterwards. Works for
    functions, coroutine functions and generators.
    """
    context = get_current()
    return run_inside(fn, lambda args, kwargs: CarriedContext(context))


class ReceiveSpan:
    """A pull call in progress: tell it what was pulled."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def add(self, message: Message | None = None, *, headers: object = None) -> None:
        """A message that the call returned; ``headers`` is short for ``Message(headers=...)``."""
        if message is None:
            message = Message(headers)
        elif headers is not None:
            _said_twice()
        self._receive.add(message)

    def __enter__(self) -> ReceiveSpan:
        self._receive.open()
        return self

    def __exit__(self, exc_type: object, error: BaseException | None, trace: object) -> None:
        self._receive.close(error)


def _message(message: Message | Sequence[Message] | None, headers: object) -> Message | Sequence[Message]:
    if message is None:
        return Message(headers)
    if headers is not None:
        _said_twice()
    return message


def _said_twice() -> None:
    guard.mistake(
        "message= and headers= were both given", "the headers of message= are used; give one of the two"
    )


def _as_message(found: object) -> Message:
    return found if isinstance(found, Message) else Message(found)


def _read_headers(headers_of: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    try:
        return headers_of(*args, **kwargs)
    except Exception as error:
        guard.fault("calling the headers= function of a traced_consumer", error)
        return None


def _headers_of_arguments(*args: Any, **kwargs: Any) -> object:
    for argument in (*args, *kwargs.values()):
        found = getattr(argument, "headers", None)
        if found is not None:
            return found
    return None

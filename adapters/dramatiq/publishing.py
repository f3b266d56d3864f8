"""The producer's side: what a broker enqueues, and what of it is no publish."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from contextvars import ContextVar
from typing import Any, cast

from queueprop import guard
from queueprop.adapters.dramatiq.messages import (
    OPTION,
    SYSTEM,
    TIMES,
    can_carry,
    delay_of,
    destination_of,
    function_of,
    id_of,
    with_context,
    with_times,
)
from queueprop.adapters.dramatiq.performing import is_retry
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import Send
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.jobs import carrier_for
from queueprop.kit.nesting import Mark, speaking_for, work_at_hand
from queueprop.wire.headers import is_altered


class PublishingHooks:
    """What is done around methods that enqueue, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def enqueue(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``enqueue`` of a broker, by which every message goes out, whoever sends it."""
        message = calls.given(0, "message", args, kwargs)
        outer = work_at_hand("publish", SYSTEM)
        if not can_carry(message) or outer == message.message_id:
            return wrapped(*args, **kwargs)  # or the same message in both APIs, or in a subclass
        with Mark("publish", SYSTEM, work=message.message_id), speaking_for(_channels(broker)):
            if outer is _HAND_OVER:
                return wrapped(*args, **kwargs)
            return self._enqueue(wrapped, broker, message, args, kwargs)

    def _enqueue(self, wrapped: Wrapped, broker: Any, message: Any, args: Arguments, kwargs: Options) -> Any:
        try:
            delay = delay_of(message, kwargs.get("delay"))
            send = None if is_retry(message) else self._send(broker, message, delay)
        except Exception as error:
            guard.fault("preparing the publish of a message", error)
            return wrapped(*args, **kwargs)
        with send or contextlib.nullcontext():
            sent = message
            try:
                carrier = _carrier_again(message, delay) if send is None else _written(send, delay)
                sent = with_context(message, carrier)
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
            headers=carrier_for(message.options, OPTION, apart_from=TIMES),
            id=id_of(message),
            delay=delay,
            native=message,
            attributes=function_of(broker, message),
        )
        return self.engine.send(destination_of(broker, message), known)

    def handle_delayed_messages(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the enqueueing of what is due."""
        with Mark("publish", SYSTEM, work=_HAND_OVER):
            return wrapped(*args, **kwargs)

    # Of a publish that is not hooked: what a middleware is told of it

    def enqueue_unseen(self, broker: Any, message: Any, milliseconds: Any) -> None:
        """For a publish that began before the middleware knew of the broker, or by an ``enqueue`` kept from then.

        It is too late to put a copy into its place, or to see it fail.
        """
        try:
            if (
                not can_carry(message)
                or work_at_hand("publish", SYSTEM) == message.message_id
                or is_retry(message)
            ):
                return
            written = _written_unseen.get()
            if written is not None and message.options.get(OPTION) is written:
                return  # another attempt of RabbitMQ's broker
            delay = delay_of(message, milliseconds)
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


_HAND_OVER = object()
"""The work of a mark, in the place of the message's id, where the next enqueue is no publish."""

_written_unseen: ContextVar[object] = ContextVar("queueprop-dramatiq-written-unseen", default=None)


def _written(send: Send, delay: float | None) -> dict[str, str] | None:
    """What a publish wrote, with its time; None where it was asked to leave the message alone."""
    known = send.messages[0]
    carrier = cast("dict[str, str]", known.headers)
    if send.closed and carrier == carrier_for(known.native.options, OPTION, apart_from=TIMES):
        return None
    return with_times(carrier, delay) if carrier else {}


def _carrier_again(message: Any, delay: float | None) -> dict[str, str] | None:
    """For a retry: the same context, sent now."""
    carrier = message.options.get(OPTION)
    return with_times(carrier, delay) if isinstance(carrier, dict) else None


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


def _channels(broker: Any) -> Container[object]:
    """Those of pika that RabbitMQ's broker publishes by."""
    try:
        channels = getattr(broker, "channels", None)
    except Exception as error:  # somebody's own broker
        guard.fault("asking a broker for its channels", error)
        return ()
    return channels if isinstance(channels, (set, frozenset)) else ()

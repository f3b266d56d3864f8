"""The consumer's side: a message being processed and settled, and what became of it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from dramatiq.errors import ActorNotFound

from queueprop import guard
from queueprop.adapters.dramatiq.messages import (
    DELAY,
    OPTION,
    RETRIES,
    SENT_AT,
    SYSTEM,
    destination_of,
    function_of,
    id_of,
    seconds_in,
)
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import Settle
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.jobs import Performance, carrier_in, perform, performance_at_hand
from queueprop.kit.nesting import Everything, Mark, speaking_for

MESSAGE_FAILED = "message_failed"
"""``error.type`` of a message that a middleware had rejected, without an exception."""


class PerformingHooks:
    """What is done around methods that consume, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def consume(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of a consumer, which on RabbitMQ begins a loop over a channel of its own."""
        with speaking_for(Everything()):
            return wrapped(*args, **kwargs)

    def process_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one message, up to its ack."""
        message = calls.given(0, "message", args, kwargs)
        return perform(SYSTEM, self._performance(thread.broker, message), wrapped, args, kwargs)

    def handle_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what a consumer does with a message that it was given: one without an actor ends here."""
        message = calls.given(0, "message", args, kwargs)
        error = _actor_not_found(thread.broker, message)
        if error is None:
            return wrapped(*args, **kwargs)
        return perform(SYSTEM, self._performance(thread.broker, message, error), wrapped, args, kwargs)

    def post_process_message(self, wrapped: Wrapped, thread: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the ack or nack of a message."""
        message = calls.given(0, "message", args, kwargs)
        settle = self._settle(message)
        # What is enqueued meanwhile is a publish again, also where a delayed message is handed over.
        with Mark("publish", SYSTEM), settle or contextlib.nullcontext():
            return wrapped(*args, **kwargs)

    def emit_after(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what a broker tells its middleware, as the middleware is told it."""
        signal, message = (*args, None, None)[:2]
        if signal == "process_message":
            note_failure(message, kwargs.get("exception"))
        elif signal == "skip_message":
            note_skip(message)
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


class _Performance(Performance):
    """One message being processed once."""

    is_settled = False

    def __init__(self, engine: Engine, broker: Any, message: Any, error: BaseException | None) -> None:
        self.message = message
        self.retries = retries = carrier_in(message.options, RETRIES)
        carrier = carrier_in(message.options, OPTION)
        known = Message(
            headers=carrier,
            id=id_of(message),
            sent_at=seconds_in(carrier, SENT_AT),
            delay=seconds_in(carrier, DELAY),
            attempt=1 + retries if type(retries) is int and 0 <= retries < _MOST_RETRIES else 1,
            native=message,
            attributes=function_of(broker, message),
        )
        super().__init__(engine.process(destination_of(broker, message), known), error)

    def conclude(self, error: BaseException | None) -> None:
        super().conclude(error)
        if error is None and self.message.failed:
            self.process.fail(MESSAGE_FAILED, "The message was rejected.")


_MOST_RETRIES = 2**31
"""A message may say anything, and an exporter logs a traceback for each number that it cannot send."""


def note_failure(message: Any, error: BaseException | None) -> None:
    performance = _performance_of(message)
    if performance is not None:
        performance.note(error)


def note_skip(message: Any) -> None:
    """A middleware may skip a message, which is no failure, unless it rejected it as well."""
    if _performance_of(message) is not None and message.failed:
        note_failure(message, sys.exc_info()[1])


def is_retry(message: Any) -> bool:
    """Whether it is the message that is being processed, which Dramatiq has just counted one retry further."""
    performance: _Performance | None = performance_at_hand(SYSTEM)
    return (
        performance is not None
        and performance.message.message_id == message.message_id
        and message.options.get(RETRIES) != performance.retries
    )


def _performance_of(message: Any) -> _Performance | None:
    performance: _Performance | None = performance_at_hand(SYSTEM)
    return performance if performance is not None and performance.message is message else None


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

"""The one engine: every span of queueprop is made through an ``Engine``, by the ``Settings`` that it belongs to.

Its methods make *operations* (``operations.py``): context managers that may also be opened and closed by hand where a
library offers no single frame to wrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind

from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import (
    Create,
    Process,
    ProcessBatch,
    Receive,
    Send,
    SendBatch,
    Settle,
)
from queueprop.engine.scope import CarriedContext, is_suppressed
from queueprop.engine.telemetry import Telemetry
from queueprop.settings import Settings
from queueprop.wire import propagation


class Engine(Telemetry):
    """Makes operations: what adapters ask, and whoever publishes and consumes by hand."""

    @overload
    def send(
        self,
        destination: Destination,
        message: Message,
        *,
        operation: str = ...,
        started_at: int | None = ...,
    ) -> Send: ...
    @overload
    def send(
        self,
        destination: Destination,
        message: Sequence[Message],
        *,
        operation: str = ...,
        created: Sequence[Create] | None = ...,
    ) -> SendBatch: ...
    def send(
        self,
        destination: Destination,
        message: Message | Sequence[Message],
        *,
        operation: str = "publish",
        created: Sequence[Create] | None = None,
        started_at: int | None = None,
    ) -> Send | SendBatch:
        """A publish: a PRODUCER span, and its context in ``message.headers``.

        A sequence of messages is a batch: a create span (PRODUCER) for each, whose context the message carries, and a
        CLIENT span for the call that links to them. ``created`` are those of messages that were made before.

        ``started_at`` (nanoseconds since the epoch) is for the span of one message that is made after the fact.
        """
        if isinstance(message, Message):
            labels = destination.labels(semconv.SEND, operation, None, self.templates)
            return Send(self, labels, (message,), started_at)
        send = destination.labels(semconv.SEND, operation, SpanKind.CLIENT, self.templates)
        return SendBatch(self, send, message, created)

    def create(self, destination: Destination, message: Message) -> Create:
        """The making of a message that a batch takes along later: a PRODUCER span, and its context in the message.

        For batches that are filled message by message, before their destination is known; else ``send`` makes it.
        """
        return Create(self, destination.labels(semconv.CREATE, "create", None, self.templates), message)

    @overload
    def process(
        self,
        destination: Destination,
        message: Message,
        *,
        operation: str = ...,
        started_at: int | None = ...,
        is_counted: bool = ...,
    ) -> Process: ...
    @overload
    def process(
        self,
        destination: Destination,
        message: Sequence[Message],
        *,
        operation: str = ...,
        started_at: int | None = ...,
        is_counted: Sequence[bool] | None = ...,
    ) -> ProcessBatch: ...
    def process(
        self,
        destination: Destination,
        message: Message | Sequence[Message],
        *,
        operation: str = "process",
        started_at: int | None = None,
        is_counted: Any = True,
    ) -> Process | ProcessBatch:
        """The handling of one delivery, or of a batch: the CONSUMER span, current together with the message's baggage.

        ``started_at`` (nanoseconds since the epoch) is for a span made after the fact. ``is_counted`` says whether
        it counts as a delivery, of a batch for each message: what was pulled is counted there.
        """
        process = destination.labels(semconv.PROCESS, operation, None, self.templates)
        if isinstance(message, Message):
            return Process(self, process, message, started_at, is_counted)
        return ProcessBatch(self, process, message, started_at, None if is_counted is True else is_counted)

    def receive(
        self,
        destination: Destination,
        *,
        operation: str = "poll",
        batch: bool = False,
        started_at: int | None = None,
        has_span: bool = True,
        counts: bool = False,
    ) -> Receive:
        """A pull call: a CLIENT span, made when it has returned messages (``add`` them), linked to each of them.

        ``started_at`` (nanoseconds since the epoch) is for a span made after the fact. ``counts`` says that what it
        returns counts as delivered, and is not to be counted again when it is handled.
        """
        return Receive(
            self,
            destination.labels(semconv.RECEIVE, operation, None, self.templates),
            batch,
            started_at,
            has_span,
            counts,
        )

    def context_of(self, destination: Destination, message: Message) -> CarriedContext | None:
        """What a delivery's context is made current by, for whoever acts on one whose span is elsewhere: another
        process's, or nobody's. None where its source is not trusted.
        """
        if not self.trusts(destination, message):
            return None
        found = propagation.read(message.headers, self.baggage_allow)
        return CarriedContext(Context({**get_current(), **found.context}))

    def carrier(self) -> dict[str, Any]:
        """What is current, as the headers of a message would carry it: for what is handed on without a message of its
        own. Empty where nothing is to be traced.
        """
        written: dict[str, Any] = {}
        current = get_current()
        if not is_suppressed(current):
            self.write(written, current)
        return written

    def settle(
        self, destination: Destination, message: Message | Sequence[Message], *, operation: str = "ack"
    ) -> Settle:
        """An ack, nack, reject or commit: a CLIENT span, a child of the message's process span.

        Of several messages that are settled at once it is the last one's child, and links to the others.
        """
        messages = (message,) if isinstance(message, Message) else message
        return Settle(self, destination.labels(semconv.SETTLE, operation, None, self.templates), messages)


def engine_for(settings: Settings | None = None) -> Engine:
    """The engine of these settings, made once; without settings, the one that the environment configures."""
    global _default
    if settings is None:
        if _default is None:
            _default = Engine()
        return _default
    engine: Engine | None = settings.__dict__.get("_engine")
    if engine is None:
        engine = Engine(settings)
        object.__setattr__(settings, "_engine", engine)
    return engine


_default: Engine | None = None

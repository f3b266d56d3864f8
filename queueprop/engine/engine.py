"""The one engine: every span of queueprop is made through an ``Engine``, by the ``Settings`` that it belongs to.

Its methods make *operations* (``operations.py``): context managers that may also be opened and closed by hand where a
library offers no single frame to wrap.
"""

from __future__ import annotations

import fnmatch
import re
import threading
from collections.abc import Collection, Sequence
from typing import Any, overload

from opentelemetry.context import Context, get_current
from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    get_current_span,
    get_tracer_provider,
)
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message, Operation
from queueprop.engine.metrics import Instruments
from queueprop.engine.operations import (
    Attributes,
    Create,
    Process,
    ProcessBatch,
    Receive,
    Send,
    SendBatch,
    Settle,
    is_inside_send,
)
from queueprop.settings import Hook, Settings
from queueprop.version import __version__
from queueprop.wire import headers, propagation
from queueprop.wire.propagation import SPAN_KEY


class Engine:
    """Makes the operations of one ``Settings``. Thread-safe; made once and kept."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings = settings if settings is not None else Settings()
        self.baggage_allow: Collection[str] | None = (
            None if "*" in settings.baggage_allow else frozenset(settings.baggage_allow)
        )
        self.continues = settings.propagation == "parent"
        self.trusts_all = settings.trust == "all"
        self.excluded = _any_of(settings.exclude)
        self._details = bool(settings.capture_headers or settings.body_size)
        self.enriches_sends = self._details or settings.publish_hook is not None
        self.enriches_processes = self._details or settings.consume_hook is not None
        self._given_tracer_provider = settings.tracer_provider
        self._given_meter_provider = settings.meter_provider
        self._tracer_provider: Any = None
        self._tracer: Any = None
        self._meter_provider: Any = None
        self._instruments: Any = None

    @overload
    def send(
        self, destination: Destination, message: Message, *, operation: str = ..., owner: str | None = ...
    ) -> Send: ...
    @overload
    def send(
        self,
        destination: Destination,
        message: Sequence[Message],
        *,
        operation: str = ...,
        owner: str | None = ...,
        created: Sequence[Create] | None = ...,
    ) -> SendBatch: ...
    def send(
        self,
        destination: Destination,
        message: Message | Sequence[Message],
        *,
        operation: str = "publish",
        owner: str | None = None,
        created: Sequence[Create] | None = None,
    ) -> Send | SendBatch:
        """A publish: a PRODUCER span, and its context in ``message.headers``.

        A sequence of messages is a batch: a create span (PRODUCER) for each, whose context the message carries, and a
        CLIENT span for the call that links to them. ``created`` are those of messages that were made before.
        ``owner`` names the adapter; inside its own publish it makes no second span (a facade above a channel).
        """
        if isinstance(message, Message):
            return Send(self, destination.operation(semconv.SEND, operation), (message,), owner)
        return SendBatch(
            self, destination.operation(semconv.SEND, operation, SpanKind.CLIENT), message, owner, created
        )

    def create(self, destination: Destination, message: Message) -> Create:
        """The making of a message that a batch takes along later: a PRODUCER span, and its context in the message.

        For batches that are filled message by message, before their destination is known; else ``send`` makes it.
        """
        return Create(self, destination.operation(semconv.CREATE, "create"), message)

    @overload
    def process(
        self,
        destination: Destination,
        message: Message,
        *,
        operation: str = ...,
        owner: str | None = ...,
        started_at: int | None = ...,
    ) -> Process: ...
    @overload
    def process(
        self,
        destination: Destination,
        message: Sequence[Message],
        *,
        operation: str = ...,
        owner: str | None = ...,
        started_at: int | None = ...,
    ) -> ProcessBatch: ...
    def process(
        self,
        destination: Destination,
        message: Message | Sequence[Message],
        *,
        operation: str = "process",
        owner: str | None = None,
        started_at: int | None = None,
    ) -> Process | ProcessBatch:
        """The handling of one delivery, or of a batch: the CONSUMER span, current together with the message's baggage.

        ``owner`` names the adapter; inside the processing of the same ``message.native`` it makes no second span.
        ``started_at`` (nanoseconds since the epoch) is for a span made after the fact.
        """
        process = destination.operation(semconv.PROCESS, operation)
        if isinstance(message, Message):
            return Process(self, process, message, owner, started_at)
        return ProcessBatch(self, process, message, owner, started_at)

    def receive(
        self,
        destination: Destination,
        *,
        operation: str = "poll",
        batch: bool = False,
        started_at: int | None = None,
    ) -> Receive:
        """A pull call: a CLIENT span, made when it has returned messages (``add`` them), linked to each of them.

        ``started_at`` (nanoseconds since the epoch) is for a span made after the fact.
        """
        return Receive(self, destination.operation(semconv.RECEIVE, operation), batch, started_at)

    def settle(
        self, destination: Destination, message: Message | Sequence[Message], *, operation: str = "ack"
    ) -> Settle:
        """An ack, nack, reject or commit: a CLIENT span, a child of the message's process span.

        Of several messages that are settled at once it is the last one's child, and links to the others.
        """
        messages = (message,) if isinstance(message, Message) else message
        return Settle(self, destination.operation(semconv.SETTLE, operation), messages)

    def is_sending(self, owner: str) -> bool:
        """Whether the code at hand runs inside a publish of ``owner``: a facade need not prepare a second one."""
        return is_inside_send(get_current(), owner)

    # What operations ask of their engine.

    def start_span(
        self,
        operation: Operation,
        parent: Context,
        attributes: Attributes,
        links: Sequence[Link] | None = None,
        started_at: int | None = None,
    ) -> Span:
        provider = self._given_tracer_provider or get_tracer_provider()
        if provider is not self._tracer_provider:
            self._tracer = provider.get_tracer("queueprop", __version__, schema_url=semconv.SCHEMA_URL)
            self._tracer_provider = provider
        span: Span = self._tracer.start_span(
            operation.span_name, parent, operation.span_kind, attributes, links, started_at
        )
        if span is INVALID_SPAN:
            # No SDK, and an API before 1.31: what came in still goes on.
            span = NonRecordingSpan(get_current_span(parent).get_span_context())
        return span

    def instruments(self) -> Instruments:
        provider = self._given_meter_provider or get_meter_provider()
        if provider is not self._meter_provider:
            self._make_instruments(provider)
        instruments: Instruments = self._instruments
        return instruments

    def _make_instruments(self, provider: MeterProvider) -> None:
        """Makes them while no other thread does, not even for another engine: of two threads that make the same
        instruments of one provider at once, older SDKs fail one.
        """
        has_turn = _making_instruments.acquire(timeout=_LONGEST_TURN)
        try:
            self._instruments = Instruments(provider, __version__)
            self._meter_provider = provider
        finally:
            if has_turn:
                _making_instruments.release()

    def excludes(self, destination: Destination) -> bool:
        return self.excluded is not None and self.excluded(destination.name or "") is not None

    def ambient_parent(self, current: Context, incoming: Context) -> Context:
        """The parent under ``Settings(propagation="link")``: the ambient span, with the message's baggage."""
        return Context({**incoming, SPAN_KEY: get_current_span(current)})

    def write(self, message: Message, context: Context) -> None:
        """Puts the context into the message's headers; what cannot be written to is said once, in one line."""
        if message.headers is None:
            return
        try:
            propagation.write(message.headers, context, self.baggage_allow)
        except TypeError as error:
            guard.mistake("writing the headers of a message", str(error))

    def trusts(self, destination: Destination, message: Message) -> bool:
        trust = self.settings.trust
        if isinstance(trust, str):
            return trust == "all"
        try:
            return bool(trust(destination, message))
        except Exception as error:
            guard.fault("asking Settings(trust=...) about a message, which counts as untrusted now", error)
            return False

    def enrich(self, span: Span, message: Message, hook: Hook | None) -> None:
        """What only a recorded span is worth: the library's attributes, captured headers, sizes, the hook."""
        if not span.is_recording():
            return
        try:
            if message.describe is not None:
                span.set_attributes(message.describe(message.native))
            if self._details:
                span.set_attributes(_details(message, self.settings))
        except Exception as error:
            guard.fault("describing a message", error)
        if hook is not None:
            self.run_hook(hook, span, message)

    def run_hook(self, hook: Hook, span: Span, message: Message) -> None:
        try:
            hook(span, message if message.native is None else message.native)
        except Exception as error:
            guard.fault("running a hook of Settings", error)


_making_instruments = threading.RLock()
_LONGEST_TURN = 1.0
"""Seconds to wait for whoever makes instruments, which takes less than a millisecond: longer is a thread that a time
limit interrupted there, or one that a fork left behind, and nobody waits for those.
"""


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


def _any_of(patterns: Collection[str]) -> Any:
    if not patterns:
        return None
    return re.compile("|".join(map(fnmatch.translate, patterns))).match


def _details(message: Message, settings: Settings) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if settings.capture_headers:
        names = tuple(name.lower() for name in settings.capture_headers)
        for name, found in headers.read_all(message.headers, names).items():
            texts = [text for text in map(headers.text, found) if text is not None]
            if texts:
                attributes[semconv.HEADER + name] = texts
    if settings.body_size:
        size = _body_size(message)
        if size is not None:
            attributes[semconv.MESSAGE_BODY_SIZE] = size
    return attributes


def _body_size(message: Message) -> int | None:
    body = message.body
    if message.body_size is not None or body is None:
        return message.body_size
    return len(body.encode(errors="surrogatepass") if isinstance(body, str) else body)

"""The one engine: the spans of send, receive, process and settle, their parents and links, status and metrics.

An ``Engine`` belongs to one ``Settings``. Its methods make *operations*, context managers that may also be opened and
closed by hand (``open``, ``close``) where a library offers no single frame to wrap. None of them raises anything
of ours: a fault goes to the guard, and the call goes on untraced.
"""

from __future__ import annotations

import asyncio
import fnmatch
import queue
import re
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from opentelemetry.context import Context, get_current
from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from queueprop import guard, headers, propagation, semconv
from queueprop.message import Destination, Message, Operation
from queueprop.metrics import Instruments
from queueprop.scope import BAGGAGE_KEY, SPAN_KEY, Scope, current_scope, is_suppressed
from queueprop.settings import Hook, Settings
from queueprop.version import __version__

Attributes = Mapping[str, AttributeValue]

# What a pull call raises when there is nothing to pull, or when it is given up: no span is made of it.
_EMPTY_POLL = (queue.Empty, asyncio.QueueEmpty, asyncio.CancelledError, TimeoutError, asyncio.TimeoutError)


class Engine:
    """Makes the operations of one ``Settings``. Thread-safe; made once and kept."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings = settings if settings is not None else Settings()
        self.baggage_allow: Collection[str] | None = (
            None if "*" in settings.baggage_allow else frozenset(settings.baggage_allow)
        )
        self._excluded = _any_of(settings.exclude)
        self._details = bool(settings.capture_headers or settings.body_size)
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
    ) -> SendBatch: ...
    def send(
        self,
        destination: Destination,
        message: Message | Sequence[Message],
        *,
        operation: str = "publish",
        owner: str | None = None,
    ) -> Send | SendBatch:
        """A publish: a PRODUCER span, and its context in ``message.headers``.

        A sequence of messages is a batch: a create span (PRODUCER) for each, whose context the message carries, and a
        CLIENT span for the call that links to them.
        ``owner`` names the adapter; inside its own publish it makes no second span (a facade above a channel).
        """
        if isinstance(message, Message):
            return Send(self, destination.operation(semconv.SEND, operation), (message,), owner)
        return SendBatch(
            self, destination.operation(semconv.SEND, operation, SpanKind.CLIENT), message, owner
        )

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

    def receive(self, destination: Destination, *, operation: str = "poll", batch: bool = False) -> Receive:
        """A pull call: a CLIENT span, made when it has returned messages (``add`` them), linked to each of them."""
        return Receive(self, destination.operation(semconv.RECEIVE, operation), batch)

    def settle(self, destination: Destination, message: Message, *, operation: str = "ack") -> Settle:
        """An ack, nack, reject or commit: a CLIENT span, a child of the message's process span."""
        return Settle(self, destination.operation(semconv.SETTLE, operation), message)

    # What operations ask of their engine.

    def start_span(
        self,
        operation: Operation,
        parent: Context,
        attributes: Attributes,
        links: Sequence[Link] | None = None,
        started_at: int | None = None,
    ) -> Span:
        provider = self.settings.tracer_provider or get_tracer_provider()
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
        provider = self.settings.meter_provider or get_meter_provider()
        if provider is not self._meter_provider:
            self._instruments = Instruments(provider, __version__)
            self._meter_provider = provider
        instruments: Instruments = self._instruments
        return instruments

    def excludes(self, destination: Destination) -> bool:
        return self._excluded is not None and self._excluded(destination.name or "") is not None

    def parent_of_process(self, current: Context, incoming: Context) -> Context:
        """The parent context by ``Settings(propagation=...)``, with the message's baggage either way."""
        if self.settings.propagation == "parent":
            return incoming
        return Context({**incoming, SPAN_KEY: get_current_span(current)})

    def count_missing(self, instruments: Instruments, operation: Operation, reason: str | None) -> None:
        if reason is not None:
            instruments.context_missing.add(1, {**operation.metric_attributes, semconv.REASON: reason})

    def write(self, message: Message, context: Context | None) -> None:
        """Puts the context into the message's headers; what cannot be written to is said once, in one line."""
        if message.headers is None or context is None:
            return
        try:
            propagation.write(message.headers, context, self.baggage_allow)
        except TypeError as error:
            guard.mistake("writing the headers of a message", str(error))

    def trusts(self, destination: Destination, message: Message) -> bool:
        trust = self.settings.trust
        if trust == "all" or trust == "none":
            return trust == "all"
        try:
            return bool(trust(destination, message))
        except Exception as error:
            guard.fault("asking Settings(trust=...) about a message, which counts as untrusted now", error)
            return False

    def enrich(self, span: Span, message: Message, hook: Hook | None) -> None:
        """What only a recorded span is worth: the library's attributes, captured headers, sizes, the user's hook."""
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


class _Operation(Scope):
    """One operation: opened, current for a while, closed once. The base of all below."""

    __slots__ = (
        "_error_type",
        "_instruments",
        "_started_at",
        "closed",
        "engine",
        "operation",
        "owner",
        "span",
    )

    def __init__(
        self, engine: Engine, operation: Operation, owner: str | None = None, started_at: int | None = None
    ) -> None:
        super().__init__()
        self.engine = engine
        self.operation = operation
        self.owner = owner
        self.span: Span = INVALID_SPAN
        self.closed = False
        self._started_at = started_at
        self._instruments: Instruments | None = None
        self._error_type: str | None = None

    def open(self) -> Span:
        """Starts the span and makes it current. Raises nothing of ours."""
        try:
            self._open_unless_left_alone(get_current())
        except Exception as error:
            self.close()
            guard.fault(f"starting the span of {self.operation.span_name!r}", error)
        except BaseException as error:
            self.close(error)
            raise
        return self.span

    def close(self, error: BaseException | None = None) -> None:
        """Ends the span, with ``error`` if there is one, and restores what was current before. Twice is once."""
        self.detach()
        if self.closed:
            return
        self.closed = True
        try:
            self._end(error)
        except Exception as fault:
            guard.fault(f"ending the span of {self.operation.span_name!r}", fault)

    def fail(self, error_type: str, description: str) -> None:
        """Marks a failure that no exception tells: a negative acknowledgement, a killed worker."""
        self._error_type = error_type
        if self.span.is_recording():
            self.span.set_attribute(semconv.ERROR_TYPE, error_type)
            self.span.set_status(StatusCode.ERROR, description)

    def __enter__(self) -> Span:
        return self.open()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close(error)
        return False

    def _open_unless_left_alone(self, current: Context) -> None:
        if is_suppressed(current):
            self.closed = True
        elif self.owner is not None and self._is_within_itself(current):
            self.span = get_current_span(current)
            self.closed = True
        elif self.engine.excludes(self.operation.destination):
            self.closed = True
            self._carry(current)
        else:
            self._open(current)

    def _open(self, current: Context) -> None:
        """Starts the span."""
        raise NotImplementedError

    def _carry(self, current: Context) -> None:
        """Without a span: hands the context on."""

    def _is_within_itself(self, current: Context) -> bool:
        """Whether a layer above (a facade, the explicit API) already traces this very call."""
        return False

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        instruments.operation_duration.record(seconds, attributes, self._context)

    def _start(self, parent: Context, attributes: Attributes, links: Sequence[Link] | None = None) -> Span:
        # With metrics the clock is ours, so that a duration equals its span's; else the SDK reads it.
        instruments = self.engine.instruments()
        if instruments.enabled:
            self._instruments = instruments
            if self._started_at is None:
                self._started_at = time.time_ns()
        self.span = self.engine.start_span(self.operation, parent, attributes, links, self._started_at)
        return self.span

    def _end(self, error: BaseException | None) -> None:
        ended_at = None
        try:
            if error is not None and _is_failure(error):
                self._record(error)
            if self._instruments is not None and self._started_at is not None:
                ended_at = time.time_ns()
                attributes: Attributes = self.operation.metric_attributes
                if self._error_type is not None:
                    attributes = {**attributes, semconv.ERROR_TYPE: self._error_type}
                self._measure(self._instruments, (ended_at - self._started_at) / 1e9, attributes)
        finally:
            self.span.end(ended_at)

    def _record(self, error: BaseException) -> None:
        self._error_type = _type_name(error)
        if not self.span.is_recording():
            return
        self.span.set_attribute(semconv.ERROR_TYPE, self._error_type)
        self.span.set_status(StatusCode.ERROR, _text_of(error))
        self.span.record_exception(error)


class Send(_Operation):
    """The publish of one message, or of several in one call; see ``Engine.send``."""

    __slots__ = ("messages",)

    def __init__(
        self, engine: Engine, operation: Operation, messages: Sequence[Message], owner: str | None = None
    ) -> None:
        super().__init__(engine, operation, owner)
        self.messages = messages

    def end_with(self, future: Any) -> None:
        """Leaves the end of the span to a future (asyncio's or concurrent's): its error, if any, is the span's."""
        self.detach()
        future.add_done_callback(self._end_of)

    def _end_of(self, future: Any) -> None:
        if future.cancelled():
            self.close(asyncio.CancelledError())
            return
        # exception() would tell asyncio that somebody has seen the error, and silence its "never retrieved".
        self.close(future._exception if hasattr(future, "_exception") else future.exception())

    def _open(self, current: Context) -> None:
        message = self.messages[0]
        span = self._start(current, _attributes(self.operation, message))
        self.attach({**current, SPAN_KEY: span}, current)
        self.engine.write(message, self._context)
        if span.is_recording():
            self.engine.enrich(span, message, self.engine.settings.publish_hook)

    def _carry(self, current: Context) -> None:
        for message in self.messages:
            self.engine.write(message, current)

    def _is_within_itself(self, current: Context) -> bool:
        scope = current_scope(current)
        return isinstance(scope, Send) and scope.owner == self.owner and not scope.closed

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        super()._measure(instruments, seconds, attributes)
        instruments.sent.add(len(self.messages), attributes)


class SendBatch(Send):
    """The publish of several messages in one call: each message carries the context of a create span of its own."""

    __slots__ = ()

    def _open(self, current: Context) -> None:
        if not self.messages:
            self.closed = True
            return
        create = self.operation.destination.operation(semconv.CREATE, "create")
        links = [Link(self._create(create, message, current)) for message in self.messages]
        attributes = {**self.operation.attributes, semconv.BATCH_MESSAGE_COUNT: len(self.messages)}
        span = self._start(current, attributes, links)
        self.attach({**current, SPAN_KEY: span}, current)

    def _create(self, create: Operation, message: Message, current: Context) -> SpanContext:
        span = self.engine.start_span(create, current, _attributes(create, message))
        self.engine.write(message, set_span_in_context(span, current))
        if span.is_recording():
            self.engine.enrich(span, message, self.engine.settings.publish_hook)
        span.end()
        return span.get_span_context()


class Process(_Operation):
    """The handling of one delivery; see ``Engine.process``."""

    __slots__ = ("_is_counted", "_waited", "message")

    def __init__(
        self,
        engine: Engine,
        operation: Operation,
        message: Message,
        owner: str | None = None,
        started_at: int | None = None,
    ) -> None:
        super().__init__(engine, operation, owner, started_at)
        self.message = message
        self._is_counted = False
        self._waited: float | None = None

    def _open(self, current: Context) -> None:
        engine, message = self.engine, self.message
        found = propagation.read(message.headers, engine.baggage_allow)
        incoming = found.context if engine.trusts(self.operation.destination, message) else Context()
        parent = engine.parent_of_process(current, incoming)
        self._waited = _waited(message, self._started_at)
        attributes = _attributes(self.operation, message, self._waited)
        span = self._start(parent, attributes, _links(current, parent, (found.span_context,)))
        self.attach(_inside(current, incoming, span), current)
        message.process_context = self._context
        if self._instruments is not None and not _is_in_batch(current):
            self._is_counted = True
            engine.count_missing(self._instruments, self.operation, found.reason)
        if span.is_recording():
            engine.enrich(span, message, engine.settings.consume_hook)

    def _carry(self, current: Context) -> None:
        incoming = propagation.read(self.message.headers, self.engine.baggage_allow).context
        self.attach(_inside(current, incoming, get_current_span(incoming)), current)

    def _is_within_itself(self, current: Context) -> bool:
        scope = current_scope(current)
        return (
            isinstance(scope, Process)
            and scope.owner == self.owner
            and scope.message.native is self.message.native
            and not scope.closed
        )

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        instruments.process_duration.record(seconds, attributes, self._context)
        if not self._is_counted:
            return
        instruments.consumed.add(1, attributes)
        if self._waited is not None:
            instruments.queue_time.record(self._waited, self.operation.metric_attributes, self._context)


class ProcessBatch(_Operation):
    """The handling of several deliveries at once: one span, a link for each message.

    Where all of them come from one trace the span is in it; where their traces differ it is a root of its own. What
    is handled one by one inside it has process spans of its own, and is not counted a second time.
    """

    __slots__ = ("messages",)

    def __init__(
        self,
        engine: Engine,
        operation: Operation,
        messages: Sequence[Message],
        owner: str | None = None,
        started_at: int | None = None,
    ) -> None:
        super().__init__(engine, operation, owner, started_at)
        self.messages = messages

    def _open(self, current: Context) -> None:
        engine, destination = self.engine, self.operation.destination
        found = [propagation.read(message.headers, engine.baggage_allow) for message in self.messages]
        creations = [one.span_context for one in found]
        trusted = all(engine.trusts(destination, message) for message in self.messages)
        incoming = _common_context(creations) if trusted else Context()
        parent = engine.parent_of_process(current, incoming)
        attributes = {**self.operation.attributes, semconv.BATCH_MESSAGE_COUNT: len(self.messages)}
        links = _links(current, parent, creations, [_link_attributes(message) for message in self.messages])
        span = self._start(parent, attributes, links)
        self.attach(_inside(current, Context(), span), current)
        for message in self.messages:
            message.process_context = self._context
        if self._instruments is not None:
            for one in found:
                engine.count_missing(self._instruments, self.operation, one.reason)
        hook = engine.settings.consume_hook
        if hook is not None and span.is_recording():
            for message in self.messages:
                engine.run_hook(hook, span, message)

    def _carry(self, current: Context) -> None:
        self.attach(_inside(current, Context(), INVALID_SPAN), current)

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        instruments.process_duration.record(seconds, attributes, self._context)
        instruments.consumed.add(len(self.messages), attributes)
        for message in self.messages:
            waited = _waited(message, self._started_at)
            if waited is not None:
                instruments.queue_time.record(waited, self.operation.metric_attributes, self._context)


class Receive(_Operation):
    """A pull call; see ``Engine.receive``. ``add`` what it returned; without messages there is no span.

    Nothing of it is current while the call runs: a span that waits for a message would be the parent of the wait.
    """

    __slots__ = ("_batch", "_messages")

    def __init__(self, engine: Engine, operation: Operation, batch: bool = False) -> None:
        super().__init__(engine, operation)
        self._batch = batch
        self._messages: list[Message] = []

    def add(self, message: Message) -> None:
        """A message that the call returned. Its span will link to the message's creation context."""
        self._messages.append(message)

    def _open(self, current: Context) -> None:
        self._started_at = time.time_ns()  # the span is made at the end, with the true start

    def _end(self, error: BaseException | None) -> None:
        failed = error is not None and _is_failure(error) and not isinstance(error, _EMPTY_POLL)
        if not self._messages and not failed:
            return
        current = get_current()
        allow = self.engine.baggage_allow
        attributes: Attributes = self.operation.attributes
        if self._batch:
            attributes = {**attributes, semconv.BATCH_MESSAGE_COUNT: len(self._messages)}
        elif self._messages:
            attributes = _attributes(self.operation, self._messages[0])
        creations = [propagation.read(message.headers, allow).span_context for message in self._messages]
        described = [_link_attributes(message) for message in self._messages] if self._batch else None
        self._start(current, attributes, _links(current, current, creations, described))
        super()._end(error if failed else None)


class Settle(_Operation):
    """An ack, nack, reject or commit; see ``Engine.settle``."""

    __slots__ = ("message",)

    def __init__(self, engine: Engine, operation: Operation, message: Message) -> None:
        super().__init__(engine, operation)
        self.message = message

    def _open(self, current: Context) -> None:
        span = self._start(self._parent(current), _attributes(self.operation, self.message))
        self.attach({**current, SPAN_KEY: span}, current)

    def _parent(self, current: Context) -> Context:
        """The message's process span, from whatever thread; else its creation context; else what is current."""
        if self.message.process_context is not None:
            return self.message.process_context
        scope = current_scope(current)
        if isinstance(scope, (Process, ProcessBatch)) and not scope.closed:
            return current
        found = propagation.read(self.message.headers, self.engine.baggage_allow)
        if found.span_context.is_valid and self.engine.trusts(self.operation.destination, self.message):
            return found.context
        return current


# Contexts


def _inside(current: Context, incoming: Context, span: Span) -> dict[str, object]:
    """What is current in a handler: the message's baggage and its span, and of the ambient context neither."""
    values: dict[str, object] = {**current, **incoming, SPAN_KEY: span}
    if BAGGAGE_KEY not in incoming:
        values.pop(BAGGAGE_KEY, None)
    return values


def _common_context(creations: Sequence[SpanContext]) -> Context:
    """The context that a batch continues: the first message's, where all valid ones are of one trace."""
    valid = [creation for creation in creations if creation.is_valid]
    if len({creation.trace_id for creation in valid}) != 1:
        return Context()
    return set_span_in_context(NonRecordingSpan(valid[0]), Context())


def _links(
    current: Context,
    parent: Context,
    creations: Sequence[SpanContext],
    attributes: Sequence[Attributes | None] | None = None,
) -> list[Link]:
    """A link to each creation context, and one to the ambient span where that is not the parent anyway."""
    links = [
        Link(creation, attributes[index] if attributes is not None else None)
        for index, creation in enumerate(creations)
        if creation.is_valid
    ]
    ambient = current.get(SPAN_KEY)
    if not isinstance(ambient, Span) or ambient is parent.get(SPAN_KEY):
        return links
    context = ambient.get_span_context()
    if context.is_valid and not any(_is_same(context, creation) for creation in creations):
        links.append(Link(context))
    return links


def _is_same(one: SpanContext, other: SpanContext) -> bool:
    return one.span_id == other.span_id and one.trace_id == other.trace_id


def _is_in_batch(current: Context) -> bool:
    scope = current_scope(current)
    return isinstance(scope, ProcessBatch) and not scope.closed


# Attributes


def _attributes(operation: Operation, message: Message, waited: float | None = None) -> Attributes:
    """The operation's attributes, and a message's own where it has any. The former are shared: never written to."""
    own: dict[str, AttributeValue] = {}
    if message.id is not None:
        own[semconv.MESSAGE_ID] = message.id
    if message.conversation_id is not None:
        own[semconv.MESSAGE_CONVERSATION_ID] = message.conversation_id
    if message.attempt is not None:
        own[semconv.DELIVERY_ATTEMPT] = message.attempt
    if message.delay is not None:
        own[semconv.DELAY] = message.delay
    if waited is not None:
        own[semconv.QUEUE_TIME] = waited
    if message.attributes is not None:
        own.update(message.attributes)
    return {**operation.attributes, **own} if own else operation.attributes


def _link_attributes(message: Message) -> Attributes | None:
    """What differs between the messages of a batch stands on their links."""
    attributes: dict[str, AttributeValue] = dict(message.attributes or {})
    if message.id is not None:
        attributes[semconv.MESSAGE_ID] = message.id
    return attributes or None


def _details(message: Message, settings: Settings) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if settings.capture_headers:
        names = tuple(name.lower() for name in settings.capture_headers)
        for name, found in headers.read_all(message.headers, names).items():
            texts = [text for text in map(headers.text, found) if text is not None]
            if texts:
                attributes[semconv.HEADER + name] = texts
    if settings.body_size and message.body is not None:
        body = message.body
        attributes[semconv.MESSAGE_BODY_SIZE] = len(body.encode() if isinstance(body, str) else body)
    return attributes


def _waited(message: Message, started_at: int | None) -> float | None:
    """Seconds in the queue, without the delay that was asked for. Clocks of two machines may differ: never below 0."""
    if message.sent_at is None:
        return None
    now = time.time() if started_at is None else started_at / 1e9
    return max(0.0, now - message.sent_at - (message.delay or 0.0))


# Errors


def _is_failure(error: BaseException) -> bool:
    """Whether the operation failed: closing a generator and leaving the program in order are no failures."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return not isinstance(error, GeneratorExit)


def _type_name(error: BaseException) -> str:
    """The exception's full class name, as the SDK writes it on the event."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as fault:  # a __str__ of the user's that raises
        return f"<no text: {fault!r}>"


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

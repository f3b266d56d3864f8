"""The operations on messages: send, process, receive, settle. Their spans, parents, links, status and measurements.

An operation is opened, is current for a while, and is closed once. Nothing of ours is ever raised from it: a fault goes
to the guard, and the user's call goes on untraced.

What most messages do not need is a default of the class, so that making an operation is a few assignments.
"""

from __future__ import annotations

import queue
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal

from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import garbage, semconv
from queueprop.engine.message import Attributes, Destination, Labels, Message, bounded
from queueprop.engine.metrics import Instruments
from queueprop.engine.scope import (
    AttachedContext,
    CarriedContext,
    current_scope,
    is_suppressed,
    records,
    span_context_of,
)
from queueprop.engine.telemetry import Telemetry
from queueprop.wire import propagation
from queueprop.wire.propagation import BAGGAGE_KEY, SPAN_KEY

Describe = Callable[[Any], Attributes]

_NO_MESSAGE = Message()

# What a pull call raises when there is nothing to pull, or when it is given up: no span is made of it.
_EMPTY_POLL = (queue.Empty, StopIteration, StopAsyncIteration, TimeoutError)
# And of those modules, which nobody need import for them. (TimeoutError is a class of its own until Python 3.10.)
_EMPTY_POLL_OF = {
    "asyncio": ("QueueEmpty", "CancelledError", "TimeoutError"),
    "concurrent.futures": ("TimeoutError",),
}


class Operation(AttachedContext):
    """The base of all below. A context manager; ``open`` and ``close`` do the same by hand.

    Attributes:
        span: the span, while it is open; ``INVALID_SPAN`` where nothing is traced.
        has_begun: whether it was opened.
        closed: whether it is over, or never was to be traced.
    """

    span: Span = INVALID_SPAN
    has_begun = False
    closed = False

    _ends_plainly = True

    _started_at: int | None = None
    _instruments: Instruments | None = None
    _error_type: str | None = None
    _failure: BaseException | None = None  # that something else has told

    def __init__(self, telemetry: Telemetry, labels: Labels) -> None:
        self.telemetry = telemetry
        self.labels = labels

    def open(self) -> Span:
        """Starts the span and makes it current. Raises nothing of ours."""
        self.has_begun = True
        try:
            current = get_current()
            if current and is_suppressed(current):
                self.closed = True
            elif self.telemetry.excluded is not None and self.telemetry.excludes(self.labels.destination):
                self.closed = True
                self._carry(current)
            else:
                self._open(current)
            return self.span
        except Exception as error:
            # A time limit that is raised here ends what is handled, as it would a moment later.
            self.close(error if guard.is_not_ours(error) else None)
            self._fault("starting", error)
        except BaseException as error:
            self.close(error)
            raise
        return self.span

    def close(self, error: BaseException | None = None) -> None:
        """Ends the span, with ``error`` if there is one, and restores what was current before. Twice is once."""
        self.detach()
        if self.closed:
            self._release()
            return
        if garbage.collecting and garbage.is_ended_beside(partial(self.close, error)):
            return
        self.closed = True
        if error is None:
            error = self._failure
        try:
            if error is None and self._instruments is None and self._ends_plainly:
                self.span.end()
            else:
                self._end(error)
        except Exception as fault:
            self._fault("ending", fault)
        self._release()

    def drop(self) -> None:
        """Lets go of it without a span: it has turned out that nothing was published, or handled."""
        self.detach()
        self.closed = True
        self._release()

    def fail(self, error_type: str, description: str) -> None:
        """Marks a failure that no exception tells: a negative acknowledgement, a killed worker."""
        self._error_type = error_type
        try:
            if self.span.is_recording():
                self.span.set_attribute(semconv.ERROR_TYPE, error_type)
                self.span.set_status(StatusCode.ERROR, description)
        except Exception as error:
            self._fault("telling a failure to", error)

    @property
    def settle_context(self) -> Context | None:
        """Of which a settlement of the message is a child, also when this is over; None where nothing was traced.

        While it is open that is the handler's own context, with the message's baggage.
        """
        if not span_context_of(self.span).is_valid:
            return None
        return self._context or set_span_in_context(self.span, Context())

    __enter__ = open

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close(error)
        return False

    def _release(self) -> None:
        # The context knows this operation: without this the two would wait for the garbage collector.
        self._context = self._previous = None

    def _open(self, current: Context) -> None:
        """Starts the span."""
        raise NotImplementedError

    def _carry(self, current: Context) -> None:
        """Without a span: hands the context on."""

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        of_type = {**attributes, semconv.OPERATION_TYPE: self.labels.kind}
        instruments.operation_duration.record(seconds, of_type, self._context)

    def _start(self, parent: Context, attributes: Attributes, links: Sequence[Link] | None = None) -> Span:
        # With metrics the clock is ours, so that a duration equals its span's; else the SDK reads it.
        telemetry = self.telemetry
        instruments = telemetry.instruments()
        if instruments.enabled:
            self._instruments = instruments
            if self._started_at is None:
                self._started_at = time.time_ns()
        self.span = span = telemetry.start_span(self.labels, parent, attributes, links, self._started_at)
        return span

    def _end(self, error: BaseException | None) -> None:
        ended_at = None
        try:
            if error is not None and _is_failure(error):
                self._record(error)
            if self._instruments is not None and self._started_at is not None:
                ended_at = max(time.time_ns(), self._started_at)  # the clock may have been set back
                self._count(self._instruments, (ended_at - self._started_at) / 1e9)
        finally:
            self.span.end(ended_at)

    def _record(self, error: BaseException) -> None:
        self._error_type = error_type_of(error)
        try:
            if self.span.is_recording():
                _tell(self.span, error, self._error_type)
        except Exception as fault:
            self._fault("telling a failure to", fault)

    def _count(self, instruments: Instruments, seconds: float) -> None:
        attributes = instruments.attributes_of(self.labels)
        if self._error_type is not None:
            attributes = {**attributes, semconv.ERROR_TYPE: self._error_type}
        try:
            self._measure(instruments, seconds, attributes)
        except Exception as error:
            self._fault("measuring", error)

    def _count_missing(self, instruments: Instruments, reason: str | None) -> None:
        if reason is not None:
            attributes = instruments.attributes_of(self.labels)
            instruments.context_missing.add(1, {**attributes, semconv.REASON: reason})

    def _fault(self, doing: str, error: Exception) -> None:
        # Which destination it was is no other place: there may be as many as messages.
        guard.fault(f"{doing} a span", error, about=self.labels.span_name)


class Send(Operation):
    """The publish of one message, or of several in one call; see ``Engine.send``.

    Attributes:
        writes_later: whether the headers that go out are made only after ``open`` (see ``write``); those of the message
            are then only read.
        begins_trace: whether it begins a trace of its own, linked to what its headers carry: a schedule's next message.
    """

    writes_later = False
    begins_trace = False

    _carried: Context | None = None
    _describe: Describe | None = None
    _describes_failure = False

    def __init__(
        self,
        telemetry: Telemetry,
        labels: Labels,
        messages: Sequence[Message],
        started_at: int | None = None,
    ) -> None:
        self.telemetry = telemetry
        self.labels = labels
        self.messages = messages
        if started_at is not None:
            self._started_at = started_at

    def write(self, headers: object) -> None:
        """Puts the context into headers that are made only after ``open``, in place; as long as this is not closed."""
        if self._carried is not None:
            self.telemetry.write(headers, self._carried)

    def wait(self) -> None:
        """Leaves the end of the span to a ``close`` from elsewhere, when there is an answer; no longer current."""
        self.detach()
        # The broker may take its time, and what they hold may be large.
        self.messages = (_NO_MESSAGE,) * len(self.messages)

    def end_with(
        self, future: Any, describe: Describe | None = None, describes_failure: bool = False
    ) -> None:
        """Leaves the end of the span to a future (asyncio's or concurrent's): its error, if any, is the span's.

        ``describe`` gives attributes from its result, and with ``describes_failure`` from None where it failed; it is
        called only when the span is recorded.
        """
        self.wait()
        self._describe = describe
        if describes_failure:
            self._describes_failure = True
        try:
            future.add_done_callback(self._end_of)
        except Exception as error:
            self.close()
            self._fault("waiting for the end of", error)

    def close_with(self, answer: Any, describe: Describe) -> None:
        """Ends the span with an answer that is there already; see ``end_with``."""
        self.tell(describe, answer)
        self.close()

    def _end_of(self, future: Any) -> None:
        error: BaseException | None = None
        try:
            error = error_of(future)
            if self._describe is not None and (error is None or self._describes_failure):
                self.tell(self._describe, future.result() if error is None else None)
        except Exception as fault:
            self._fault("reading the answer to", fault)
        self.close(error)

    def tell(self, describe: Describe, answer: Any) -> None:
        """Sets what ``describe`` makes of an answer, when the span is recorded."""
        try:
            if self.span.is_recording():
                self.span.set_attributes(describe(answer))
        except Exception as error:
            self._fault("reading the answer to", error)

    def _open(self, current: Context) -> None:
        telemetry, message = self.telemetry, self.messages[0]
        origin = None
        propagator = propagation.configured()
        is_free = not message.headers or propagator.is_free(message.headers)
        if self.begins_trace:
            origin = _beginning(telemetry, self.labels, message)
        elif not is_free:
            origin = _origin(telemetry, self.labels, message, current)
        if origin is None:
            span = self._start(current, _attributes(self.labels, message))
            self._carried = inside = self.attach({**current, SPAN_KEY: span}, current)
        else:
            span = self._start(origin.parent, _attributes(self.labels, message), origin.links)
            self.attach({**current, SPAN_KEY: span}, current)
            self._carried = inside = origin.outgoing(span)
        if not self.writes_later:
            telemetry.write(message.headers, inside, propagator, is_free)
        if telemetry.enriches_sends or message.describe is not None:
            telemetry.enrich(span, message, "publish_hook")

    def _carry(self, current: Context) -> None:
        for message in self.messages:
            if self.begins_trace:
                origin: _Origin | None = _beginning(self.telemetry, self.labels, message)
            else:
                origin = _origin(self.telemetry, self.labels, message, current) if message.headers else None
            self._carried = outgoing = current if origin is None else origin.outgoing()
            if not self.writes_later:
                self.telemetry.write(message.headers, outgoing)

    def _release(self) -> None:
        self._context = self._previous = self._carried = None

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        super()._measure(instruments, seconds, attributes)
        instruments.sent.add(len(self.messages), attributes)


class SendBatch(Send):
    """The publish of several messages in one call: each message carries the context of a create span of its own.

    ``created`` are these spans where the messages were made one by one before; otherwise they are made here.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        labels: Labels,
        messages: Sequence[Message],
        created: Sequence[Create] | None = None,
    ) -> None:
        super().__init__(telemetry, labels, messages)
        self._created = created

    def _open(self, current: Context) -> None:
        if not self.messages:
            self.closed = True
            return
        created = self._created
        if created is None:
            create = self.labels.destination.labels(semconv.CREATE, "create", None, self.telemetry.templates)
            created = [self._create(create, message, current) for message in self.messages]
        creations = [span_context_of(one.span) for one in created]
        attributes = {**self.labels.attributes, semconv.BATCH_MESSAGE_COUNT: len(self.messages)}
        span = self._start(
            current, attributes, [_link(creation, current) for creation in creations if creation.is_valid]
        )
        self.attach({**current, SPAN_KEY: span}, current)

    def _create(self, labels: Labels, message: Message, current: Context) -> Create:
        create = Create(self.telemetry, labels, message)
        create.start(current)
        create.close()
        return create


class Create:
    """The making of one message that goes out in a batch; see ``Engine.create``. It is never current.

    Attributes:
        span: its span; ``INVALID_SPAN`` where nothing is traced.
    """

    span: Span = INVALID_SPAN
    _made_at: int | None = None
    _closed = False

    def __init__(self, telemetry: Telemetry, labels: Labels, message: Message) -> None:
        self.telemetry = telemetry
        self.labels = labels
        self.message = message

    def open(self) -> None:
        """Starts the span and puts its context into the message. Raises nothing of ours."""
        try:
            current = get_current()
            if not is_suppressed(current):
                self.start(current)
                self._made_at = time.time_ns()
            self.message = _NO_MESSAGE  # its batch may be long in the filling
        except Exception as error:
            self._fault("starting", error)

    def start(self, current: Context) -> None:
        telemetry, message, links = self.telemetry, self.message, None
        parent = current
        origin = _origin(telemetry, self.labels, message, current) if message.headers else None
        if origin is not None:
            parent, links = origin.parent, origin.links
        attributes = _attributes(self.labels, message)
        self.span = span = telemetry.start_span(self.labels, parent, attributes, links)
        telemetry.write(
            message.headers, origin.outgoing(span) if origin else set_span_in_context(span, current)
        )
        telemetry.enrich(span, message, "publish_hook")

    def close(self, destination: Destination | None = None) -> None:
        """Ends the span, as of when the message was made. ``destination`` is where it goes, as is known by now.

        Raises nothing of ours; twice is once. A message that never goes out needs no ``close``: its span is dropped.
        So it is where the destination is one of ``Settings(exclude=...)``; the message has its context already.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if destination is not None:
                if self.telemetry.excludes(destination):
                    return
                self._name_after(destination)
            self.span.end(self._made_at)
        except Exception as error:
            self._fault("ending", error)

    def _name_after(self, destination: Destination) -> None:
        labels = destination.labels(self.labels.kind, self.labels.name, None, self.telemetry.templates)
        try:
            self.span.update_name(labels.span_name)
            self.span.set_attributes(labels.attributes)
        except Exception as error:
            self._fault("telling a destination to", error)

    def _fault(self, doing: str, error: Exception) -> None:
        guard.fault(f"{doing} a span", error, about=self.labels.span_name)


_MISSING, _MALFORMED, _UNTRUSTED = "missing", "malformed", "untrusted"


class Process(Operation):
    """The handling of one delivery; see ``Engine.process``.

    Attributes:
        expects_context: whether a context is missing where there is none. Its publisher may have wanted none.
        elsewhere: the span that another process has begun of this very handling, and ends where none is recorded here:
            what is handled here is its child then.
        is_reserve: whether another process most probably makes the span, so that nobody's hook is told of this one
            before ``confirm``.
    """

    expects_context = True
    elsewhere: SpanContext | None = None
    is_reserve = False

    _missing: str | None = None
    _waited: float | None = None
    _is_of_batch = False
    _creation: SpanContext = INVALID_SPAN_CONTEXT
    _incoming: Context | None = None

    def __init__(
        self,
        telemetry: Telemetry,
        labels: Labels,
        message: Message,
        started_at: int | None = None,
        is_counted: bool = True,
    ) -> None:
        self.telemetry = telemetry
        self.labels = labels
        self.message = message
        self._started_at = started_at
        self._is_counted = is_counted

    def _open(self, current: Context) -> None:
        telemetry, message = self.telemetry, self.message
        found = propagation.read(message.headers, telemetry.baggage_allow)
        incoming = found.context
        unused: str | None = found.reason if self.expects_context else None
        if not telemetry.trusts_all and not telemetry.trusts(self.labels.destination, message):
            incoming = Context()
            unused = unused or (_UNTRUSTED if found.reason is None else None)
        parent = incoming if telemetry.continues else telemetry.ambient_parent(current, incoming)
        if message.sent_at is not None:
            self._waited = _waited(message, self._started_at)
        self._creation, self._incoming = found.span_context, incoming
        if found.reason is None:
            creation = found.span_context
            # The parent is nearly always what was found.
            links = [Link(creation, _CHILD_OF) if parent is found.context else _link(creation, parent)]
        else:
            links = []
            if self.expects_context:
                self._missing = found.reason
        if current:
            self._is_of_batch = _is_in_batch(current, self.labels.destination)
            _link_ambient(links, current, parent)
        attributes = _attributes(self.labels, message, self._waited)
        if unused is not None:
            attributes = {**attributes, semconv.CONTEXT_REASON: unused}
        span = self._start(parent, attributes, links)
        if self.elsewhere is not None and isinstance(span, NonRecordingSpan):
            self.span = span = NonRecordingSpan(self.elsewhere)
        message.process_context = self.attach(_inside(current, incoming, span), current)
        if (telemetry.enriches_processes or message.describe is not None) and not self.is_reserve:
            telemetry.enrich(span, message, "consume_hook")

    def confirm(self) -> None:
        """Of a reserve: this is the span."""
        self.telemetry.enrich(self.span, self.message, "consume_hook")

    def _release(self) -> None:
        self._context = self._previous = self._failure = None
        self.message = _NO_MESSAGE  # it knows the context, too

    @property
    def is_to_join(self) -> bool:
        """Whether another handling of the delivery belongs inside this one's context, also when this is over."""
        return self.has_begun and self._incoming is not None

    def note(self, error: BaseException) -> None:
        """Tells it what the handling raised. A loop is not told what its body raised; what knows may tell its span."""
        if not self.closed:
            self._failure = error

    def inside(self, current: Context) -> dict[str, object] | None:
        """What is current where the same delivery is handled once more, or elsewhere; None where nothing was traced."""
        if self._incoming is None:
            return None
        span = self.span
        if not span_context_of(span).is_valid:
            span = get_current_span(self._incoming)
        elif self.closed:
            span = NonRecordingSpan(span_context_of(span))
        return _inside(current, self._incoming, span)

    def carries(self, found: propagation.Extraction) -> bool:
        """Whether this is the context that came with the message: headers that are handed on, and nobody's own."""
        if self._creation.is_valid or found.reason is None:
            return _is_same(self._creation, found.span_context)
        incoming = self._incoming or Context()
        return incoming.get(BAGGAGE_KEY) == found.context.get(BAGGAGE_KEY)

    def _carry(self, current: Context) -> None:
        telemetry, message = self.telemetry, self.message
        trusted = telemetry.trusts_all or telemetry.trusts(self.labels.destination, message)
        found = propagation.read(message.headers, telemetry.baggage_allow)
        self._creation = found.span_context
        self._incoming = incoming = found.context if trusted else Context()
        self.attach(_inside(current, incoming, get_current_span(incoming)), current)

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        instruments.process_duration.record(seconds, attributes, self._context)
        if self._is_of_batch:
            return  # which has counted it
        if self._is_counted:
            instruments.consumed.add(1, attributes)
        self._count_missing(instruments, self._missing)
        if self._waited is not None:
            instruments.queue_time.record(self._waited, instruments.attributes_of(self.labels), self._context)


class HandledAgain(CarriedContext):
    """Another handling of a delivery that has its span: by a layer above or below, by a worker that a loop has handed
    it to, or once more. It is inside the delivery's context, and makes no second span.
    """

    def __init__(self, process: Process) -> None:
        self.within = self._process = process

    def open(self) -> Span:
        """Makes the delivery's context current, where it is not. Raises nothing of ours."""
        process = self._process
        try:
            current = get_current()
            if current_scope(current) is not process or process.closed:
                values = process.inside(current)
                if values is not None and not is_suppressed(current):
                    self.attach(values, current)
            return get_current_span()
        except BaseException as error:
            self.detach()  # a time limit may be raised here, and nobody closes what did not open
            if not isinstance(error, Exception):
                raise
            guard.fault("entering the context of a message again", error)
            return INVALID_SPAN

    def close(self, error: BaseException | None = None) -> None:
        """Restores what was current before. ``error`` is told to the delivery's span, if that is open still."""
        self.detach()
        self._context = self._previous = None
        if error is not None:
            self._process.note(error)

    __enter__ = open

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close(error)
        return False


class ProcessBatch(Operation):
    """The handling of several deliveries at once: one span, a link for each message.

    Where all of them come from one trace the span is in it; where their traces differ it is a root of its own. What
    is handled one by one inside it has process spans of its own, and is not counted a second time.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        labels: Labels,
        messages: Sequence[Message],
        started_at: int | None = None,
        is_counted: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(telemetry, labels)
        self.messages = messages
        self._started_at = started_at
        self._counted = len(messages) if is_counted is None else sum(is_counted)
        self._missing: list[str | None] = []

    def _open(self, current: Context) -> None:
        if not self.messages:
            self.closed = True
            return
        telemetry = self.telemetry
        found = self._found()
        creations = [one.span_context for one in found]
        trusted = self._are_trusted()
        incoming = _common_context(creations) if trusted else Context()
        parent = incoming if telemetry.continues else telemetry.ambient_parent(current, incoming)
        attributes = {**self.labels.attributes, semconv.BATCH_MESSAGE_COUNT: len(self.messages)}
        reasons = {one.reason for one in found}
        if None not in reasons:  # of one message that has a context the span is no orphan
            attributes[semconv.CONTEXT_REASON] = _MALFORMED if _MALFORMED in reasons else _MISSING
        elif not trusted:
            attributes[semconv.CONTEXT_REASON] = _UNTRUSTED
        links = _links_to(self.messages, creations, parent)
        _link_ambient(links, current, parent)
        span = self._start(parent, attributes, links)
        inside = self.attach(_inside(current, Context(), span), current)
        for message in self.messages:
            message.process_context = inside
        self._missing = [one.reason for one in found]
        if telemetry.settings.consume_hook is not None and records(span):
            for message in self.messages:
                telemetry.run_hook("consume_hook", span, message)

    def _release(self) -> None:
        super()._release()
        self.messages = ()

    def _carry(self, current: Context) -> None:
        creations = [one.span_context for one in self._found()]
        incoming = _common_context(creations) if self._are_trusted() else Context()
        self.attach(_inside(current, incoming, get_current_span(incoming)), current)

    def _found(self) -> list[propagation.Extraction]:
        return [propagation.read(message.headers, self.telemetry.baggage_allow) for message in self.messages]

    def _are_trusted(self) -> bool:
        telemetry, destination = self.telemetry, self.labels.destination
        return telemetry.trusts_all or all(
            telemetry.trusts(destination, message) for message in self.messages
        )

    def _measure(self, instruments: Instruments, seconds: float, attributes: Attributes) -> None:
        instruments.process_duration.record(seconds, attributes, self._context)
        if self._counted:
            instruments.consumed.add(self._counted, attributes)
        for reason in self._missing:
            self._count_missing(instruments, reason)
        for message in self.messages:
            waited = _waited(message, self._started_at)
            if waited is not None:
                instruments.queue_time.record(waited, instruments.attributes_of(self.labels), self._context)


class Receive(Operation):
    """A pull call; see ``Engine.receive``. ``add`` what it returned; without messages there is no span.

    Nothing of it is current while the call runs: a span that waits for a message would be the parent of the wait.
    """

    _ends_plainly = False

    def __init__(
        self,
        telemetry: Telemetry,
        labels: Labels,
        batch: bool = False,
        started_at: int | None = None,
        has_span: bool = True,
        counts: bool = False,
    ) -> None:
        super().__init__(telemetry, labels)
        self._started_at = started_at
        self._batch = batch
        self._has_span = has_span
        self._counts = counts
        self._messages: list[Message] = []

    def add(self, message: Message) -> None:
        """A message that the call returned. Its span will link to the message's creation context."""
        self._messages.append(message)

    def _open(self, current: Context) -> None:
        if self._started_at is None:
            self._started_at = time.time_ns()  # the span is made at the end, with the true start

    def _end(self, error: BaseException | None) -> None:
        if self._counts and self._messages:
            instruments = self.telemetry.instruments()
            if instruments.enabled:
                instruments.consumed.add(len(self._messages), instruments.attributes_of(self.labels))
        failed = error is not None and _is_failure(error) and not _is_empty_poll(error)
        if not self._has_span or not (self._messages or failed):
            return
        current = get_current()
        allow = self.telemetry.baggage_allow
        attributes: Attributes = self.labels.attributes
        if self._batch or len(self._messages) > 1:
            attributes = {**attributes, semconv.BATCH_MESSAGE_COUNT: len(self._messages)}
        elif self._messages:
            attributes = _attributes(self.labels, self._messages[0])
        creations = [propagation.read(message.headers, allow).span_context for message in self._messages]
        self._start(current, attributes, _links_to(self._messages, creations, current))
        super()._end(error if failed else None)


class Settle(Operation):
    """An ack, nack, reject or commit, of one message or of several at once; see ``Engine.settle``."""

    def __init__(self, telemetry: Telemetry, labels: Labels, messages: Sequence[Message]) -> None:
        super().__init__(telemetry, labels)
        self.messages = messages

    def _open(self, current: Context) -> None:
        if not self.messages:
            self.closed = True
            return
        *others, message = self.messages
        parent = self._parent(message, current)
        if others:
            attributes: Attributes = {
                **self.labels.attributes,
                semconv.BATCH_MESSAGE_COUNT: len(self.messages),
            }
        else:
            attributes = _attributes(self.labels, message)
        creations = [propagation.read(other.headers).span_context for other in others]
        span = self._start(parent, attributes, _links_to(others, creations, parent))
        self.attach({**current, SPAN_KEY: span}, current)

    def _parent(self, message: Message, current: Context) -> Context:
        """The message's process span, from any thread; else its creation context; else what is current."""
        if message.process_context is not None:
            return message.process_context
        scope = current_scope(current)
        if not self.telemetry.continues or (isinstance(scope, (Process, ProcessBatch)) and not scope.closed):
            return current
        found = propagation.read(message.headers, self.telemetry.baggage_allow)
        if found.reason is None and self.telemetry.trusts(self.labels.destination, message):
            return found.context
        return current


# Contexts


class _Origin:
    """Where a publish comes from whose headers carry a context already: an outbox's, a dead letter's, a relay's.

    Attributes:
        parent: the parent of its span.
        links: to the carried context, where that is not the parent.
    """

    def __init__(self, parent: Context, links: list[Link], baggage: Mapping[str, object] | None) -> None:
        self.parent = parent
        self.links = links
        self._baggage = baggage

    def outgoing(self, span: Span | None = None) -> Context:
        """What is written into the headers."""
        values: dict[str, object] = {**self.parent}
        if span is not None:
            values[SPAN_KEY] = span
        if self._baggage:
            values[BAGGAGE_KEY] = self._baggage
        return Context(values)


def _origin(telemetry: Telemetry, labels: Labels, message: Message, current: Context) -> _Origin | None:
    """Read from the headers of a publish, as on receiving; None where they carry nothing that the caller wrote.

    With a current span that is the parent, and the carried one is linked; with none the carried one is the parent, if
    it is trusted. Of the caller's own baggage all members go on but those that ours has, too.
    """
    found = propagation.read(message.headers, telemetry.baggage_allow)
    if found.reason is not None and BAGGAGE_KEY not in found.context:
        return None
    scope = current_scope(current)
    if isinstance(scope, Process) and not scope.closed and scope.carries(found):
        return None
    ambient = span_context_of(get_current_span(current))
    trusted = telemetry.trusts_all or telemetry.trusts(labels.destination, message)
    parent, links = current, []
    if trusted and not ambient.is_valid:
        parent = Context({**current, **found.context})
    elif found.reason is None and not _is_same(found.span_context, ambient):
        links.append(Link(found.span_context))
    baggage = {**_baggage_of(found.context), **_baggage_of(current)} if trusted else None
    return _Origin(parent, links, baggage or _baggage_of(current))


def _beginning(telemetry: Telemetry, labels: Labels, message: Message) -> _Origin:
    """Of a publish that begins a trace, whatever is current: linked to what its headers carry, whose baggage goes on if
    it is trusted.
    """
    found = propagation.read(message.headers, telemetry.baggage_allow)
    links = [Link(found.span_context)] if found.reason is None else []
    trusted = telemetry.trusts_all or telemetry.trusts(labels.destination, message)
    return _Origin(Context(), links, _baggage_of(found.context) if trusted else None)


def _baggage_of(context: Context) -> Mapping[str, object]:
    members = context.get(BAGGAGE_KEY)
    return members if isinstance(members, Mapping) else {}


def _inside(current: Context, incoming: Context, span: Span) -> dict[str, object]:
    """What is current in a handler: the message's baggage and span, and not those of the ambient context."""
    values: dict[str, object] = {**current, **incoming, SPAN_KEY: span}
    if BAGGAGE_KEY in current and BAGGAGE_KEY not in incoming:
        del values[BAGGAGE_KEY]
    return values


def _common_context(creations: Sequence[SpanContext]) -> Context:
    """The context that a batch continues: the first message's, where all valid ones are of one trace."""
    valid = [creation for creation in creations if creation.is_valid]
    if len({creation.trace_id for creation in valid}) != 1:
        return Context()
    return set_span_in_context(NonRecordingSpan(valid[0]), Context())


def _link(creation: SpanContext, parent: Context) -> Link:
    """A link to a message's creation context."""
    is_parent = _is_same(creation, span_context_of(parent.get(SPAN_KEY)))
    return Link(creation, _CHILD_OF if is_parent else None)


def _links_to(messages: Sequence[Message], creations: Sequence[SpanContext], parent: Context) -> list[Link]:
    """A link to each message's creation context, with what differs between the messages."""
    of_parent = span_context_of(parent.get(SPAN_KEY))
    return [
        Link(creation, _link_attributes(message, _is_same(creation, of_parent)))
        for message, creation in zip(messages, creations, strict=True)
        if creation.is_valid
    ]


# On a link to the span that is the parent as well. Without it Jaeger takes the two for one reference FOLLOWS_FROM, and
# what looks for CHILD_OF alone (Grafana above it) shows a root.
_CHILD_OF: Attributes = {semconv.OPENTRACING_REF_TYPE: "child_of"}


def _link_ambient(links: list[Link], current: Context, parent: Context) -> None:
    """Links the span that happens to be current (a poller's, a request's) where it is not the parent."""
    ambient = current.get(SPAN_KEY)
    if not isinstance(ambient, Span) or ambient is parent.get(SPAN_KEY) or not records(ambient):
        return  # one that has ended may be a start-up's, which a client's reader task keeps for life
    context = span_context_of(ambient)
    if context.is_valid and not any(_is_same(context, link.context) for link in links):
        links.append(Link(context))


def _is_same(one: SpanContext, other: SpanContext) -> bool:
    return one.span_id == other.span_id and one.trace_id == other.trace_id


def _is_in_batch(current: Context, destination: Destination) -> bool:
    """Whether a delivery of this destination is one of the batch that is being handled: that has counted it."""
    scope = current_scope(current)
    if not isinstance(scope, ProcessBatch) or scope.closed:
        return False
    of_batch = scope.labels.destination  # without a name where it is of several
    return of_batch.system == destination.system and of_batch.name in (None, destination.name)


# Attributes


def _attributes(labels: Labels, message: Message, waited: float | None = None) -> Attributes:
    """The labels' attributes (shared, never written to), and the message's own where it has any."""
    own: dict[str, AttributeValue] = {}
    if message.id is not None:
        own[semconv.MESSAGE_ID] = bounded(message.id)
    if message.conversation_id is not None:
        own[semconv.MESSAGE_CONVERSATION_ID] = bounded(message.conversation_id)
    if message.attempt is not None:
        own[semconv.DELIVERY_ATTEMPT] = message.attempt
    if message.delay is not None:
        own[semconv.DELAY] = message.delay
    if waited is not None:
        own[semconv.QUEUE_TIME] = waited
    if message.attributes is not None:
        return {**labels.attributes, **own, **message.attributes}
    return {**labels.attributes, **own} if own else labels.attributes


def _link_attributes(message: Message, is_to_parent: bool) -> Attributes | None:
    """What differs between the messages of a batch stands on their links."""
    attributes: dict[str, AttributeValue] = dict(message.attributes or {})
    if message.id is not None:
        attributes[semconv.MESSAGE_ID] = bounded(message.id)
    if is_to_parent:
        attributes.update(_CHILD_OF)
    return attributes or None


def _waited(message: Message, started_at: int | None) -> float | None:
    """Seconds in the queue, without the delay that was asked for; not below 0 where two clocks differ."""
    if not isinstance(message.sent_at, (int, float)):
        return None
    now = time.time() if started_at is None else started_at / 1e9
    return max(0.0, now - message.sent_at - (message.delay or 0.0))


# Errors


def _is_failure(error: BaseException) -> bool:
    """Whether the operation failed: closing a generator and leaving the program in order are no failures."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return not isinstance(error, GeneratorExit)


def _is_empty_poll(error: BaseException) -> bool:
    if isinstance(error, _EMPTY_POLL):
        return True
    for module, names in _EMPTY_POLL_OF.items():
        for kind in (getattr(sys.modules.get(module), name, None) for name in names):
            if kind is not None and isinstance(error, kind):
                return True
    return False


def error_type_of(error: BaseException) -> str:
    """The exception's full class name, for ``error.type``, as the SDK writes it on the event."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def error_of(future: Any) -> BaseException | None:
    """How a future that is done has failed (asyncio's or concurrent's); None where it has not."""
    if future.cancelled():
        from asyncio import CancelledError  # whoever has such a future has it

        return CancelledError()
    # exception() would tell asyncio that somebody has seen the error, and silence its "never retrieved".
    error: BaseException | None = future._exception if hasattr(future, "_exception") else future.exception()
    return error


def _tell(span: Span, error: BaseException, error_type: str) -> None:
    """Writes a failure on a span."""
    text = _text_of(error)
    span.set_attribute(semconv.ERROR_TYPE, error_type)
    span.set_status(StatusCode.ERROR, text)
    try:
        span.record_exception(error)
    except Exception as fault:
        if guard.is_not_ours(fault):
            raise
        # Its own __str__ raises, which the SDK does not expect and the traceback module does.
        stacktrace = "".join(traceback.format_exception(error))
        span.add_event("exception", {**_exception(error_type, text), "exception.stacktrace": stacktrace})


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as fault:
        if guard.is_not_ours(fault):
            raise
        return "<its __str__ raises>"


def _exception(error_type: str, text: str) -> dict[str, AttributeValue]:
    return {"exception.type": error_type, "exception.message": text, "exception.escaped": "False"}

"""One job being performed, also in a work horse: whose span it is to end, and with what."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from opentelemetry.trace import NonRecordingSpan, Span, SpanContext

from queueprop import guard
from queueprop.adapters.rq import collector
from queueprop.adapters.rq.collector import hand_over
from queueprop.adapters.rq.lines import ROOM, Line, Told
from queueprop.adapters.rq.messages import (
    FUNCTION,
    META_KEY,
    SYSTEM,
    attempt_of,
    destination_of,
    function_of,
    seconds_of,
)
from queueprop.engine import relay
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import error_type_of
from queueprop.engine.relay import Relay
from queueprop.kit.jobs import Performance as _Performance
from queueprop.kit.jobs import performance_at_hand, with_carrier


class Performance(_Performance):
    """One job being performed once."""

    line: Line | None = None
    """In a work horse: to its parent."""
    in_horse = False
    """Whether the process is one, which RQ ends in ``os._exit``."""
    parent_measures = False
    """Whether the parent of the horse records what that measures."""

    _begun = False
    _relay: Relay | None = None
    _parent = 0

    def __init__(
        self, engine: Engine, job: Any, queue_name: str, connection: Any, started_at: int | None = None
    ) -> None:
        self.engine = engine
        self.job = job
        self._pid = os.getpid()
        meta = job.meta if isinstance(job.meta, dict) else {}
        self.carrier = meta.get(META_KEY, _NOTHING)
        message = Message(
            headers=None if self.carrier is _NOTHING else self.carrier,
            id=job.id,
            sent_at=seconds_of(job.enqueued_at),
            attempt=attempt_of(job, self.carrier),
            native=job,
        )
        super().__init__(
            engine.process(destination_of(queue_name, connection), message, started_at=started_at)
        )

    def begin(self) -> None:
        """Opens the span; in a work horse, the one that its parent began."""
        self._pid = os.getpid()
        if self._begun:
            self.process.reattach()
        else:
            self._begun = True
            self.process.open()

    def begin_for_another_process(self) -> None:
        self.begin()
        self.process.detach()

    def begin_in_horse(self) -> None:
        """Nothing is measured before it that is not the parent's."""
        self.in_horse = True
        self._parent = self._pid
        if self.line is not None and self.line is parent_line:
            self.process.elsewhere = parent_span
        if self.parent_measures:
            self._relay = Relay(self.engine.instruments())

    def leave_measured(self) -> None:
        """To the parent, once the line tells it how the job has ended. Where it is gone the horse records it itself."""
        kept, self._relay = self._relay, None
        if kept is None or self.line is None:
            return
        try:
            self.line.put_measured(kept.end(ROOM if os.getppid() == self._parent else 0))
        except Exception as fault:
            guard.fault("handing the metrics of a job to its worker", fault)

    def record_measured(self) -> None:
        """In the parent: what the horse has left."""
        if not self.parent_measures or self.line is None:
            return
        try:
            relay.record(self.engine.instruments(), self.line.measured(), self.process.settle_context)
        except Exception as fault:
            guard.fault("recording the metrics of a work horse", fault)

    def leave(self, failure: BaseException | None) -> None:
        if os.getpid() != self._pid:
            leave_to_parent(self, self.in_horse)
        elif self.in_horse:
            end_in_horse(self, failure)
        else:
            self.end(failure)

    def kept_meta(self, even_in_empty: bool) -> Any | None:
        """A ``meta`` with the context that the job came with, where the handler has replaced it; else None."""
        meta = self.job.meta
        if self.carrier is _NOTHING or not isinstance(meta, dict):
            return None
        try:
            if not (even_in_empty or meta) or meta.get(META_KEY, _NOTHING) == self.carrier:
                return None
            return with_carrier(meta, META_KEY, self.carrier)
        except Exception as error:
            guard.fault("keeping the context of a job", error)
            return None

    def conclude(self, error: BaseException | None) -> None:
        if self.process.span.is_recording():
            self.process.span.set_attributes(function_of(self.job))
        super().conclude(error)

    def take_over(self, told: Told) -> None:
        """What a work horse knew of it that leaves the span to its parent."""
        if told.function:
            self.process.span.set_attribute(FUNCTION, told.function)
        if told.error_type:
            self.process.fail(told.error_type, told.error_text)


_NOTHING = object()


def performance_of(job: Any) -> Performance | None:
    performance: Performance | None = performance_at_hand(SYSTEM)
    if performance is None or performance.job.id != getattr(job, "id", None):
        return None
    return performance


def note_failure(job: Any, error: BaseException | None) -> None:
    performance = performance_of(job)
    if performance is not None:
        performance.note(error)


def end_in_horse(performance: Performance, failure: BaseException | None) -> None:
    """Before ``os._exit``: ends the span, hands over what this process has, and tells the parent."""
    line, timeout = performance.line, performance.engine.settings.flush_timeout
    error = failure if performance.error is None else performance.error
    patience = collector.circuit.patience(timeout)
    if line is None or patience:
        performance.end(failure)
        performance.leave_measured()
        _tell(line, performance, error, True, hand_over(timeout, patience))
    else:
        # It would get no further than this process. The parent has it as well, and can keep it.
        performance.process.detach()
        performance.leave_measured()
        _tell(line, performance, error, False, None)


def leave_to_parent(performance: Performance, in_horse: bool) -> None:
    """In a child that the job has forked and that came out of it: the job, and its span, are its parent's."""
    performance.process.detach()
    if in_horse:  # RQ ends this one in os._exit as well
        timeout = performance.engine.settings.flush_timeout
        hand_over(timeout, collector.circuit.patience(timeout))


def _tell(
    line: Line | None,
    performance: Performance,
    error: BaseException | None,
    ended: bool,
    answered: bool | None,
) -> None:
    if line is None:
        return
    try:
        if ended and line is parent_line:
            ended = _is_recorded(performance.process.span)
        line.tell(
            Told(
                ended,
                answered,
                function=str(function_of(performance.job).get(FUNCTION, "")),
                error_type="" if error is None else error_type_of(error),
                error_text="" if error is None else _text_of(error),
            )
        )
    except Exception as fault:
        guard.fault("telling a worker how its job has ended", fault)


parent_line: Line | None = None
"""In a spawned horse: to its parent."""

parent_span: SpanContext | None = None
"""In a spawned horse: what its parent has begun, and ends where this program has no SDK when the job begins."""


def _is_recorded(span: Span) -> bool:
    """Whether this process has the span exported; the parent of a program without an SDK makes it itself."""
    return span.get_span_context().is_valid and not isinstance(span, NonRecordingSpan)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as fault:
        if guard.is_not_ours(fault):
            raise
        return "<its __str__ raises>"


@contextlib.contextmanager
def context_kept(job: Any, even_in_empty: bool = False) -> Iterator[None]:
    """While RQ stores the job: the context that it came with, if the handler has replaced its ``meta``.

    RQ does not store an empty ``meta``, save when it is told to (``save_meta``).
    """
    performance = performance_of(job)
    kept = None if performance is None else performance.kept_meta(even_in_empty)
    if kept is None:
        yield
        return
    replaced = job.meta
    job.meta = kept
    try:
        yield
    finally:
        job.meta = replaced

"""One task being executed, in whatever pool; and what a worker's main process reports of one that was lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.exceptions import Ignore, Reject, Retry

from queueprop import guard
from queueprop.adapters.celery.ledger import ledger
from queueprop.adapters.celery.messages import SYSTEM, consumed_from, headers_in, message_of
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.kit.jobs import Performance as _Performance
from queueprop.kit.nesting import is_carried, work_at_hand
from queueprop.process.flush import flush
from queueprop.wire import propagation

try:
    from billiard.common import terminate_handler_fired
except ImportError:  # before billiard 4.3
    from billiard import common

    def terminate_handler_fired() -> bool:
        return bool(common._should_have_exited[0])


UNLOCK_CHORD = "celery.chord_unlock"
"""Where the result backend has no chords of its own, a task that comes again until the parts of one are done."""

TIME_LIMIT_EXCEEDED = "billiard.exceptions.TimeLimitExceeded"
TERMINATED = "billiard.exceptions.Terminated"
"""``error.type`` of a task whose process was stopped, as Celery itself reports it."""


class Known:
    """A task that is being executed or reported, as its publishes find it: a retry of it keeps its context."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.task_id = request.get("id")
        self.headers = headers_in(request)
        self.retries = request.get("retries") or 0


class Execution(_Performance):
    """One task being executed once.

    Args:
        task: the registered one; None where there is none.
        request: as ``messages`` has it.
        started_at: nanoseconds since the epoch, for one that is told of afterwards.
        reason: why it is not executed.
        error: what it has failed with already.
        given: what whoever executes it was given for a request; see ``is_executed``.
    """

    def __init__(
        self,
        engine: Engine,
        app: Any,
        task: Any,
        request: Mapping[str, Any],
        *,
        given: object = None,
        started_at: int | None = None,
        reason: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.known = Known(request)
        self.given = given
        self.task = task
        self._engine = engine
        self._is_dropped = False
        self._began = time.monotonic()
        self._pid = os.getpid()
        name = request.get("task") if task is None else task.name
        is_eager = bool(request.get("is_eager"))
        headers = eager_headers(engine, request) if is_eager else self.known.headers
        message = message_of(request, task, name, headers, reason)
        super().__init__(engine.process(consumed_from(app, request), message, started_at=started_at), error)
        self.process.expects_context = not is_eager

    def note_outcome(self, answer: Any) -> None:
        """What the tracer of a task returned, which keeps the task's exception to itself."""
        try:
            info, result = answer.info, answer.retval
            if info is not None:
                self._note(info.state, info.retval)
            elif isinstance(result, ExceptionInfo):  # Celery's own code failed before the task was known
                self.note(result.exception)
        except Exception as error:
            guard.fault("reading how a task has ended", error)

    def _note(self, state: str, value: Any) -> None:
        if state == states.RETRY:
            self._is_dropped = getattr(self.task, "name", None) == UNLOCK_CHORD
        self.note(failure_in(value, self.task))

    def leave(self, failure: BaseException | None) -> None:
        if os.getpid() != self._pid:
            self.process.detach()  # a child that the task has forked; the task, and its span, are its parent's
        elif failure is None or isinstance(failure, Exception):
            self.end(None if failure is None else failure_in(failure, self.task))
            if failure is not None:
                self._tell()
        else:
            self._end_with_process(failure)

    def end(self, failure: BaseException | None = None) -> None:
        if self._is_dropped:
            self.process.drop()
        else:
            super().end(failure)

    def _end_with_process(self, failure: BaseException) -> None:
        """The child of the pool is on its way out, perhaps with a tenth of a second left before it is killed."""
        if isinstance(failure, SystemExit) and terminate_handler_fired():
            self.process.fail(*self._cause())
            self.process.close()
        else:
            self.end(failure)
        if is_child_of_billiard():
            flush(self._engine.settings.flush_timeout)
        self._tell()

    def _cause(self) -> tuple[str, str]:
        limits = self.known.request.get("timelimit") or (None, None)
        limit = (limits[0] if isinstance(limits, (list, tuple)) and limits else None) or self.task.time_limit
        if isinstance(limit, (int, float)) and time.monotonic() - self._began >= limit:
            return TIME_LIMIT_EXCEEDED, f"TimeLimitExceeded({limit},)"
        return TERMINATED, "The worker's process was told to stop."

    def _tell(self) -> None:
        if self.known.request.get("is_eager"):
            return  # no main process waits for it; and it may have the id of the task that executes it
        try:
            ledger.note(self.known.task_id)
        except Exception as error:
            guard.fault("telling how a task has ended", error)


class Report:
    """What a worker's main process does for a task whose span its child has ended: in that message's trace."""

    def __init__(self, engine: Engine, app: Any, request: Mapping[str, Any]) -> None:
        self.known = Known(request)
        self.given = None
        self._scope = engine.context_of(consumed_from(app, request), Message(headers=self.known.headers))

    def begin(self) -> None:
        if self._scope is not None:
            self._scope.open()

    def leave(self, failure: BaseException | None) -> None:
        if self._scope is not None:
            self._scope.close()


def failure_in(raised: Any, task: Any) -> BaseException | None:
    """What of a task's exception is a failure: of a retry its cause; a task may also be told to be ignored."""
    if isinstance(raised, Retry):
        return raised.exc if isinstance(raised.exc, BaseException) else raised
    if isinstance(raised, Reject):
        if raised.requeue:
            return None
        return raised.reason if isinstance(raised.reason, BaseException) else raised
    expected = getattr(task, "throws", ()) or ()
    if isinstance(raised, Ignore) or (expected and isinstance(raised, expected)):
        return None
    return raised if isinstance(raised, BaseException) else None


def eager_headers(engine: Engine, request: Mapping[str, Any]) -> object:
    """Of a task that is executed where it is called: there was no message, and what is current is its origin."""
    given = request.get("headers")
    if isinstance(given, Mapping) and (
        is_carried(given) or (request.get("retries") and propagation.read(given).reason is None)
    ):
        return given
    return engine.carrier()


def is_at_work() -> bool:
    """Whether the code at hand executes or reports a task already."""
    return work_at_hand("perform", SYSTEM) is not None


def is_executed(request: Any, given: object) -> bool:
    """Whether this very execution has its span already: by another hook around its tracer, or around its function.

    What replaces a task that is executed at once is executed inside it, under its id. It is told apart by the object
    that is ``given`` for its request: to two hooks around a tracer the same dict, to two around a function the same
    Context of Celery's. (To one around each it is none. But where one such tracer is traced, all are.)
    """
    outer = work_at_hand("perform", SYSTEM)
    if outer is None:
        return False
    known = outer.known.request
    if any(known.get(name) != request.get(name) for name in ("id", "retries", "is_eager")):
        return False
    return not request.get("is_eager") or outer.given is given or type(outer.given) is not type(given)


def noted(execution: Execution, tracer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the tracer of a task, and looks at its answer."""
    answer = tracer(*args, **kwargs)
    execution.note_outcome(answer)
    return answer


def is_child_of_billiard() -> bool:
    """Whether this process is one of a pool's, or of an embedded beat: billiard ends them in ``os._exit``."""
    module: Any = sys.modules.get("billiard.process")
    current = None if module is None else module.current_process()
    return getattr(current, "_parent_pid", None) is not None


def exception_in(info: Any) -> Any:
    """The exception in what a pool hands over, whatever is wrapped around it."""
    error = getattr(info, "exception", info)
    return getattr(error, "exc", error) if type(error).__name__ == "ExceptionWithTraceback" else error

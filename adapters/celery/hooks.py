"""What is done around Celery's own functions, each as ``hook(bound method, its object, args, kwargs)``."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import NotRegistered

from queueprop import guard
from queueprop.adapters.celery.ledger import ledger
from queueprop.adapters.celery.messages import SYSTEM, consumed_from, headers_in, message_of
from queueprop.adapters.celery.performing import (
    Execution,
    Report,
    exception_in,
    is_at_work,
    is_child_of_billiard,
    is_executed,
    noted,
)
from queueprop.adapters.celery.publishing import (
    FIRING,
    Attempt,
    Eager,
    EagerPublication,
    TaskPublication,
    is_sent_by,
    kept_on,
    registered,
)
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.hooks import Hooks as LibraryHooks
from queueprop.kit.jobs import perform
from queueprop.kit.library import Library, Publication, Source
from queueprop.kit.nesting import Mark, speaking_for, work_at_hand, works_at_hand
from queueprop.process.flush import flush

UNKNOWN_MESSAGE = "unknown_message"
"""``error.type`` of a message that is no task."""


class Hooks:
    """Those of one engine. ``is_active`` is asked at each task: the instrumentor answers."""

    def __init__(self, engine: Engine, is_active: Callable[[], bool] = lambda: True) -> None:
        self.engine = engine
        self.is_active = is_active
        self._publishing = LibraryHooks(_CELERY, engine, is_active)

    # The producer's side

    def send_task(self, wrapped: Wrapped, app: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the call that all others end in. Its message is looked at further below."""
        at_hand = works_at_hand(SYSTEM)
        outer = at_hand.get("publish")
        if isinstance(outer, Attempt) and outer.is_same(app):
            return wrapped(*args, **kwargs)  # the explicit API above the instrumentor, or a subclass
        attempt = Attempt(self, app, at_hand)
        try:
            hook_sender(app)
        except Exception as error:
            guard.fault("putting a hook around the sending of tasks", error)
        with Mark("publish", SYSTEM, about=attempt, work=attempt):
            try:
                return wrapped(*args, **kwargs)
            except Exception as error:
                attempt.fail(self.engine, calls.given(0, "name", args, kwargs), args, kwargs, error)
                raise

    def send_task_message(self, wrapped: Wrapped, attempt: Attempt, args: Arguments, kwargs: Options) -> Any:
        """Around the sending of one message, in the end through kombu."""
        with speaking_for((calls.given(0, "producer", args, kwargs),)):
            if attempt.execution is not None:
                kept = self._kept_on(attempt.execution.known, args, kwargs)
                if kept is not None:
                    return wrapped(*kept[0], **kept[1])
            return self._publishing.publish(wrapped, attempt, args, kwargs)

    def _kept_on(self, known: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options] | None:
        try:
            return kept_on(known, args, kwargs)
        except Exception as error:
            guard.fault("reading the retry of a task", error)
            return None

    def apply(self, wrapped: Wrapped, task: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a task's ``apply``: under ``task_always_eager``, ``apply_async`` publishes by it."""
        if not is_sent_by(sys._getframe(1)):
            return wrapped(*args, **kwargs)
        return self._publishing.publish(wrapped, Eager(task, works_at_hand(SYSTEM)), args, kwargs)

    def fire(self, wrapped: Wrapped, scheduler: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the sending of what is due: each time a trace of its own."""
        with Mark("watch", SYSTEM, work=FIRING):
            return wrapped(*args, **kwargs)

    def run_beat(self, wrapped: Wrapped, service: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the life of a scheduler, which a worker may have in a child that ends in ``os._exit``."""
        try:
            return wrapped(*args, **kwargs)
        finally:
            if is_child_of_billiard():
                flush(self.engine.settings.flush_timeout)

    # The worker's side, where a task is executed

    def build_tracer(self, wrapped: Wrapped, _: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of the function that executes a task."""
        tracer = wrapped(*args, **kwargs)
        return self.traced(tracer, calls.given(1, "task", args, kwargs), calls.given(8, "app", args, kwargs))

    def traced(self, tracer: Any, task: Any, app: Any) -> Any:
        """The tracer of a task inside the span of each execution."""

        def trace_task(*args: Any, **kwargs: Any) -> Any:
            return self.trace(tracer, task, app, args, kwargs)

        trace_task.__wrapped__ = tracer  # type: ignore[attr-defined]
        setattr(trace_task, TRACED, self)
        return trace_task

    def trace(self, tracer: Any, task: Any, app: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one task."""
        execution = self._execution(task, app, args, kwargs)
        if execution is None:
            return tracer(*args, **kwargs)
        return perform(SYSTEM, execution, functools.partial(noted, execution, tracer), args, kwargs)

    def _execution(self, task: Any, app: Any, args: Arguments, kwargs: Options) -> Execution | None:
        if not self.is_active():
            return None
        try:
            request = calls.given(3, "request", args, kwargs) or {}
            if is_executed(request, request):
                return None
            known = {"args": args[1], "kwargs": args[2]} if len(args) > 2 else {}
            return Execution(self.engine, app or task.app, task, {**known, **request}, given=request)
        except Exception as error:
            guard.fault("preparing the execution of a task", error)
            return None

    def flush(self, **_: Any) -> None:
        """When a child of the pool ends, which it does in ``os._exit``."""
        if is_child_of_billiard():
            flush(self.engine.settings.flush_timeout)

    # The worker's main process, which reports what its children did not

    def on_failure(self, wrapped: Wrapped, request: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what it does about a task that failed. ``return_ok`` says that the child has told it by itself."""
        if calls.given(2, "return_ok", args, kwargs):
            return wrapped(*args, **kwargs)
        error = exception_in(calls.given(0, "exc_info", args, kwargs))
        if isinstance(error, TimeLimitExceeded):  # its child is not dead yet
            return self._report(wrapped, request, args, kwargs)
        return self._lose(wrapped, request, error, args, kwargs)

    def on_timeout(self, wrapped: Wrapped, request: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what it does about a task that is over a limit; then it kills the child."""
        if calls.given(0, "soft", args, kwargs):
            return wrapped(*args, **kwargs)
        doomed = work_at_hand("watch", SYSTEM)
        if isinstance(doomed, list):
            doomed.append((request, calls.given(1, "timeout", args, kwargs)))
        return self._report(wrapped, request, args, kwargs)

    def on_hard_timeout(self, wrapped: Wrapped, handler: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all of that, the kill included."""
        doomed: list[tuple[Any, Any]] = []
        try:
            with Mark("watch", SYSTEM, work=doomed):
                return wrapped(*args, **kwargs)
        finally:
            for request, timeout in doomed:
                self._lose(_nothing, request, TimeLimitExceeded(timeout), (), {})

    def announce_revoked(self, wrapped: Wrapped, request: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the end of a task that is not executed, since it was revoked or has expired."""
        if calls.given(1, "terminated", args, kwargs) or is_at_work():
            return wrapped(*args, **kwargs)
        reason = str(calls.given(0, "reason", args, kwargs))
        execution = self._of_parent(request, reason=reason)
        return perform(SYSTEM, execution, wrapped, args, kwargs)

    def _lose(self, wrapped: Wrapped, request: Any, error: Any, args: Arguments, kwargs: Options) -> Any:
        if self._is_told(request):
            return self._report(wrapped, request, args, kwargs)
        began = request.time_start
        execution = self._of_parent(
            request,
            started_at=int(began * 1e9) if isinstance(began, float) else time.time_ns(),
            error=error if isinstance(error, BaseException) else None,
        )
        return perform(SYSTEM, execution, wrapped, args, kwargs)

    def _is_told(self, request: Any) -> bool:
        """Whether its child has handed over the span of its execution."""
        try:
            return ledger.take(request.id)
        except Exception as error:
            guard.fault("reading how a task has ended", error)
            return False

    def _of_parent(self, request: Any, **known: Any) -> Execution | None:
        try:
            return Execution(self.engine, request.app, request.task, request.request_dict, **known)
        except Exception as error:
            guard.fault("reading a task that is not executed", error)
            return None

    def _report(self, wrapped: Wrapped, request: Any, args: Arguments, kwargs: Options) -> Any:
        report: Any = None
        try:
            report = Report(self.engine, request.app, request.request_dict)
        except Exception as error:
            guard.fault("reading the context of a task that was lost", error)
        return perform(SYSTEM, report, wrapped, args, kwargs)

    # Messages that never become a task, or a task that is never executed

    def mark_as_failure(self, wrapped: Wrapped, backend: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the storing of a failure: that of a task whose time cannot be told (an ``eta`` beyond all calendars)
        is the one thing that its worker does about it, where it takes the message.
        """
        if is_at_work() or not is_taking(sys._getframe(1)):
            return wrapped(*args, **kwargs)
        execution = None
        try:
            known = vars(calls.given(3, "request", args, kwargs))
            task = registered(backend.app, known.get("task"))
            error = calls.given(1, "exc", args, kwargs)
            execution = Execution(self.engine, backend.app, task, known, error=error)
        except Exception as fault:
            guard.fault("reading a task that cannot be executed", fault)
        return perform(SYSTEM, execution, wrapped, args, kwargs)

    def on_unknown_task(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        message = calls.given(1, "message", args, kwargs)
        name = _request_in(message).get("task")
        return self._refuse(wrapped, consumer, message, NotRegistered(name), args, kwargs)

    def on_invalid_task(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        message, error = calls.given(1, "message", args, kwargs), calls.given(2, "exc", args, kwargs)
        return self._refuse(wrapped, consumer, message, error, args, kwargs)

    def on_decode_error(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        message, error = calls.given(0, "message", args, kwargs), calls.given(1, "exc", args, kwargs)
        return self._refuse(wrapped, consumer, message, error, args, kwargs)

    def on_unknown_message(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        return self._refuse(wrapped, consumer, calls.given(1, "message", args, kwargs), None, args, kwargs)

    def _refuse(
        self, wrapped: Wrapped, consumer: Any, message: Any, error: Any, args: Arguments, kwargs: Options
    ) -> Any:
        execution = None
        try:
            request = _request_in(message)
            task = registered(consumer.app, request.get("task"))
            execution = Execution(self.engine, consumer.app, task, request, error=error)
        except Exception as fault:
            guard.fault("reading a message that is no task", fault)
        if execution is None:
            return wrapped(*args, **kwargs)

        def refuse(*args: Any, **kwargs: Any) -> Any:
            if error is None:
                execution.process.fail(UNKNOWN_MESSAGE, "The message is no task of Celery's.")
            return wrapped(*args, **kwargs)

        return perform(SYSTEM, execution, refuse, args, kwargs)

    # Which of them belong where

    def of_request(self) -> Iterable[tuple[str, Hook]]:
        return (
            ("on_failure", self.on_failure),
            ("on_timeout", self.on_timeout),
            ("_announce_revoked", self.announce_revoked),
        )

    def of_consumer(self) -> Iterable[tuple[str, Hook]]:
        return (
            ("on_unknown_task", self.on_unknown_task),
            ("on_invalid_task", self.on_invalid_task),
            ("on_decode_error", self.on_decode_error),
            ("on_unknown_message", self.on_unknown_message),
        )


def hook_sender(app: Any) -> None:
    """Around the function of an application that sends a message, which it makes once, and keeps."""
    amqp = vars(app).get("amqp")  # both are kept so, and to ask for them by name takes several calls
    if amqp is not None and hasattr(vars(amqp).get("send_task_message"), TRACED):
        return
    amqp = app.amqp
    sender = amqp.send_task_message
    if hasattr(sender, TRACED):  # a double of somebody's tests has every attribute, and is left as it is
        return

    def send_task_message(*args: Any, **kwargs: Any) -> Any:
        attempt = work_at_hand("publish", SYSTEM)
        if not isinstance(attempt, Attempt):
            return sender(*args, **kwargs)  # untraced; or the same message, by a hook below another one
        attempt.has_message = True
        return attempt.hooks.send_task_message(sender, attempt, args, kwargs)

    send_task_message.__wrapped__ = sender  # type: ignore[attr-defined]
    setattr(send_task_message, TRACED, True)
    amqp.send_task_message = send_task_message


TRACED = "_queueprop_traced"


def is_taking(frame: types.FrameType | None) -> bool:
    """Whether this is a call of the function by which a worker takes a message of a task."""
    frame = calls.caller(frame)
    return frame is not None and calls.module_of(frame) == "celery.worker.strategy"


def _nothing() -> None: ...


def _request_in(message: Any) -> Mapping[str, Any]:
    """What a message says, where nothing has decoded it yet."""
    headers, info = getattr(message, "headers", None), getattr(message, "delivery_info", None)
    found: dict[str, Any] = {}
    if isinstance(headers, Mapping) and "task" in headers:
        found.update(headers)
    else:
        with contextlib.suppress(Exception):  # it may be no message that can be decoded
            payload = message.payload
            if isinstance(payload, Mapping):
                found.update(payload)
        found["headers"] = headers
    found["delivery_info"] = info
    return found


class _Celery(Library):
    name = SYSTEM
    message_form = "task of Celery's"
    message_type = dict

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        if isinstance(producer, Eager):
            return EagerPublication(producer, args, kwargs)
        return TaskPublication(producer, args, kwargs)

    def leaves_alone(self, via: Any) -> bool:
        return False  # no layer is above; and what is spoken for is kombu's, by this one

    def message(self, native: Any) -> Message:
        return message_of(native, None, native.get("task"), headers_in(native), None)

    def consumed_from(self, native: Any, source: Source | None) -> Destination:
        return consumed_from(None if source is None else source.via, native)


_CELERY = _Celery()

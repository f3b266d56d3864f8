"""Celery's one road to its broker, read: ``Celery.send_task``, and below it ``send_task_message``."""

from __future__ import annotations

import time
import types
from collections.abc import Mapping
from typing import Any

from queueprop import guard
from queueprop.adapters.celery.messages import (
    SENT_AT,
    TaskMessage,
    attributes_of,
    delay_of,
    outgoing,
    sent_to,
)
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Send
from queueprop.kit import calls, rabbitmq
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.kombu import broker_of, client_of, fitted_to_frame
from queueprop.kit.kombu_batches import defer
from queueprop.kit.library import Publication
from queueprop.wire import propagation
from queueprop.wire.headers import is_altered


class TaskPublication(Publication):
    """One call of ``send_task_message``, on behalf of an attempt."""

    def __init__(self, attempt: Attempt, args: Arguments, kwargs: Options) -> None:
        given = {**dict(zip(_SENDER, args, strict=False)), **kwargs} if args else kwargs
        if len(args) > _HEADERS:
            given["headers"] = args[_HEADERS]
        app, name, message, headers = attempt.app, given.get("name"), given["message"], given.get("headers")
        self._given = headers = _headers_of(headers) if headers else {}
        self._headers: dict[Any, Any] = {} if headers is None else dict(headers)
        self._of_celery: Mapping[Any, Any] = message[0]
        self._producer = producer = given.get("producer")
        self._client = client = client_of(producer)
        self._is_firing = attempt.is_firing
        task, task_args, task_kwargs = outgoing(message)
        task_id, eta = calls.text(task.get("id")), task.get("eta")
        known = Message(
            headers=None if headers is None else self._headers,
            id=task_id,
            conversation_id=calls.text(task.get("root_id")),
            delay=None if eta is None else delay_of(eta),
            native=TaskMessage(calls.text(name), task_id, task_args, task_kwargs, headers or {}),
            attributes=attributes_of(registered(app, name), name),
        )
        broker = None if client is None else broker_of(client)
        self._has_frames = broker is not None and broker[0] == rabbitmq.SYSTEM
        super().__init__(sent_to(app, given, None if broker is None else broker[1:]), known, about=message)

    def begin(self, engine: Engine) -> Send:
        send = super().begin(engine)
        if self._is_firing:  # else an attribute more at each message
            send.begins_trace = True
        return send

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        headers = self._headers
        if not is_altered(headers, self._given or {}):
            return args, kwargs
        headers[SENT_AT] = repr(time.time())
        if self._has_frames:
            where = "publishing with Celery"
            headers = fitted_to_frame(
                headers, self._given, self._client, where, self.destination, self._of_celery
            )
        return calls.replaced(_HEADERS, "headers", headers, args, kwargs)

    def end(self, result: Any) -> None:
        if not defer(self._producer, self.send):
            self.send.close()


def _headers_of(given: Any) -> dict[Any, Any] | None:
    """A copy of the caller's headers; None of what Celery is about to refuse."""
    try:
        return dict(given)
    except (TypeError, ValueError):
        return None


_SENDER = ("producer", "name", "message", "exchange", "routing_key", "queue")
_HEADERS = 13
"""The place of ``headers`` among the arguments of ``send_task_message``, from Celery 5.3 to 5.7. (Celery's own calls
give it by name.)
"""

FIRING = object()
"""What a scheduler is doing while it sends what is due."""


def is_fired(at_hand: Mapping[Any, Any]) -> bool:
    """Whether what is sent now is what a scheduler fires, which begins a trace.

    It is not what others send meanwhile, inside that: a receiver of ``before_task_publish``, a task that is executed at
    once.
    """
    innermost = next(iter(at_hand.values()), None)
    if isinstance(innermost, Attempt):  # through another application, or once more
        return innermost.is_firing and not innermost.has_message
    return innermost is FIRING


class Eager:
    """A task that is executed where it is published (``task_always_eager``)."""

    def __init__(self, task: Any, at_hand: Mapping[Any, Any]) -> None:
        self.task = task
        self.is_firing = is_fired(at_hand)


class EagerPublication(Publication):
    """The ``apply`` of a task that stands for sending it."""

    def __init__(self, eager: Eager, args: Arguments, kwargs: Options) -> None:
        task, self._is_firing = eager.task, eager.is_firing
        given = calls.given(_EAGER_HEADERS, "headers", args, kwargs)
        self._headers = dict(given) if isinstance(given, Mapping) else {}
        task_id = calls.text(calls.given(4, "task_id", args, kwargs))
        arguments = (calls.given(0, "args", args, kwargs), calls.given(1, "kwargs", args, kwargs))
        known = Message(
            headers=self._headers,
            id=task_id,
            native=TaskMessage(task.name, task_id, *arguments, given or {}),
            attributes=attributes_of(task, task.name),
        )
        super().__init__(sent_to(task.app, kwargs), known, about=kwargs)

    def begin(self, engine: Engine) -> Send:
        send = super().begin(engine)
        send.begins_trace = self._is_firing
        return send

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        if not self._headers:
            return args, kwargs
        return calls.replaced(_EAGER_HEADERS, "headers", self._headers, args, kwargs)


_EAGER_HEADERS = 9
"""The place of ``headers`` among the arguments of ``apply``. (Celery's own calls give it by name.)"""


def is_sent_by(frame: types.FrameType | None) -> bool:
    """Whether this is the call of a task's ``apply`` that ``apply_async`` makes under ``task_always_eager``.

    Asked of the frame, since ``apply_async`` is what everybody calls, and to look into the configuration there takes
    longer than all else that is done about a publish.
    """
    frame = calls.caller(frame)
    while frame is not None and frame.f_code.co_name == "apply" and calls.module_of(frame) != _TASK:
        frame = frame.f_back  # a task's class may have an `apply` of its own above Celery's
    return frame is not None and frame.f_code.co_name == "apply_async" and calls.module_of(frame) == _TASK


_TASK = "celery.app.task"


def kept_on(known: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options] | None:
    """The arguments of a retry, which is no publish: with the context that its task came with. None for a publish.

    ``known`` is the task at hand: it is being executed, or a worker's main process reports its loss.
    """
    task, *_ = outgoing(calls.given(2, "message", args, kwargs))
    if not _is_retry(known, task.get("id"), task.get("retries")):
        return None
    found = propagation.read(known.headers)
    if found.reason is not None:
        return None
    headers = dict(calls.given(_HEADERS, "headers", args, kwargs) or {})
    propagation.write(headers, found.context)
    headers[SENT_AT] = repr(time.time())
    return calls.replaced(_HEADERS, "headers", headers, args, kwargs)


def _is_retry(known: Any, task_id: Any, retries: Any) -> bool:
    return (
        isinstance(task_id, str)
        and task_id == known.task_id
        and isinstance(retries, int)
        and isinstance(known.retries, int)
        and retries > known.retries
    )


class Attempt:
    """A call of ``send_task``, which may fail before there is a message: a result backend, a route, a connection.

    Its messages are mostly one. A function of ``task_routes`` may send others first, and so may a subclass, whose
    ``super().send_task`` no hook is around where one application alone is traced.

    Attributes:
        app: the application that sends.
        execution: the task at hand that sends; None outside of any.
        is_firing: whether it sends what a scheduler fires.
        has_message: whether a message has been made.
    """

    def __init__(self, hooks: Any, app: Any, at_hand: Mapping[Any, Any]) -> None:
        self.hooks = hooks
        self.app = app
        self.execution = at_hand.get("perform")
        self.is_firing = is_fired(at_hand)
        self.has_message = False
        self._began = time.time_ns()

    def is_same(self, app: Any) -> bool:
        """Whether what is sent through this application now is what this call sends."""
        return app is self.app and not self.has_message

    def fail(self, engine: Engine, name: Any, args: Arguments, kwargs: Options, error: Exception) -> None:
        if self.has_message:
            return
        try:
            execution = self.execution
            task_id, retries = (
                calls.given(5, "task_id", args, kwargs),
                calls.given(17, "retries", args, kwargs),
            )
            if execution is not None and _is_retry(execution.known, task_id, retries):
                return
            send = engine.send(*_unsent(self.app, name, args, kwargs), started_at=self._began)
            with send:
                raise error
        except Exception as raised:
            if raised is not error:
                guard.fault("telling of a task that could not be sent", raised)


def _unsent(app: Any, name: Any, args: Arguments, kwargs: Options) -> tuple[Destination, Message]:
    """``args`` and ``kwargs`` are of ``send_task``, whose places are the same from Celery 5.3 to 5.7."""
    task_id = calls.text(calls.given(5, "task_id", args, kwargs))
    native = TaskMessage(
        calls.text(name),
        task_id,
        calls.given(1, "args", args, kwargs),
        calls.given(2, "kwargs", args, kwargs),
        kwargs.get("headers") or {},
    )
    message = Message(
        id=task_id,
        conversation_id=calls.text(calls.given(22, "root_id", args, kwargs)),
        native=native,
        attributes=attributes_of(registered(app, name), name),
    )
    return sent_to(app, kwargs), message


def registered(app: Any, name: Any) -> Any:
    """The task of this name, without making an application register what it has not yet."""
    tasks = getattr(app, "_tasks", None)
    try:
        return tasks.get(name) if tasks is not None else None
    except Exception as error:  # a registry of somebody's own
        if guard.is_not_ours(error):
            raise
        return None

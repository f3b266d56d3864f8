"""Publishes: the hooks around a queue's methods, and the calls of the explicit API, which have them on a copy."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

from rq import Queue
from rq.decorators import job as job_decorator

from queueprop import guard
from queueprop.adapters.rq import companions
from queueprop.adapters.rq.companions import Firing, Schedulers, firing_of
from queueprop.adapters.rq.messages import (
    BESIDE,
    META_KEY,
    SYSTEM,
    Published,
    delay_until,
    destination_of,
    function_in,
    function_of,
    put_context,
    put_contexts,
    with_id,
)
from queueprop.adapters.rq.spawning import rebuilt
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import Send
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.jobs import carrier_for
from queueprop.kit.nesting import Mark, is_inside

try:
    from rq.group import Group  # from RQ 2 on
except ModuleNotFoundError:
    Group = None  # type: ignore[assignment, misc]

P = ParamSpec("P")
R = TypeVar("R")


class PublishHooks:
    """What is done around a queue's methods, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def publish(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``enqueue_job`` and ``schedule_job``: every publish of one job passes there with the job just made.

        RQ's own retries and repeats pass ``schedule_job`` too, but with a job that was enqueued before.
        """
        job = calls.given(0, "job", args, kwargs)
        # The explicit API above the instrumentor publishes the very same job: that is one publish. A function that
        # runs inside (is_async=False) publishes other jobs.
        if is_inside("publish", SYSTEM, job):
            return wrapped(*args, **kwargs)
        try:
            firing = firing_of(job)
            send = self._send(queue, job, firing, args, kwargs)
        except Exception as error:
            guard.fault("preparing the publish of a job", error)
            return wrapped(*args, **kwargs)
        with Mark("publish", SYSTEM, job), send or contextlib.nullcontext():
            if send is not None:
                headers = cast("dict[str, str]", send.messages[0].headers)
                put_context(job, headers if firing is None else firing.written(headers))
            return wrapped(*args, **kwargs)

    def _send(
        self, queue: Any, job: Any, firing: Firing | None, args: Arguments, kwargs: Options
    ) -> Send | None:
        if firing is not None:
            if not firing.is_publish:
                return None
        elif job.enqueued_at is not None or job.started_at is not None:
            return None
        message = Message(
            headers=carrier_for(job.meta, META_KEY, apart_from=BESIDE) if firing is None else firing.headers,
            # RQ makes an id up when it is first asked for, and refuses `unique` without one of the caller's.
            id=job._id if calls.given(3, "unique", args, kwargs) else job.id,
            delay=delay_until(calls.given(1, "datetime", args, kwargs)),
            native=job,
            attributes=function_of(job),
        )
        send = self.engine.send(destination_of(queue.name, queue.connection), message)
        if firing is not None and firing.begins_trace:
            send.begins_trace = True
        return send

    def publish_many(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``enqueue_many``, which a group calls as well."""
        given = calls.given(0, "job_datas", args, kwargs)
        if not isinstance(given, Iterable) or isinstance(given, Published):
            return wrapped(*args, **kwargs)
        datas = Published(given)
        args, kwargs = ((datas, *args[1:]), kwargs) if args else (args, {**kwargs, "job_datas": datas})
        try:
            datas[:] = [with_id(data, queue) for data in datas]
            messages = [
                Message(
                    headers=carrier_for(data.meta, META_KEY, apart_from=BESIDE),
                    id=data.job_id,
                    native=data,
                    attributes=function_in(data),
                )
                for data in datas
            ]
            send = self.engine.send(destination_of(queue.name, queue.connection), messages)
        except Exception as error:
            guard.fault("preparing the publish of several jobs", error)
            return wrapped(*args, **kwargs)
        with send:
            put_contexts(datas, messages)
            return wrapped(*args, **kwargs)


# The explicit API


def traced(publish: Callable[P, R], engine: Engine) -> Callable[P, R]:
    """A call that enqueues, traced; as it is where it is traced already. Raises TypeError for any other."""
    if hasattr(publish, _TRACED):
        return publish
    call = functools.wraps(publish)(_traced(publish, PublishHooks(engine)))
    setattr(call, _TRACED, True)
    return call


_TRACED = "_queueprop_traced"


def _traced(publish: Any, hooks: PublishHooks) -> Callable[..., Any]:
    if isinstance(publish, functools.partial):
        return functools.partial(_traced(publish.func, hooks), *publish.args, **publish.keywords)
    owner = getattr(publish, "__self__", None)
    if isinstance(owner, Queue) and not _is_another_method_of_rq(publish):
        return lambda *args, **kwargs: getattr(_traced_queue(owner, hooks), publish.__name__)(*args, **kwargs)
    if Group is not None and isinstance(owner, Group) and not _is_another_method_of_rq(publish):
        # Its own parameter has the same name, and may be given by it.
        return lambda queue, *args, **kwargs: publish(_traced_queue(queue, hooks), *args, **kwargs)
    if companions.is_scheduler(owner) and companions.publishes(publish):
        return lambda *args, **kwargs: getattr(_traced_scheduler(owner, hooks), publish.__name__)(
            *args, **kwargs
        )
    if _job_decorator_of(publish) is not None:
        return lambda *args, **kwargs: _with_traced_queue(publish, hooks)(*args, **kwargs)
    form = "a method of a queue that enqueues, or a job function's delay, as in traced_publish(queue.enqueue)"
    raise checks.refused("traced_publish", form, publish)


def _is_another_method_of_rq(method: Any) -> bool:
    """Whether it is one that publishes nothing. A subclass may have further ones that do."""
    return checks.library_of(method) == "rq" and method.__name__ not in _PUBLISHES


_PUBLISHES = (
    "enqueue",
    "enqueue_at",
    "enqueue_call",
    "enqueue_in",
    "enqueue_job",
    "enqueue_many",
    "schedule_job",
)


def _traced_queue(queue: Any, hooks: PublishHooks) -> Any:
    """The same queue, whose publishes are traced. A copy: the user's object stays as it is."""
    traced = copy.copy(queue)
    publish = [(name, hooks.publish) for name in ("enqueue_job", "schedule_job")]
    calls.hook_methods(traced, [*publish, ("enqueue_many", hooks.publish_many)])
    companions.stay_in_context(traced, traced)
    return traced


def _traced_scheduler(scheduler: Any, hooks: PublishHooks) -> Any:
    """The same for a scheduler of rq-scheduler's, and the queues that it puts jobs into."""

    def of_queue(wrapped: Wrapped, _: Any, args: Arguments, kwargs: Options) -> Any:
        return _traced_queue(wrapped(*args, **kwargs), hooks)

    return Schedulers(hooks.engine).traced(scheduler, of_queue)


def _job_decorator_of(function: Any) -> Any:
    """RQ's ``@job``, of which ``delay`` is a closure."""
    if not isinstance(function, types.FunctionType) or "self" not in function.__code__.co_freevars:
        return None
    found = inspect.getclosurevars(function).nonlocals["self"]
    return found if isinstance(found, job_decorator) else None


def _with_traced_queue(delay: types.FunctionType, hooks: PublishHooks) -> types.FunctionType:
    """``delay`` passes the function's arguments and nothing of ours, so it is given another queue instead."""
    decorator = copy.copy(_job_decorator_of(delay))
    queue = decorator.queue
    if isinstance(queue, str):
        queue = decorator.queue_class(name=queue, connection=decorator.connection)
    decorator.queue = _traced_queue(queue, hooks)
    cells = {**inspect.getclosurevars(delay).nonlocals, "self": decorator}
    closure = tuple(types.CellType(cells[name]) for name in delay.__code__.co_freevars)
    return rebuilt(delay, delay.__globals__, closure)

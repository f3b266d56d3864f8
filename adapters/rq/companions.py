"""What others have built upon RQ: rq-scheduler and django-rq.

rq-scheduler stores a job without a queue, and a process of its own puts it into one when it is due; a job that repeats
is the same one each time. So the publish is where the schedule is made: the PRODUCER span is there, and the first job
is its child. Each later one begins a trace, which is linked to the making of the schedule.

django-rq may leave a publish to the end of a transaction or a request, when the caller's span is over. It is a child of
that span all the same.
"""

from __future__ import annotations

import calendar
import copy
import datetime
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

from opentelemetry.util.types import AttributeValue
from rq import Queue

from queueprop import guard
from queueprop.adapters.rq.messages import BESIDE, META_KEY, destination_of, function_in
from queueprop.engine import semconv
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message, bounded
from queueprop.engine.operations import Send
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.handlers import carried
from queueprop.kit.jobs import SCHEDULE, carrier_for, carrier_in, made_by, with_carrier
from queueprop.kit.nesting import Mark, is_inside, work_at_hand

# rq-scheduler

SCHEDULER_MODULE = "rq_scheduler.scheduler"

SCHEDULES = ("enqueue_at", "enqueue_in", "schedule", "cron")
"""Its calls that make a schedule."""

_FIRES = ("enqueue_job", "enqueue_jobs", "run")
"""Those that put into queues what is due."""

_SYSTEM = "rq-scheduler"


def is_scheduler(owner: Any) -> bool:
    module = sys.modules.get(SCHEDULER_MODULE)
    return module is not None and isinstance(owner, module.Scheduler)


def publishes(method: Any) -> bool:
    """Whether this method of a scheduler's is one that publishes. A subclass may have further ones."""
    module = str(getattr(method, "__module__", "")).partition(".")[0]
    return module != "rq_scheduler" or method.__name__ in (*SCHEDULES, *_FIRES)


class Schedulers:
    """The hooks around rq-scheduler's methods."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def traced(self, scheduler: Any, of_queue: Hook) -> Any:
        """The same scheduler, whose publishes are traced; ``of_queue`` is around its making of a queue. A copy."""
        traced = copy.copy(scheduler)
        calls.hook_methods(traced, [*self.hooks(), ("get_queue_for_job", of_queue)])
        return traced

    def hooks(self) -> Iterator[tuple[str, Hook]]:
        for name in SCHEDULES:
            yield name, self.schedule
        yield "_create_job", self.create_job
        yield "enqueue_job", self.enqueue_job

    def schedule(self, wrapped: Wrapped, scheduler: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of a schedule, in which ``_create_job`` is called: there its job is known."""
        if work_at_hand("publish", _SYSTEM) is not None:
            return wrapped(*args, **kwargs)  # by the explicit API above the instrumentor
        scheduling = _Scheduling(_delay_in(args, kwargs))
        failure: BaseException | None = None
        with Mark("publish", _SYSTEM, work=scheduling):
            try:
                job = wrapped(*args, **kwargs)
                scheduling.job = job
                return job
            except BaseException as error:
                failure = error
                raise
            finally:
                scheduling.close(failure)

    def create_job(self, wrapped: Wrapped, scheduler: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of its job, which is stored there or later."""
        scheduling: _Scheduling | None = work_at_hand("publish", _SYSTEM)
        if scheduling is None or scheduling.send is not None:
            return wrapped(*args, **kwargs)
        try:
            args, kwargs = scheduling.open(self.engine, scheduler, args, kwargs)
        except Exception as error:
            guard.fault("preparing the publish of a scheduled job", error)
        return wrapped(*args, **kwargs)

    def enqueue_job(self, wrapped: Wrapped, scheduler: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the putting of a job into its queue, once it is due."""
        with Mark("publish", _SYSTEM, calls.given(0, "job", args, kwargs)):
            return wrapped(*args, **kwargs)


class _Scheduling:
    """The making of one schedule."""

    send: Send | None = None
    job: Any = None

    def __init__(self, delay: float | None) -> None:
        self._delay = delay

    def open(
        self, engine: Engine, scheduler: Any, args: Arguments, kwargs: Options
    ) -> tuple[Arguments, Options]:
        """Begins the publish. Returns the call's arguments, with the context in a copy of ``meta``."""
        meta = calls.given(_META, "meta", args, kwargs)
        data = Queue.prepare_data(
            calls.given(0, "func", args, kwargs),
            calls.given(1, "args", args, kwargs),
            calls.given(2, "kwargs", args, kwargs),
            job_id=calls.given(6, "id", args, kwargs),
            meta=meta,
        )
        message = Message(
            headers=carrier_for(meta, META_KEY, apart_from=BESIDE),
            id=calls.text(data.job_id),
            delay=self._delay,
            native=data,
            attributes=function_in(data),
        )
        name = calls.given(8, "queue_name", args, kwargs) or scheduler.queue_name
        self.send = send = engine.send(destination_of(name, scheduler.connection), message)
        send.open()
        written = with_carrier({} if meta is None else meta, META_KEY, message.headers)
        return calls.replaced(_META, "meta", written, args, kwargs)

    def close(self, error: BaseException | None) -> None:
        if self.send is None:
            return
        if error is None:
            self.send.close_with(self.job, _id_of)
        else:
            self.send.close(error)


_META = 10
"""The place of ``meta`` among the arguments of ``_create_job``. (rq-scheduler's own calls give it by name.)"""


def _id_of(job: Any) -> dict[str, AttributeValue]:
    return {semconv.MESSAGE_ID: bounded(job.id)}


def _delay_in(args: Arguments, kwargs: Options) -> float | None:
    """Seconds until the job is due. Times without a zone are in UTC for rq-scheduler."""
    try:
        when = args[0] if args else kwargs.get("scheduled_time", kwargs.get("time_delta"))
        if isinstance(when, datetime.timedelta):
            return max(0.0, when.total_seconds())
        if isinstance(when, datetime.datetime):
            return max(0.0, calendar.timegm(when.utctimetuple()) - time.time())
    except Exception as error:
        guard.fault("reading when a scheduled job is due", error)
    return None


class Firing:
    """A job that is due, and is put into its queue.

    Attributes:
        is_publish: whether it is a publish of its own: not the first time, which belongs to the schedule's making.
        begins_trace: whether it begins a trace.
        headers: ours to write to.
    """

    def __init__(self, job: Any) -> None:
        meta = job.meta if isinstance(job.meta, dict) else {}
        is_first = job.enqueued_at is None and job.started_at is None
        self.begins_trace = not is_first and ("interval" in meta or "cron_string" in meta)
        self.is_publish = self.begins_trace or (is_first and not carrier_in(meta, META_KEY))
        self.headers = carrier_for(meta, META_KEY, apart_from=BESIDE)
        self._made = made_by(self.headers, carrier_in(meta, META_KEY)) if self.begins_trace else None

    def written(self, headers: dict[str, Any]) -> dict[str, Any]:
        """What the job carries, now that the context is in the headers."""
        return headers if self._made is None else {**headers, SCHEDULE: self._made}


def firing_of(job: Any) -> Firing | None:
    """None for a job that anybody else puts into its queue."""
    return Firing(job) if is_inside("publish", _SYSTEM, job) else None


# django-rq

DJANGO_MODULE = "django_rq.queues"


def postpone(wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
    """Around a publish that django-rq may leave to the end of the transaction or of the request."""
    if type(wrapped) is not types.MethodType:
        return wrapped(*args, **kwargs)
    postponing = queue
    try:
        postponing = copy.copy(queue)
        stay_in_context(postponing, queue)
    except Exception as error:
        guard.fault("keeping the context of a publish that may be postponed", error)
    return wrapped.__func__(postponing, *args, **kwargs)


def stay_in_context(copied: Any, queue: Any) -> None:
    """What a copy of django-rq's queue publishes later belongs to what is current now. Of other queues nothing is done.

    Both of its ways to postpone end in a call of this method.
    """
    publish = getattr(queue, _PUBLISH, None)
    if publish is not None:
        setattr(copied, _PUBLISH, carried(publish))


_PUBLISH = "original_enqueue_call"

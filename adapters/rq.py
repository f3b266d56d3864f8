"""RQ: jobs in their callers' traces. RQ 1.16 to 3.0, every worker class.

The context of a publish travels in ``job.meta["queueprop"]``, a mapping of text, put there before the job is stored.
The CONSUMER span is open for as long as a worker performs the job: the function, RQ's callbacks, and what RQ then
does about retries and dependents are inside.

What RQ does with a job of its own accord (retry, repeat, schedule, dependents, ``requeue``) is no publish: the job
keeps the context of its first one, and has a CONSUMER span there each time that it is performed.

Three things shape this file:

- A time limit of RQ is an ``Exception`` that a signal raises anywhere in the timed region. Spans start and end
  outside of it (``perform_job``, not ``Job.perform``).
- A work horse ends in ``os._exit``: it hands over its spans first, for a bounded time, and not at all where that was
  in vain a moment ago. It may also be killed. The parent starts the span before the fork, so both have it, and whoever
  is left ends it.
- The ``meta`` of a stored job is the user's: only what RQ itself is about to store is given the context again.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import errno
import functools
import importlib
import inspect
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import tempfile
import time
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import fields
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, TypeVar, cast, overload

import wrapt
from opentelemetry.context import Context, get_current
from opentelemetry.trace import NonRecordingSpan, Span, get_tracer_provider

from queueprop import guard
from queueprop.engine import no_sdk
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Send, error_type_of
from queueprop.engine.scope import CarriedContext
from queueprop.kit import calls, checks, redis
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.handlers import run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rival, Rivals, missing_extra
from queueprop.kit.jobs import Performance, carrier_for, perform, performance_at_hand, with_carrier
from queueprop.kit.nesting import Mark, is_inside
from queueprop.process.flush import flush
from queueprop.settings import Settings
from queueprop.wire import propagation

try:
    from rq import Queue, SimpleWorker, Worker, get_current_job
    from rq.decorators import job as job_decorator
    from rq.exceptions import ShutDownImminentException
    from rq.job import Job
    from rq.timeouts import BaseTimeoutException
except ModuleNotFoundError as error:
    if error.name not in ("rq", "redis"):
        raise
    raise missing_extra(__name__, "RQ", "rq") from None

if TYPE_CHECKING:
    from rq.worker import BaseWorker, SpawnWorker

    _WorkerMethods = BaseWorker
else:
    _WorkerMethods = object
    SpawnWorker = getattr(importlib.import_module("rq.worker"), "SpawnWorker", None)  # from RQ 2.2 on

try:
    from rq.group import Group  # from RQ 2 on
except ModuleNotFoundError:
    Group = None  # type: ignore[assignment, misc]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

META_KEY = "queueprop"
"""Where in ``job.meta`` the context travels."""

SYSTEM = "rq"
"""``messaging.system``: the conventions have no value for RQ, and this is what its users would search for."""

guard.let_through(BaseTimeoutException, ShutDownImminentException)


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a call that enqueues: ``enqueue = traced_publish(queue.enqueue)``.

    Arguments:
        publish: a method of a queue (``enqueue``, ``enqueue_call``, ``enqueue_in``, ``enqueue_at``,
            ``enqueue_many``, ``enqueue_job``, ``schedule_job``), ``delay`` or ``enqueue`` of a function with RQ's
            ``@job``, or a group's ``enqueue_many``; also a ``functools.partial`` of one of them.

    Every job that the call makes gets a PRODUCER span. A job that was enqueued before keeps its own context.
    Raises TypeError for anything else.
    """
    hooks = _Hooks(checks.engine_of(settings, "traced_publish"))
    if hasattr(publish, _TRACED):
        return publish
    call = functools.wraps(publish)(_traced(publish, hooks))
    setattr(call, _TRACED, True)
    return call


@overload
def traced_consumer(function: F) -> F: ...
@overload
def traced_consumer(*, settings: Settings | None = None) -> Callable[[F], F]: ...
def traced_consumer(function: F | None = None, *, settings: Settings | None = None) -> F | Callable[[F], F]:
    """Decorates a job's function, sync or async: ``@traced_consumer`` or ``@traced_consumer(settings=...)``.

    Performed by a worker it runs inside the job's CONSUMER span; called directly it is just the function. This is
    all that a function can do for itself. What happens around it (a function that cannot be imported, callbacks, a
    killed work horse) is seen by a traced worker (``TracedWorker``) or by ``RQInstrumentor``; together they make
    one span.
    """
    hooks = _Hooks(checks.engine_of(settings, "traced_consumer"))
    if function is None:
        return functools.partial(_traced_function, hooks=hooks)
    return _traced_function(function, hooks=hooks)


class TracedWorkerMixin(_WorkerMethods):
    """Makes a worker class of yours a traced one, without patching::

        class MyWorker(TracedWorkerMixin, Worker):
            queueprop_settings = Settings(propagation="link")   # instead of those of the environment

    It must stand before RQ's class.
    """

    queueprop_settings: ClassVar[Settings | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checks.check_settings(f"queueprop_settings of {cls.__name__}", cls.queueprop_settings)
        before = cls.__mro__[: cls.__mro__.index(TracedWorkerMixin)]
        if any(base.__module__.startswith("rq.") for base in before):
            raise TypeError(
                f"TracedWorkerMixin traces nothing behind RQ's class: class {cls.__name__}(TracedWorkerMixin, Worker)"
            )

    def work(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.work(super().work, self, args, kwargs)

    def execute_job(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.execute_job(super().execute_job, self, args, kwargs)

    def fork_work_horse(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.fork_work_horse(super().fork_work_horse, self, args, kwargs)  # type: ignore[misc]

    def wait_for_horse(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.wait_for_horse(super().wait_for_horse, self, args, kwargs)

    def perform_job(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.perform_job(super().perform_job, self, args, kwargs)

    def handle_exception(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.handle_exception(super().handle_exception, self, args, kwargs)

    def handle_job_success(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.store_job(super().handle_job_success, self, args, kwargs)

    def handle_job_failure(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.store_job(super().handle_job_failure, self, args, kwargs)

    def handle_job_retry(self, *args: Any, **kwargs: Any) -> Any:
        return self._hooks.store_job(super().handle_job_retry, self, args, kwargs)

    @property
    def _hooks(self) -> _Hooks:
        engine, _ = checks.at_hand("queueprop_settings", self.queueprop_settings, None)
        return _Hooks(engine, spawned="worker")


class TracedWorker(TracedWorkerMixin, Worker):
    """RQ's Worker, traced: ``rq worker --worker-class queueprop.adapters.rq.TracedWorker``."""


class TracedSimpleWorker(TracedWorkerMixin, SimpleWorker):
    """RQ's SimpleWorker, traced."""


if TYPE_CHECKING or SpawnWorker is not None:

    class TracedSpawnWorker(TracedWorkerMixin, SpawnWorker):
        """RQ's SpawnWorker (from 2.2 on), traced; its work horses are traced as well."""


class RQInstrumentor(Adapter):
    """Traces every queue and worker of RQ.

    ``opentelemetry-instrument rq worker`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_rq``.
    """

    library = "rq"
    requires = ("rq >= 1.16",)
    rivals = Rivals(
        "rq", Rival("opentelemetry_instrumentation_rq:RQInstrumentor", "opentelemetry-instrumentation-rq")
    )

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(self.engine, spawned="all")
        yield Patch(Queue, "enqueue_job", hooks.publish)
        yield Patch(Queue, "schedule_job", hooks.publish)
        yield Patch(Queue, "enqueue_many", hooks.publish_many)
        yield from _worker_patches(hooks)


class _WorkerInstrumentor(Adapter):
    """For a work horse of TracedSpawnWorker, which in RQ 2 is made of RQ's own Worker."""

    library = RQInstrumentor.library
    requires = RQInstrumentor.requires
    rivals = RQInstrumentor.rivals

    def patches(self) -> Iterable[Patch]:
        return _worker_patches(_Hooks(self.engine, spawned="worker"))


def _worker_patches(hooks: _Hooks) -> Iterator[Patch]:
    yield Patch(Queue, "run_sync", hooks.run_sync)
    yield Patch(Queue, "run_job", hooks.run_job)
    yield Patch(Job, "save_meta", hooks.save_meta)
    # Called for a job whose worker is gone; from RQ 3 on it is a function.
    registry = importlib.import_module("rq.registry")
    owner = registry if hasattr(registry, "execute_failure_callback") else Job
    yield Patch(owner, "execute_failure_callback", hooks.execute_failure_callback)
    yield Patch(Worker, "execute_job", hooks.execute_job)
    yield Patch(Worker, "wait_for_horse", hooks.wait_for_horse)
    if SpawnWorker is not None:
        yield Patch(SpawnWorker, "fork_work_horse", hooks.fork_work_horse)
    yield Patch(_definer("work"), "work", hooks.work)
    yield Patch(_definer("perform_job"), "perform_job", hooks.perform_job)
    yield Patch(_definer("handle_exception"), "handle_exception", hooks.handle_exception)
    for name in ("handle_job_success", "handle_job_failure", "handle_job_retry"):
        if hasattr(Worker, name):  # handle_job_retry: from RQ 2.1 on
            yield Patch(_definer(name), name, hooks.store_job)


def _definer(name: str) -> type:
    """The class that a method of all workers lies in: Worker, or the base that it shares with SimpleWorker."""
    return next(owner for owner in Worker.__mro__ if name in vars(owner))


class _Hooks:
    """What is done around RQ's own methods, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine, spawned: str = "none") -> None:
        self.engine = engine
        self.spawned = spawned

    # The producer's side

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
            send = self._send(queue, job, args, kwargs)
        except Exception as error:
            guard.fault("preparing the publish of a job", error)
            return wrapped(*args, **kwargs)
        with Mark("publish", SYSTEM, job), send or contextlib.nullcontext():
            if send is not None:
                _put(job, cast("dict[str, str]", send.messages[0].headers))
            return wrapped(*args, **kwargs)

    def _send(self, queue: Any, job: Any, args: Arguments, kwargs: Options) -> Send | None:
        if job.enqueued_at is not None or job.started_at is not None:
            return None
        message = Message(
            headers=carrier_for(job.meta, META_KEY),
            # RQ makes an id up when it is first asked for, and refuses `unique` without one of the caller's.
            id=job._id if kwargs.get("unique") else job.id,
            delay=_delay_until(calls.given(1, "datetime", args, kwargs)),
            native=job,
            describe=_describe_job,
        )
        return self.engine.send(_destination(queue.name, queue.connection), message)

    def publish_many(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``enqueue_many``, which a group calls as well."""
        given = calls.given(0, "job_datas", args, kwargs)
        if not isinstance(given, Iterable) or isinstance(given, _Published):
            return wrapped(*args, **kwargs)
        datas = _Published(given)
        args, kwargs = ((datas, *args[1:]), kwargs) if args else (args, {**kwargs, "job_datas": datas})
        try:
            datas[:] = [_with_id(data, queue) for data in datas]
            messages = [
                Message(
                    headers=carrier_for(data.meta, META_KEY),
                    id=data.job_id,
                    native=data,
                    describe=_describe_data,
                )
                for data in datas
            ]
            send = self.engine.send(_destination(queue.name, queue.connection), messages)
        except Exception as error:
            guard.fault("preparing the publish of several jobs", error)
            return wrapped(*args, **kwargs)
        with send:
            _put_each(datas, messages)
            return wrapped(*args, **kwargs)

    # The worker's side

    def work(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a worker's whole life. WorkerPool's are children of multiprocessing, which run no exit hooks."""
        try:
            return wrapped(*args, **kwargs)
        finally:
            _kept.release()
            if multiprocessing.parent_process() is not None:
                flush(self.engine.settings.flush_timeout)

    def perform_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one job, outside of its time limits."""
        job, queue = calls.given(0, "job", args, kwargs), calls.given(1, "queue", args, kwargs)
        return self._perform(wrapped, job, queue, args, kwargs, in_horse=worker.is_horse)

    def run_sync(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the same where a queue without workers does it (``is_async=False``)."""
        return self._perform(
            wrapped, calls.given(0, "job", args, kwargs), queue, args, kwargs, in_horse=False
        )

    def _perform(
        self, wrapped: Wrapped, job: Any, queue: Any, args: Arguments, kwargs: Options, *, in_horse: bool
    ) -> Any:
        performance = None if _performance_of(job) else self._performance(job, queue)
        if performance is not None:
            performance.in_horse = in_horse
        return perform(SYSTEM, performance, wrapped, args, kwargs)

    def _performance(self, job: Any, queue: Any) -> _Performance | None:
        horse = _watched.get()
        if horse is not None and horse.job is job and not horse.spawned:
            return horse.performance
        try:
            performance = _Performance(self.engine, job, queue.name, queue.connection)
            performance.line = _parent_line
            return performance
        except Exception as error:
            guard.fault("preparing the processing of a job", error)
            return None

    def run_job(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Within ``run_sync``, which keeps the job's exception to itself."""
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            _note_failure(calls.given(0, "job", args, kwargs), error)
            raise

    def handle_exception(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Within ``perform_job``, which keeps the job's exception to itself."""
        # When the failure callback raised as well, RQ hands in that error. The job's is still being handled.
        _note_failure(
            calls.given(0, "job", args, kwargs),
            sys.exc_info()[1] or calls.given(2, "exc_value", args, kwargs),
        )
        return wrapped(*args, **kwargs)

    def store_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around RQ's storing of a job for its next time: whoever replaced ``meta`` loses no context."""
        with _context_kept(calls.given(0, "job", args, kwargs)):
            return wrapped(*args, **kwargs)

    def save_meta(self, wrapped: Wrapped, job: Any, args: Arguments, kwargs: Options) -> Any:
        """The same for a handler that stores its ``meta`` itself."""
        with _context_kept(job, even_in_empty=True):
            return wrapped(*args, **kwargs)

    def execute_failure_callback(self, wrapped: Wrapped, job: Any, args: Arguments, kwargs: Options) -> Any:
        """Outside of ``perform_job`` it is for an abandoned job, whose worker is gone: it runs in the job's trace.

        There is no span of ours: nobody knows whether that worker has made one.
        """
        job = args[0] if job is None else job
        origin = None if _performance_of(job) else self._origin(job)
        if origin is None:
            return wrapped(*args, **kwargs)
        origin.open()
        try:
            return wrapped(*args, **kwargs)
        finally:
            origin.close()

    def _origin(self, job: Any) -> CarriedContext | None:
        try:
            process = _Performance(self.engine, job, job.origin, job.connection).process
            if not self.engine.trusts(process.labels.destination, process.message):
                return None
            found = propagation.read(process.message.headers, self.engine.baggage_allow)
            return CarriedContext(Context({**get_current(), **found.context}))
        except Exception as error:
            guard.fault("reading the context of an abandoned job", error)
            return None

    # Work horses, from their parent's side

    def execute_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the life of one work horse."""
        outer = _watched.get()
        is_watched = outer is not None and outer.is_child_of_this_process()
        horse = None if is_watched or isinstance(worker, SimpleWorker) else self._horse(worker, args, kwargs)
        if horse is None:
            return wrapped(*args, **kwargs)
        failure: BaseException | None = None
        token = _watched.set(horse)
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            _watched.reset(token)
            horse.finish(failure)

    def _horse(self, worker: Any, args: Arguments, kwargs: Options) -> _Horse | None:
        job, queue = calls.given(0, "job", args, kwargs), calls.given(1, "queue", args, kwargs)
        try:
            return _Horse(self.engine, job, queue, spawned=_spawns(worker))
        except Exception as error:
            guard.fault("preparing the processing of a job in a work horse", error)
            return None

    def wait_for_horse(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """How RQ learns that a horse is dead. What it then does (callbacks, the retry) belongs to the job."""
        result = wrapped(*args, **kwargs)
        horse = _watched.get()
        try:
            if horse is not None:
                horse.exited(result[1], stopped=worker._stopped_job_id == horse.job.id)
        except Exception as error:
            guard.fault("taking over the span of a work horse", error)
        return result

    def fork_work_horse(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """SpawnWorker's horse is a program of its own (``python -c``), which knows nothing of this process.

        RQ offers no place to say what else it should run, so RQ's function is run with an ``os`` that puts lines
        of ours above that program.
        """
        horse, function = _watched.get(), getattr(wrapped, "__func__", None)
        if horse is None or not horse.spawned or not isinstance(function, types.FunctionType):
            return wrapped(*args, **kwargs)
        try:
            # Each horse would say it anew.
            no_sdk.say_if_missing(self.engine.settings.tracer_provider or get_tracer_provider())
            prologue = _prologue(horse.line.lend(), self.spawned, self.engine.settings)
            joining = {**function.__globals__, "os": _JoiningOs(prologue)}
            spawn = _rebuilt(function, joining, function.__closure__)
        except Exception as error:
            guard.fault("telling a work horse how to join its worker", error)
            spawn = function
        try:
            return spawn(worker, *args, **kwargs)
        finally:
            horse.line.take_back()


class _Performance(Performance):
    """One job being performed once."""

    line: _Line | None = None
    """In a work horse: to its parent."""
    in_horse = False
    """Whether the process is one, which RQ ends in ``os._exit``."""

    _begun = False

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
            sent_at=_seconds(job.enqueued_at),
            attempt=_attempt(job, self.carrier),
            native=job,
        )
        super().__init__(engine.process(_destination(queue_name, connection), message, started_at=started_at))

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

    def leave(self, failure: BaseException | None) -> None:
        if os.getpid() != self._pid:
            _leave_to_parent(self, self.in_horse)
        elif self.in_horse:
            _end_in_horse(self, failure)
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
            self.process.span.set_attributes(_describe_job(self.job))
        super().conclude(error)

    def take_over(self, told: _Told) -> None:
        """What a work horse knew of it that leaves the span to its parent."""
        if told.function:
            self.process.span.set_attribute(_FUNCTION, told.function)
        if told.error_type:
            self.process.fail(told.error_type, told.error_text)


_NOTHING = object()


def _performance_of(job: Any) -> _Performance | None:
    performance: _Performance | None = performance_at_hand(SYSTEM)
    if performance is None or performance.job.id != getattr(job, "id", None):
        return None
    return performance


def _note_failure(job: Any, error: BaseException | None) -> None:
    performance = _performance_of(job)
    if performance is not None:
        performance.note(error)


class _Horse:
    """A work horse as its parent sees it: the span that it should end, and the line on which it tells that."""

    def __init__(self, engine: Engine, job: Any, queue: Any, *, spawned: bool) -> None:
        self.job = job
        self.spawned = spawned
        self._pid = os.getpid()
        self._status: int | None = None
        self._stopped = False
        self.performance = _Performance(
            engine, job, queue.name, queue.connection, started_at=time.time_ns() if spawned else None
        )
        self.line = self.performance.line = _Line(_unnamed_file() if spawned else None)
        if not spawned:
            self.performance.begin_for_another_process()

    def exited(self, status: int | None, *, stopped: bool) -> None:
        self._status, self._stopped = status, stopped
        if status != 0 and not self._has_ended(self.line.told()):
            self.performance.begin()

    def is_child_of_this_process(self) -> bool:
        return os.getpid() == self._pid

    def finish(self, failure: BaseException | None) -> None:
        """The worker is done with the horse. Ends the span if the horse did not."""
        if not self.is_child_of_this_process():
            return
        try:
            self._finish(failure if isinstance(failure, Exception) else None)
        except Exception as error:
            self.performance.process.close()
            guard.fault("ending the span of a work horse", error)
        finally:
            self.line.close()

    def _finish(self, failure: Exception | None) -> None:
        performance, told = self.performance, self.line.told()
        if told is not None and self.spawned:
            _circuit.note(told.answered, performance.engine.settings.flush_timeout)
        if self._has_ended(told):
            performance.process.detach()
        else:
            self._end(told, failure)
        if not _circuit.is_open:
            _kept.release()

    def _end(self, told: _Told | None, failure: Exception | None) -> None:
        performance = self.performance
        performance.begin()
        if _circuit.is_open:
            _kept.withhold(performance)
        if told is not None:
            performance.take_over(told)
        elif failure is None and (self._status != 0 or not self.spawned):
            performance.process.fail(*self._cause())
        performance.end(failure)

    @staticmethod
    def _has_ended(told: _Told | None) -> bool:
        return told is not None and told.ended

    def _cause(self) -> tuple[str, str]:
        if self._stopped:
            return JOB_STOPPED, "Job stopped by user, work-horse terminated."
        text = f"Work-horse terminated unexpectedly; waitpid returned {self._status}"
        if self._status and os.WIFSIGNALED(self._status):
            text += f" (signal {os.WTERMSIG(self._status)})"
        return WORK_HORSE_KILLED, text


JOB_STOPPED = "job_stopped"
"""``error.type`` of a job that was stopped by command. RQ has no exception for it."""

WORK_HORSE_KILLED = "work_horse_killed"
"""``error.type`` of a job whose work horse died."""

_watched: ContextVar[_Horse | None] = ContextVar("queueprop-rq-horse", default=None)


# Work horses, from their own side


def _end_in_horse(performance: _Performance, failure: BaseException | None) -> None:
    """Before ``os._exit``: ends the span, hands over what this process has, and tells the parent."""
    line, timeout = performance.line, performance.engine.settings.flush_timeout
    error = failure if performance.error is None else performance.error
    patience = _circuit.patience(timeout)
    if line is None or patience:
        performance.end(failure)
        _tell(line, performance, error, True, _hand_over(timeout, patience))
    else:
        # It would get no further than this process. The parent has it as well, and can keep it.
        performance.process.detach()
        _tell(line, performance, error, False, None)


def _leave_to_parent(performance: _Performance, in_horse: bool) -> None:
    """In a child that the job has forked and that came out of it: the job, and its span, are its parent's."""
    performance.process.detach()
    if in_horse:  # RQ ends this one in os._exit as well
        timeout = performance.engine.settings.flush_timeout
        _hand_over(timeout, _circuit.patience(timeout))


def _hand_over(timeout: float, patience: float, left: float = math.inf) -> bool | None:
    """Waits for the spans of this process to be handed over, and remembers whether that was worth it.

    Args:
        timeout: seconds that it may take.
        patience: of these, what the circuit allows.
        left: seconds until a time limit.

    Returns whether they were; None where nothing is to be learnt of it.
    """
    if not patience:
        return None
    started = time.monotonic()
    answered = flush(min(patience, left))
    if not answered and time.monotonic() - started < min(patience / 2, _NOTICED):
        return None  # a refusal that costs nothing, or too little time to know
    _circuit.note(answered, timeout)
    return answered


_NOTICED = 0.1
"""Seconds of waiting in vain that are worth being remembered."""


class _Circuit:
    """How long a work horse may wait until its spans are handed over.

    Each horse is a process of its own, and would find out anew that the Collector does not answer: that is
    ``flush_timeout`` a job. So what one has waited for in vain the next do not wait for. Now and then one tries: after
    a pause of a hundred times as long as it may wait, which at first is not long. An answer ends it.

    It lies in memory that forked children share, so that horses whose worker is not traced find it as well
    (``traced_consumer`` alone).
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _CIRCUIT.size)

    @property
    def is_open(self) -> bool:
        """Whether nobody has been answered since one has waited in vain."""
        return bool(_CIRCUIT.unpack(self.state)[0] > 0)

    @property
    def state(self) -> bytes:
        """All that it knows; for a process that does not share its memory."""
        return self._memory[:]

    @state.setter
    def state(self, state: bytes) -> None:
        self._memory[:] = state

    def patience(self, timeout: float) -> float:
        """Seconds of ``timeout`` that a horse may wait now; 0 for not at all."""
        wait, open_until = _CIRCUIT.unpack(self.state)
        if not 0 < wait < timeout:
            wait = timeout
        # Whatever stands there, it is no longer than the longest pause.
        return 0.0 if 0 < open_until - time.monotonic() <= _PAUSE * timeout / 2 else wait

    def note(self, answered: bool | None, timeout: float) -> None:
        """What a horse has found out; None for nothing."""
        if answered is None:
            return
        if answered:
            self.state = bytes(_CIRCUIT.size)
            return
        before, _ = _CIRCUIT.unpack(self.state)
        wait = min(2 * before, timeout / 2) if before > 0 else timeout / 16
        self.state = _CIRCUIT.pack(wait, time.monotonic() + _PAUSE * wait)


_CIRCUIT = struct.Struct("=dd")
"""Seconds that the next try may wait, 0 where all is well; and when that may be, by the monotonic clock."""

_PAUSE = 100
"""So many times as long as the try that follows it is a pause: the tries cost a hundredth of a worker's time."""

_circuit = _Circuit()


class _Kept:
    """The spans of jobs that a worker keeps until somebody takes them: the last ones, when it is too long.

    Handed to the SDK they would be lost. Its exporter drops a batch after some seconds of trying, and every work horse
    would empty its copy of the SDK's queue when it is forked, which takes the longer the more there is.
    """

    def __init__(self) -> None:
        self._spans: deque[_Withheld] = deque(maxlen=_MOST_KEPT)

    def withhold(self, performance: _Performance) -> None:
        """Puts off that the end of its span is told to the SDK; the end itself is when it is."""
        process = performance.process
        if not process.span.is_recording():
            return
        guard.mistake(
            "handing over the spans of jobs", _NOBODY_TAKES_THEM % performance.engine.settings.flush_timeout
        )
        withheld: Any = _Withheld(process.span)
        process.span = withheld
        self._spans.append(withheld)

    def release(self) -> None:
        """Tells the SDK of them. Those that a forked child has inherited are its parent's."""
        while self._spans:
            span = self._spans.popleft()
            try:
                span._self_release()
            except Exception as error:
                guard.fault("ending the span of a job", error)


_Proxy: Any = wrapt.ObjectProxy


class _Withheld(_Proxy):  # type: ignore[misc]
    """A span that ends later than it says."""

    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self._self_pid = os.getpid()
        self._self_ended_at: int | None = None

    def end(self, end_time: int | None = None) -> None:
        self._self_ended_at = time.time_ns() if end_time is None else end_time

    def _self_release(self) -> None:
        if self._self_pid == os.getpid():
            self.__wrapped__.end(self._self_ended_at)


_MOST_KEPT = 2048
"""As many as the SDK's queue takes by default."""

_NOBODY_TAKES_THEM = (
    "nobody took them within %g s (is the Collector there?); jobs do not wait for that any more. Until somebody takes "
    f"them, what is recorded inside of jobs is lost, and the jobs' own spans are kept, the last {_MOST_KEPT} of them"
)

_kept = _Kept()


# What a work horse tells its parent


class _Told(NamedTuple):
    ended: bool
    """Whether the span is ended and gone; else it is the parent's to end."""
    answered: bool | None
    """For the circuit of a parent that shares no memory."""
    function: str
    error_type: str
    error_text: str


def _tell(
    line: _Line | None,
    performance: _Performance,
    error: BaseException | None,
    ended: bool,
    answered: bool | None,
) -> None:
    if line is None:
        return
    try:
        if ended and line is _parent_line:
            ended = _is_recorded(performance.process.span)
        line.tell(
            _Told(
                ended,
                answered,
                function=_describe_job(performance.job).get(_FUNCTION, ""),
                error_type="" if error is None else error_type_of(error),
                error_text="" if error is None else _text_of(error),
            )
        )
    except Exception as fault:
        guard.fault("telling a worker how its job has ended", fault)


class _End(NamedTuple):
    """How a spawned horse finds its line: a descriptor, and what tells whether that is still the same file."""

    fd: int
    device: int
    inode: int


class _Line:
    """From a work horse to its parent: memory that both have mapped.

    And no pipe: a job may close what it has inherited and open files of its own, and the pipe's number is one of theirs
    then. A mapping has no number. What stands in it is input, as anything from another process is.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        """``file``: for a horse that is a program of its own; a forked one has its parent's memory."""
        self._file = file
        if file is not None:
            file.truncate(_LINE_SIZE)
        self._memory = mmap.mmap(-1 if file is None else file.fileno(), _LINE_SIZE)

    @classmethod
    def of_parent(cls, end: _End) -> _Line:
        """In a spawned horse, before any job runs. Raises OSError where the descriptor is not the line's any more."""
        found = os.fstat(end.fd)
        if (found.st_dev, found.st_ino) != (end.device, end.inode):
            raise OSError(errno.EBADF, "the descriptor that leads to the worker is another file's")
        with open(end.fd, "r+b", buffering=0) as file:
            line = cls(file)
        line._file = None
        return line

    def lend(self) -> _End:
        """Lets the next program that is spawned have it; ``take_back`` afterwards."""
        assert self._file is not None
        fd = self._file.fileno()
        found = os.fstat(fd)
        os.set_inheritable(fd, True)
        return _End(fd, found.st_dev, found.st_ino)

    def take_back(self) -> None:
        if self._file is not None:
            self._file.close()  # what is mapped stays

    def tell(self, told: _Told) -> None:
        texts = [
            text[:most].encode("utf-8", "replace")[:most]
            for text, most in zip(told[2:], _LONGEST_TEXTS, strict=True)
        ]
        body = _HEAD.pack(told.ended, _ANSWERS.index(told.answered), *map(len, texts)) + b"".join(texts)
        self._memory[1 : 1 + len(body)] = body
        self._memory[0] = 1  # last: a horse that is killed meanwhile has told nothing

    def told(self) -> _Told | None:
        if not self._memory[0]:
            return None
        ended, answer, *lengths = _HEAD.unpack_from(self._memory, 1)
        at, texts = 1 + _HEAD.size, []
        for length, most in zip(lengths, _LONGEST_TEXTS, strict=True):
            texts.append(self._memory[at : at + min(length, most)].decode("utf-8", "ignore"))
            at += length
        return _Told(ended, _ANSWERS[answer] if answer < len(_ANSWERS) else None, *texts)

    def close(self) -> None:
        self.take_back()
        self._memory.close()


_LINE_SIZE = 4096
_HEAD = struct.Struct("=?BHHH")
_LONGEST_TEXTS = (500, 500, 3000)
"""Bytes of the texts, which follow the head. An error's is whatever a user wrote."""

_ANSWERS = (None, False, True)

_parent_line: _Line | None = None
"""In a spawned horse: to its parent."""


def _unnamed_file() -> IO[bytes]:
    """A file that nobody else can find, and no disk need be writable for where the system has such."""
    with contextlib.suppress(AttributeError, OSError):
        return open(os.memfd_create("queueprop"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


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


# A spawned work horse joins


def _spawns(worker: Any) -> bool:
    return SpawnWorker is not None and isinstance(worker, SpawnWorker)


class _JoiningOs:
    """``os`` for SpawnWorker: a Python program that it starts begins with ours."""

    def __init__(self, prologue: str) -> None:
        self._prologue = prologue

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def spawnv(self, mode: int, file: str, args: Iterable[str]) -> int:
        return os.spawnve(mode, file, self._joining(args), {**os.environ, **guard.environment()})

    def posix_spawn(self, path: str, argv: Iterable[str], env: Mapping[str, str], **options: Any) -> int:
        return os.posix_spawn(path, self._joining(argv), {**env, **guard.environment()}, **options)

    def _joining(self, argv: Iterable[str]) -> list[str]:
        arguments = list(argv)
        with contextlib.suppress(ValueError):
            program = arguments.index("-c") + 1
            arguments[program] = self._prologue + arguments[program]
        return arguments


def _prologue(end: _End, what: str, settings: Settings) -> str:
    joined = (*end, _circuit.state, what, _AUTO_INSTRUMENTATION in sys.modules, _pickled(settings))
    return f"""
try:
    from queueprop.adapters import rq as _queueprop
except ImportError:
    pass
else:
    _queueprop._join_parent{joined!r}
"""


_AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"


def _pickled(settings: Settings) -> dict[str, bytes]:
    """What of the settings can be told to another program: no provider, and no hook that is a local function."""
    pickled = {}
    for setting in fields(settings):
        with contextlib.suppress(Exception):
            pickled[setting.name] = pickle.dumps(getattr(settings, setting.name))
    return pickled


def _join_parent(
    fd: int,
    device: int,
    inode: int,
    circuit: bytes,
    what: str,
    launched: bool,
    settings: dict[str, bytes],
) -> None:
    """In a spawned work horse, before RQ's program: does what its parent has done, as far as that can be told."""
    global _parent_line
    try:
        _parent_line = _Line.of_parent(_End(fd, device, inode))
        _circuit.state = circuit
        if launched and _AUTO_INSTRUMENTATION not in sys.modules:
            # Until 0.65 it takes itself out of PYTHONPATH, and wants the variable to exist.
            os.environ.setdefault("PYTHONPATH", "")
            importlib.import_module(f"{_AUTO_INSTRUMENTATION}.sitecustomize")
        adapter = RQInstrumentor() if what == "all" else _WorkerInstrumentor()
        if not adapter.is_instrumented_by_opentelemetry:
            adapter.instrument(settings=_unpickled(settings))
    except Exception as error:
        guard.fault("instrumenting a spawned work horse", error)


def _unpickled(settings: dict[str, bytes]) -> Settings:
    values = {}
    for name, pickled in settings.items():
        with contextlib.suppress(Exception):  # a hook that lies in the parent's __main__
            values[name] = pickle.loads(pickled)
    return Settings(**values)


# The explicit API

_TRACED = "_queueprop_traced"


def _traced(publish: Any, hooks: _Hooks) -> Callable[..., Any]:
    if isinstance(publish, functools.partial):
        return functools.partial(_traced(publish.func, hooks), *publish.args, **publish.keywords)
    owner = getattr(publish, "__self__", None)
    if isinstance(owner, Queue) and not _is_another_method_of_rq(publish):
        return lambda *args, **kwargs: getattr(_traced_queue(owner, hooks), publish.__name__)(*args, **kwargs)
    if Group is not None and isinstance(owner, Group) and not _is_another_method_of_rq(publish):
        # Its own parameter has the same name, and may be given by it.
        return lambda queue, *args, **kwargs: publish(_traced_queue(queue, hooks), *args, **kwargs)
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


def _traced_queue(queue: Any, hooks: _Hooks) -> Any:
    """The same queue, whose publishes are traced. A copy: the user's object stays as it is."""
    traced = copy.copy(queue)
    for name, hook in (
        ("enqueue_job", hooks.publish),
        ("schedule_job", hooks.publish),
        ("enqueue_many", hooks.publish_many),
    ):
        setattr(traced, name, _hooked(hook, getattr(traced, name), traced))
    return traced


def _hooked(hook: Hook, wrapped: Wrapped, owner: Any) -> Wrapped:
    return functools.wraps(wrapped)(lambda *args, **kwargs: hook(wrapped, owner, args, kwargs))


def _job_decorator_of(function: Any) -> Any:
    """RQ's ``@job``, of which ``delay`` is a closure."""
    if not isinstance(function, types.FunctionType) or "self" not in function.__code__.co_freevars:
        return None
    found = inspect.getclosurevars(function).nonlocals["self"]
    return found if isinstance(found, job_decorator) else None


def _with_traced_queue(delay: types.FunctionType, hooks: _Hooks) -> types.FunctionType:
    """``delay`` passes the function's arguments and nothing of ours, so it is given another queue instead."""
    decorator = copy.copy(_job_decorator_of(delay))
    queue = decorator.queue
    if isinstance(queue, str):
        queue = decorator.queue_class(name=queue, connection=decorator.connection)
    decorator.queue = _traced_queue(queue, hooks)
    cells = {**inspect.getclosurevars(delay).nonlocals, "self": decorator}
    closure = tuple(types.CellType(cells[name]) for name in delay.__code__.co_freevars)
    return _rebuilt(delay, delay.__globals__, closure)


def _rebuilt(function: types.FunctionType, names: dict[str, Any], closure: Any) -> types.FunctionType:
    """The same function over other globals, or another closure."""
    rebuilt = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    rebuilt.__kwdefaults__ = function.__kwdefaults__
    return rebuilt


def _traced_function(function: F, hooks: _Hooks) -> F:
    checks.check_handler("traced_consumer", function, "a job's function, as in @traced_consumer")

    def begin(args: Arguments, kwargs: Options) -> _Function | None:
        job = get_current_job()
        if job is None or _performance_of(job):
            return None
        return _Function(_Performance(hooks.engine, job, job.origin, job.connection))

    return run_inside(function, begin)


class _Function:
    """The scope of a job's function whose worker is not traced."""

    def __init__(self, performance: _Performance) -> None:
        self._performance = performance
        self.detach = performance.process.detach
        self.reattach = performance.process.reattach

    def open(self) -> None:
        self._pid = os.getpid()
        self._performance.begin()

    def close(self, error: BaseException | None = None) -> None:
        job, engine = self._performance.job, self._performance.engine
        if os.getpid() == self._pid:
            kept = self._performance.kept_meta(even_in_empty=False)
            if kept is not None:
                job.meta = kept
            self._performance.end(error)
        else:
            self.detach()  # a child that the job has forked
        if os.environ.get("RQ_JOB_ID") == job.id and not _watched.get():
            # In a work horse. This is still in the job's time limit, and must not be what exceeds it.
            left = signal.getitimer(signal.ITIMER_REAL)[0]
            timeout = engine.settings.flush_timeout
            _hand_over(timeout, _circuit.patience(timeout), left / 2 if left else math.inf)


# RQ's jobs as messages


class _Published(list[Any]):
    """The jobs' data of one ``enqueue_many`` that is traced already."""


@functools.lru_cache(maxsize=1024)
def _destination_at(name: str, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def _destination(queue_name: str, connection: Any) -> Destination:
    return _destination_at(queue_name, *redis.address_of(connection))


def _put(job: Any, carrier: dict[str, str]) -> None:
    """Into a copy: the caller may use one ``meta`` for many jobs."""
    try:
        if carrier and job.retries_left:
            carrier[_RETRIES] = str(job.retries_left)
        if _holds_meta(job):
            job.meta = with_carrier(job.meta, META_KEY, carrier)
    except Exception as error:
        guard.fault("writing the context of a job", error)


def _put_each(datas: _Published, messages: Iterable[Message]) -> None:
    try:
        for index, message in enumerate(messages):
            data, carrier = datas[index], cast("dict[str, str]", message.headers)
            if carrier and data.retry:
                carrier[_RETRIES] = str(data.retry.max)
            datas[index] = data._replace(meta=with_carrier(data.meta or {}, META_KEY, carrier))
    except Exception as error:
        guard.fault("writing the context of several jobs", error)


def _holds_meta(job: Any) -> bool:
    """Whether ``meta`` is what is stored. What RQ could not read it must write back untouched."""
    return getattr(job, "_unreadable_meta", None) is None


@contextlib.contextmanager
def _context_kept(job: Any, even_in_empty: bool = False) -> Iterator[None]:
    """While RQ stores the job: the context that it came with, if the handler has replaced its ``meta``.

    RQ does not store an empty ``meta``, save when it is told to (``save_meta``).
    """
    performance = _performance_of(job)
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


_RETRIES = "retries"
"""Beside the context: how many retries the job began with, for RQ only counts how many are left."""


def _attempt(job: Any, carrier: Any) -> int | None:
    """Which attempt this is, where RQ tells: not for a job that repeats. A job requeued by hand begins anew."""
    returned = getattr(job, "number_of_retries", None) or 0
    most = carrier.get(_RETRIES) if isinstance(carrier, dict) else None
    if isinstance(most, str) and most.isdecimal() and job.retries_left is not None:
        return 1 + max(0, int(most) - int(job.retries_left)) + int(returned)
    if job.retries_left is None and (returned or job.ended_at is None):
        return 1 + int(returned)
    return None


def _seconds(moment: datetime.datetime | None) -> float | None:
    if moment is None:
        return None
    # RQ 1 has naive times in UTC.
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    return aware.timestamp()


def _delay_until(moment: Any) -> float | None:
    return max(0.0, moment.timestamp() - time.time()) if isinstance(moment, datetime.datetime) else None


def _with_id(data: Any, queue: Any) -> Any:
    """The id that RQ itself would make up a moment later, so that the create span has it."""
    return data._replace(job_id=str(uuid.uuid4())) if data.job_id is None and queue.job_class is Job else data


def _describe_job(job: Any) -> dict[str, str]:
    # Not func_name: it would unpickle the job.
    name = job._func_name
    return {_FUNCTION: name} if isinstance(name, str) else {}


def _describe_data(data: Any) -> dict[str, str]:
    if isinstance(data.func, str):
        return {_FUNCTION: data.func}
    name = getattr(data.func, "__qualname__", None)
    return {_FUNCTION: f"{data.func.__module__}.{name}"} if name else {}


_FUNCTION = "code.function.name"

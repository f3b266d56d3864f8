"""RQ: jobs in their callers' traces. RQ 1.16 to 3.0, every worker class.

The context of a publish travels in ``job.meta["queueprop"]``, a mapping of text, put there before the job is stored.
The CONSUMER span is open for as long as a worker performs the job: the function, RQ's callbacks, and what RQ then
does about retries and dependents are inside.

What RQ does with a job of its own accord (retry, repeat, schedule, dependents, ``requeue``) is no publish: the job
keeps the context of its first one, and has a CONSUMER span there each time that it is performed.

Three things shape this file:

- A time limit of RQ is an ``Exception`` that a signal raises anywhere in the timed region. Spans start and end
  outside of it (``perform_job``, not ``Job.perform``).
- A work horse ends in ``os._exit``: it hands over its spans first, for a bounded time. It may also be killed. The
  parent starts the span before the fork, so both have it, and whoever is left ends it.
- The ``meta`` of a stored job is the user's: only what RQ itself is about to store is given the context again.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import importlib
import inspect
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast, overload

from opentelemetry.context import Context, get_current
from opentelemetry.trace import NonRecordingSpan, Span

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Send, error_type_of
from queueprop.engine.scope import Carried
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.handlers import run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rivals, missing_extra
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
    if hasattr(publish, _TRACED):
        return publish
    call = functools.wraps(publish)(_traced(publish, _Hooks(engine_for(settings))))
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
    if function is None:
        return functools.partial(_traced_function, hooks=_Hooks(engine_for(settings)))
    return _traced_function(function, hooks=_Hooks(engine_for(settings)))


class TracedWorkerMixin(_WorkerMethods):
    """Makes a worker class of yours a traced one, without patching::

        class MyWorker(TracedWorkerMixin, Worker):
            queueprop_settings = Settings(propagation="link")   # instead of those of the environment

    It must stand before RQ's class.
    """

    queueprop_settings: ClassVar[Settings | None] = None

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
        return _Hooks(engine_for(self.queueprop_settings), spawned="worker")


class TracedWorker(TracedWorkerMixin, Worker):
    """RQ's Worker, traced: ``rq worker --worker-class queueprop.adapters.rq.TracedWorker``."""


class TracedSimpleWorker(TracedWorkerMixin, SimpleWorker):
    """RQ's SimpleWorker, traced."""


if TYPE_CHECKING or SpawnWorker is not None:

    class TracedSpawnWorker(TracedWorkerMixin, SpawnWorker):
        """RQ's SpawnWorker (from 2.2 on), traced; its work horses are traced as well."""


class RQInstrumentor(Adapter):
    """Traces every queue and worker of RQ. ``opentelemetry-instrument rq worker`` finds it by itself."""

    library = "rq"
    requires = ("rq >= 1.16",)
    rivals = Rivals("rq", "opentelemetry_instrumentation_rq:RQInstrumentor")

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
        try:
            send = self._send(queue, job, args, kwargs)
        except Exception as error:
            guard.fault("preparing the publish of a job", error)
            return wrapped(*args, **kwargs)
        with send or contextlib.nullcontext():
            if send is not None:
                _put(job, cast("dict[str, str]", send.messages[0].headers))
            return wrapped(*args, **kwargs)

    def _send(self, queue: Any, job: Any, args: Arguments, kwargs: Options) -> Send | None:
        if job.enqueued_at is not None or job.started_at is not None:
            return None
        message = Message(
            headers=_carrier_for(job.meta),
            # RQ makes an id up when it is first asked for, and refuses `unique` without one of the caller's.
            id=job._id if kwargs.get("unique") else job.id,
            delay=_delay_until(calls.given(1, "datetime", args, kwargs)),
            native=job,
            describe=_describe_job,
        )
        # The explicit API above the instrumentor publishes the very same job: that is one publish. A function that
        # runs inside (is_async=False) publishes other jobs.
        return self.engine.send(
            _destination(queue.name, queue.connection), message, owner=f"{SYSTEM} {id(job)}"
        )

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
                Message(headers=_carrier_for(data.meta), id=data.job_id, native=data, describe=_describe_data)
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
            if multiprocessing.parent_process() is not None:
                flush(self.engine.settings.flush_timeout)

    def perform_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one job, outside of its time limits."""
        job, queue = calls.given(0, "job", args, kwargs), calls.given(1, "queue", args, kwargs)
        return self._perform(wrapped, job, queue, args, kwargs, _hand_over if worker.is_horse else None)

    def run_sync(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the same where a queue without workers does it (``is_async=False``)."""
        return self._perform(wrapped, calls.given(0, "job", args, kwargs), queue, args, kwargs, None)

    def _perform(
        self,
        wrapped: Wrapped,
        job: Any,
        queue: Any,
        args: Arguments,
        kwargs: Options,
        at_end: Callable[[_Performance], None] | None,
    ) -> Any:
        performance = None if _performance_of(job) else self._performance(job, queue)
        if performance is None:
            return wrapped(*args, **kwargs)
        failure: BaseException | None = None
        token = _current.set(performance)
        performance.begin()
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            _current.reset(token)
            performance.end(failure)
            if at_end is not None:
                at_end(performance)

    def _performance(self, job: Any, queue: Any) -> _Performance | None:
        horse = _watched.get()
        if horse is not None and horse.job is job and not horse.spawned:
            return horse.performance
        try:
            return _Performance(self.engine, job, queue.name, queue.connection)
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

    def _origin(self, job: Any) -> Carried | None:
        try:
            process = _Performance(self.engine, job, job.origin, job.connection).process
            if not self.engine.trusts(process.operation.destination, process.message):
                return None
            found = propagation.read(process.message.headers, self.engine.baggage_allow)
            return Carried(Context({**get_current(), **found.context}))
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
        if horse is not None:
            horse.exited(result[1], stopped=worker._stopped_job_id == horse.job.id)
        return result

    def fork_work_horse(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """SpawnWorker's horse is a program of its own (``python -c``), which knows nothing of this process.

        RQ offers no place to say what else it should run, so RQ's function is run with an ``os`` that puts lines
        of ours above that program.
        """
        horse, function = _watched.get(), getattr(wrapped, "__func__", None)
        if horse is None or not horse.spawned or not isinstance(function, types.FunctionType):
            return wrapped(*args, **kwargs)
        with horse.inheritable_pipe() as fd:
            joining = {
                **function.__globals__,
                "os": _JoiningOs(_prologue(fd, self.spawned, self.engine.settings)),
            }
            return _rebuilt(function, joining, function.__closure__)(worker, *args, **kwargs)


class _Performance:
    """One job being performed once."""

    def __init__(
        self, engine: Engine, job: Any, queue_name: str, connection: Any, started_at: int | None = None
    ) -> None:
        self.engine = engine
        self.job = job
        meta = job.meta if isinstance(job.meta, dict) else {}
        self.carrier = meta.get(META_KEY, _NOTHING)
        message = Message(
            headers=None if self.carrier is _NOTHING else self.carrier,
            id=job.id,
            sent_at=_seconds(job.enqueued_at),
            attempt=_attempt(job, self.carrier),
            native=job,
        )
        destination = _destination(queue_name, connection)
        self.process = engine.process(destination, message, owner=SYSTEM, started_at=started_at)
        self.error: BaseException | None = None
        self._begun = False

    def begin(self) -> None:
        """Opens the span; in a work horse, the one that its parent began."""
        if self._begun:
            self.process.reattach()
        else:
            self._begun = True
            self.process.open()

    def begin_for_another_process(self) -> None:
        self.begin()
        self.process.detach()

    def has_lost_context(self, even_in_empty: bool) -> bool:
        meta = self.job.meta
        return (
            self.carrier is not _NOTHING
            and isinstance(meta, dict)
            and (even_in_empty or bool(meta))
            and meta.get(META_KEY, _NOTHING) != self.carrier
        )

    def end(self, failure: BaseException | None = None) -> None:
        error = self.error or failure
        if self.process.span.is_recording():
            self.process.span.set_attributes(_describe_job(self.job))
        if isinstance(error, SystemExit):
            # For a job that is a failure, whatever the status.
            self.process.fail("SystemExit", str(error))
        self.process.close(error)


_NOTHING = object()

_current: ContextVar[_Performance | None] = ContextVar("queueprop-rq-performance", default=None)


def _performance_of(job: Any) -> _Performance | None:
    performance = _current.get()
    if performance is None or performance.job.id != getattr(job, "id", None):
        return None
    return performance


def _note_failure(job: Any, error: BaseException | None) -> None:
    performance = _performance_of(job)
    if performance is not None and performance.error is None:
        performance.error = error


class _Horse:
    """A work horse as its parent sees it: the span that it should end, and the pipe on which it tells that."""

    def __init__(self, engine: Engine, job: Any, queue: Any, *, spawned: bool) -> None:
        self.job = job
        self.spawned = spawned
        self._pid = os.getpid()
        self._status: int | None = None
        self._stopped = False
        self._told: list[Any] | None = None
        self.performance = _Performance(
            engine, job, queue.name, queue.connection, started_at=time.time_ns() if spawned else None
        )
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        if not spawned:
            self.performance.begin_for_another_process()

    @contextlib.contextmanager
    def inheritable_pipe(self) -> Iterator[int]:
        os.set_inheritable(self.write_end, True)
        try:
            yield self.write_end
        finally:
            os.set_inheritable(self.write_end, False)

    def exited(self, status: int | None, *, stopped: bool) -> None:
        self._status, self._stopped = status, stopped
        if status != 0 and not self._has_told():
            self.performance.begin()

    def is_child_of_this_process(self) -> bool:
        return os.getpid() == self._pid

    def finish(self, failure: BaseException | None) -> None:
        """The worker is done with the horse. Ends the span if the horse could not."""
        if not self.is_child_of_this_process():
            return
        try:
            self._finish(failure)
        finally:
            os.close(self._read_end)
            os.close(self.write_end)

    def _finish(self, failure: BaseException | None) -> None:
        process = self.performance.process
        if self._has_told():
            recorded, error_type, text = self._told or (True, None, None)
            if recorded or not self.spawned:
                process.detach()
                return
            # No SDK in the spawned program: its span is ours to make.
            self.performance.begin()
            if error_type:
                process.fail(error_type, text or "")
        else:
            self.performance.begin()
            if not isinstance(failure, Exception) and (self._status != 0 or not self.spawned):
                process.fail(*self._cause())
        self.performance.end(failure if isinstance(failure, Exception) else None)

    def _cause(self) -> tuple[str, str]:
        if self._stopped:
            return JOB_STOPPED, "Job stopped by user, work-horse terminated."
        text = f"Work-horse terminated unexpectedly; waitpid returned {self._status}"
        if self._status and os.WIFSIGNALED(self._status):
            text += f" (signal {os.WTERMSIG(self._status)})"
        return WORK_HORSE_KILLED, text

    def _has_told(self) -> bool:
        if self._told is None:
            with contextlib.suppress(BlockingIOError):
                self._told = json.loads(os.read(self._read_end, _PIPE_BUF) or "null")
        return self._told is not None


JOB_STOPPED = "job_stopped"
"""``error.type`` of a job that was stopped by command. RQ has no exception for it."""

WORK_HORSE_KILLED = "work_horse_killed"
"""``error.type`` of a job whose work horse died."""

_PIPE_BUF = 512
"""What POSIX writes to a pipe in one piece, at the least."""

_watched: ContextVar[_Horse | None] = ContextVar("queueprop-rq-horse", default=None)

_parent_pipe: int | None = None
"""In a spawned horse: where its parent listens."""


def _hand_over(performance: _Performance) -> None:
    """At the end of a work horse, before ``os._exit``: hands over the spans, then tells the parent."""
    settings = performance.engine.settings
    flush(settings.flush_timeout)
    horse = _watched.get()
    pipe = _parent_pipe if horse is None else horse.write_end
    if pipe is None:
        return
    error = performance.error
    told = [
        _is_recorded(performance.process.span),
        error and error_type_of(error)[:100],
        error and _short(error),
    ]
    with contextlib.suppress(OSError):  # a parent that is gone
        os.write(pipe, json.dumps(told).encode())


def _is_recorded(span: Span) -> bool:
    """Whether this process has the span exported; the parent of a program without an SDK makes it itself."""
    return span.get_span_context().is_valid and not isinstance(span, NonRecordingSpan)


def _short(error: BaseException) -> str:
    try:
        return str(error)[:50]
    except Exception:
        return ""


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
        return os.spawnv(mode, file, self._joining(args))

    def posix_spawn(self, path: str, argv: Iterable[str], env: Mapping[str, str], **options: Any) -> int:
        return os.posix_spawn(path, self._joining(argv), env, **options)

    def _joining(self, argv: Iterable[str]) -> list[str]:
        arguments = list(argv)
        with contextlib.suppress(ValueError):
            program = arguments.index("-c") + 1
            arguments[program] = self._prologue + arguments[program]
        return arguments


def _prologue(fd: int, what: str, settings: Settings) -> str:
    return f"""
try:
    from queueprop.adapters import rq as _queueprop
except ImportError:
    pass
else:
    _queueprop._join_parent({fd}, {what!r}, {_AUTO_INSTRUMENTATION in sys.modules}, {_pickled(settings)!r})
"""


_AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"


def _pickled(settings: Settings) -> dict[str, bytes]:
    """What of the settings can be told to another program: no provider, and no hook that is a local function."""
    pickled = {}
    for setting in fields(settings):
        with contextlib.suppress(Exception):
            pickled[setting.name] = pickle.dumps(getattr(settings, setting.name))
    return pickled


def _join_parent(fd: int, what: str, launched: bool, settings: dict[str, bytes]) -> None:
    """In a spawned work horse, before RQ's program: does what its parent has done, as far as that can be told."""
    global _parent_pipe
    try:
        _parent_pipe = fd
        os.set_inheritable(fd, False)
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
    if isinstance(owner, Queue):
        return lambda *args, **kwargs: getattr(_traced_queue(owner, hooks), publish.__name__)(*args, **kwargs)
    if Group is not None and isinstance(owner, Group):
        # Its own parameter has the same name, and may be given by it.
        return lambda queue, *args, **kwargs: publish(_traced_queue(queue, hooks), *args, **kwargs)
    if _job_decorator_of(publish) is not None:
        return lambda *args, **kwargs: _with_traced_queue(publish, hooks)(*args, **kwargs)
    raise TypeError(f"traced_publish wants a method of a queue, or a job function's delay, not {publish!r}")


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
        self._performance.begin()

    def close(self, error: BaseException | None = None) -> None:
        job, engine = self._performance.job, self._performance.engine
        if self._performance.has_lost_context(even_in_empty=False):
            job.meta = _with_carrier(job.meta, self._performance.carrier)
        self._performance.end(error)
        if os.environ.get("RQ_JOB_ID") == job.id and not _watched.get():
            # In a work horse. This is still in the job's time limit, and must not be what exceeds it.
            left = signal.getitimer(signal.ITIMER_REAL)[0]
            flush(min(engine.settings.flush_timeout, left / 2) if left else engine.settings.flush_timeout)


# RQ's jobs as messages


class _Published(list[Any]):
    """The jobs' data of one ``enqueue_many`` that is traced already."""


@functools.lru_cache(maxsize=1024)
def _destination_at(name: str, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def _destination(queue_name: str, connection: Any) -> Destination:
    options = getattr(getattr(connection, "connection_pool", None), "connection_kwargs", {})
    if "path" in options:  # a Unix socket
        return _destination_at(queue_name, options["path"], None)
    host = options.get("host")
    return _destination_at(queue_name, host, int(options.get("port", 6379)) if host else None)


def _carrier_for(meta: Any) -> dict[str, Any]:
    """Where a publish writes its context: ours, but with what a forwarded ``meta`` has, to be replaced."""
    stale = meta.get(META_KEY) if isinstance(meta, dict) else None
    return {**stale} if isinstance(stale, dict) else {}


def _put(job: Any, carrier: dict[str, str]) -> None:
    """Into a copy: the caller may use one ``meta`` for many jobs."""
    try:
        if carrier and job.retries_left:
            carrier[_RETRIES] = str(job.retries_left)
        if _holds_meta(job):
            job.meta = _with_carrier(job.meta, carrier)
    except Exception as error:
        guard.fault("writing the context of a job", error)


def _put_each(datas: _Published, messages: Iterable[Message]) -> None:
    try:
        for index, message in enumerate(messages):
            data, carrier = datas[index], cast("dict[str, str]", message.headers)
            if carrier and data.retry:
                carrier[_RETRIES] = str(data.retry.max)
            datas[index] = data._replace(meta=_with_carrier(data.meta or {}, carrier))
    except Exception as error:
        guard.fault("writing the context of several jobs", error)


def _with_carrier(meta: Any, carrier: object) -> Any:
    if not isinstance(meta, dict) or (not carrier and META_KEY not in meta):
        return meta
    copied = copy.copy(meta)
    if carrier:
        copied[META_KEY] = carrier
    else:
        del copied[META_KEY]
    return copied


def _holds_meta(job: Any) -> bool:
    """Whether ``meta`` is what is stored. What RQ could not read it must write back untouched."""
    return getattr(job, "_unreadable_meta", None) is None


@contextlib.contextmanager
def _context_kept(job: Any, even_in_empty: bool = False) -> Iterator[None]:
    """While RQ stores the job: the context that it came with, if the handler has replaced its ``meta``.

    RQ does not store an empty ``meta``, save when it is told to (``save_meta``).
    """
    performance = _performance_of(job)
    if performance is None or not performance.has_lost_context(even_in_empty):
        yield
        return
    replaced = job.meta
    job.meta = _with_carrier(replaced, performance.carrier)
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

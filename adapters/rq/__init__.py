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
import functools
import importlib
import inspect
import math
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast, overload

from opentelemetry.context import Context, get_current
from opentelemetry.trace import get_tracer_provider

from queueprop import guard
from queueprop.engine import no_sdk
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import Send
from queueprop.engine.scope import CarriedContext
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.handlers import run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rival, Rivals
from queueprop.kit.jobs import carrier_for, perform
from queueprop.kit.kept import Kept
from queueprop.kit.libraries import missing_extra
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

from queueprop.adapters.rq import collector, performing
from queueprop.adapters.rq.collector import hand_over
from queueprop.adapters.rq.horses import JOB_STOPPED as JOB_STOPPED
from queueprop.adapters.rq.horses import WORK_HORSE_KILLED as WORK_HORSE_KILLED
from queueprop.adapters.rq.horses import Horse, watched, watching
from queueprop.adapters.rq.lines import End, Line
from queueprop.adapters.rq.messages import (
    BESIDE,
    Published,
    delay_until,
    describe_data,
    describe_job,
    destination_of,
    put_context,
    put_contexts,
    with_id,
)
from queueprop.adapters.rq.messages import (
    META_KEY as META_KEY,
)
from queueprop.adapters.rq.messages import (
    SYSTEM as SYSTEM,
)
from queueprop.adapters.rq.performing import Performance, context_kept, note_failure, performance_of
from queueprop.adapters.rq.spawning import AUTO_INSTRUMENTATION, JoiningOs, prologue, rebuilt, unpickled

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
                put_context(job, cast("dict[str, str]", send.messages[0].headers))
            return wrapped(*args, **kwargs)

    def _send(self, queue: Any, job: Any, args: Arguments, kwargs: Options) -> Send | None:
        if job.enqueued_at is not None or job.started_at is not None:
            return None
        message = Message(
            headers=carrier_for(job.meta, META_KEY, apart_from=BESIDE),
            # RQ makes an id up when it is first asked for, and refuses `unique` without one of the caller's.
            id=job._id if kwargs.get("unique") else job.id,
            delay=delay_until(calls.given(1, "datetime", args, kwargs)),
            native=job,
            describe=describe_job,
        )
        return self.engine.send(destination_of(queue.name, queue.connection), message)

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
                    describe=describe_data,
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

    # The worker's side

    def work(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a worker's whole life. WorkerPool's are children of multiprocessing, which run no exit hooks."""
        try:
            return wrapped(*args, **kwargs)
        finally:
            collector.kept.release()
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
        performance = None if performance_of(job) else self._performance(job, queue)
        if performance is not None:
            performance.in_horse = in_horse
        return perform(SYSTEM, performance, wrapped, args, kwargs)

    def _performance(self, job: Any, queue: Any) -> Performance | None:
        horse = watched()
        if horse is not None and horse.job is job and not horse.spawned:
            return horse.performance
        try:
            performance = Performance(self.engine, job, queue.name, queue.connection)
            performance.line = performing.parent_line
            return performance
        except Exception as error:
            guard.fault("preparing the processing of a job", error)
            return None

    def run_job(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Within ``run_sync``, which keeps the job's exception to itself."""
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            note_failure(calls.given(0, "job", args, kwargs), error)
            raise

    def handle_exception(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Within ``perform_job``, which keeps the job's exception to itself."""
        # When the failure callback raised as well, RQ hands in that error. The job's is still being handled.
        note_failure(
            calls.given(0, "job", args, kwargs),
            sys.exc_info()[1] or calls.given(2, "exc_value", args, kwargs),
        )
        return wrapped(*args, **kwargs)

    def store_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around RQ's storing of a job for its next time: whoever replaced ``meta`` loses no context."""
        with context_kept(calls.given(0, "job", args, kwargs)):
            return wrapped(*args, **kwargs)

    def save_meta(self, wrapped: Wrapped, job: Any, args: Arguments, kwargs: Options) -> Any:
        """The same for a handler that stores its ``meta`` itself."""
        with context_kept(job, even_in_empty=True):
            return wrapped(*args, **kwargs)

    def execute_failure_callback(self, wrapped: Wrapped, job: Any, args: Arguments, kwargs: Options) -> Any:
        """Outside of ``perform_job`` it is for an abandoned job, whose worker is gone: it runs in the job's trace.

        There is no span of ours: nobody knows whether that worker has made one.
        """
        job = args[0] if job is None else job
        origin = None if performance_of(job) else self._origin(job)
        if origin is None:
            return wrapped(*args, **kwargs)
        origin.open()
        try:
            return wrapped(*args, **kwargs)
        finally:
            origin.close()

    def _origin(self, job: Any) -> CarriedContext | None:
        try:
            process = Performance(self.engine, job, job.origin, job.connection).process
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
        outer = watched()
        is_watched = outer is not None and outer.is_child_of_this_process()
        horse = None if is_watched or isinstance(worker, SimpleWorker) else self._horse(worker, args, kwargs)
        if horse is None:
            return wrapped(*args, **kwargs)
        failure: BaseException | None = None
        try:
            with watching(horse):
                return wrapped(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            horse.finish(failure)

    def _horse(self, worker: Any, args: Arguments, kwargs: Options) -> Horse | None:
        job, queue = calls.given(0, "job", args, kwargs), calls.given(1, "queue", args, kwargs)
        try:
            return Horse(self.engine, job, queue, spawned=_spawns(worker))
        except Exception as error:
            guard.fault("preparing the processing of a job in a work horse", error)
            return None

    def wait_for_horse(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """How RQ learns that a horse is dead. What it then does (callbacks, the retry) belongs to the job."""
        result = wrapped(*args, **kwargs)
        horse = watched()
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
        horse, function = watched(), getattr(wrapped, "__func__", None)
        if horse is None or not horse.spawned or not isinstance(function, types.FunctionType):
            return wrapped(*args, **kwargs)
        try:
            # Each horse would say it anew.
            no_sdk.say_if_missing(self.engine.settings.tracer_provider or get_tracer_provider())
            program = prologue(horse.line.lend(), self.spawned, self.engine.settings)
            joining = {**function.__globals__, "os": JoiningOs(program)}
            spawn = rebuilt(function, joining, function.__closure__)
        except Exception as error:
            guard.fault("telling a work horse how to join its worker", error)
            spawn = function
        try:
            return spawn(worker, *args, **kwargs)
        finally:
            horse.line.take_back()


# A spawned work horse joins


def _spawns(worker: Any) -> bool:
    return SpawnWorker is not None and isinstance(worker, SpawnWorker)


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
    try:
        performing.parent_line = Line.of_parent(End(fd, device, inode))
        collector.circuit.state = circuit
        if launched and AUTO_INSTRUMENTATION not in sys.modules:
            # Until 0.65 it takes itself out of PYTHONPATH, and wants the variable to exist.
            os.environ.setdefault("PYTHONPATH", "")
            importlib.import_module(f"{AUTO_INSTRUMENTATION}.sitecustomize")
        adapter = RQInstrumentor() if what == "all" else _WorkerInstrumentor()
        if not adapter.is_instrumented_by_opentelemetry:
            adapter.instrument(settings=unpickled(settings))
    except Exception as error:
        guard.fault("instrumenting a spawned work horse", error)


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
    publish = [(name, hooks.publish) for name in ("enqueue_job", "schedule_job")]
    calls.hook_methods(traced, [*publish, ("enqueue_many", hooks.publish_many)])
    return traced


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
    return rebuilt(delay, delay.__globals__, closure)


def _traced_function(function: F, hooks: _Hooks) -> F:
    checks.check_handler("traced_consumer", function, "a job's function, as in @traced_consumer")

    def begin(args: Arguments, kwargs: Options) -> _Function | None:
        job = get_current_job()
        if job is None or performance_of(job):
            return None
        outer = _handled_by_functions.find(job)
        if outer is not None and not outer.process.closed:
            return None  # a function of the same job's
        performance = Performance(hooks.engine, job, job.origin, job.connection)
        _handled_by_functions.put(job, None, performance)
        return _Function(performance)

    return run_inside(function, begin)


_handled_by_functions: Kept[Performance] = Kept()


class _Function:
    """The scope of a job's function whose worker is not traced."""

    def __init__(self, performance: Performance) -> None:
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
        if os.environ.get("RQ_JOB_ID") == job.id and not watched():
            # In a work horse. This is still in the job's time limit, and must not be what exceeds it.
            left = signal.getitimer(signal.ITIMER_REAL)[0]
            timeout = engine.settings.flush_timeout
            hand_over(timeout, collector.circuit.patience(timeout), left / 2 if left else math.inf)

"""The hooks around a worker's methods, and around what performs a job without one."""

from __future__ import annotations

import multiprocessing
import sys
import types
from typing import Any

from opentelemetry.trace import get_tracer_provider
from rq import SimpleWorker

from queueprop import guard
from queueprop.adapters.rq import collector, performing
from queueprop.adapters.rq.horses import Horse, watched, watching
from queueprop.adapters.rq.messages import SYSTEM
from queueprop.adapters.rq.performing import Performance, context_kept, note_failure, performance_of
from queueprop.adapters.rq.spawning import JoiningOs, prologue, rebuilt, spawns
from queueprop.engine import no_sdk
from queueprop.engine.engine import Engine
from queueprop.engine.scope import CarriedContext, span_context_of
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.jobs import perform
from queueprop.process.flush import flush


class WorkerHooks:
    """What is done around a worker's methods, and around what performs a job without one, each as
    ``hook(bound method, its object, args, kwargs)``.

    ``spawned``: what a spawned work horse traces, ``"all"`` or its ``"worker"``.
    """

    def __init__(self, engine: Engine, spawned: str) -> None:
        self.engine = engine
        self.spawned = spawned

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
        if performance is not None and in_horse:
            performance.begin_in_horse()
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
            return self.engine.context_of(process.labels.destination, process.message)
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
            return Horse(self.engine, job, queue, spawned=spawns(worker))
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
            begun = span_context_of(horse.performance.process.span)
            program = prologue(horse.line.lend(), begun, self.spawned, self.engine.settings)
            joining = {**function.__globals__, "os": JoiningOs(program)}
            spawn = rebuilt(function, joining, function.__closure__)
        except Exception as error:
            guard.fault("telling a work horse how to join its worker", error)
            spawn = function
        try:
            return spawn(worker, *args, **kwargs)
        finally:
            horse.line.take_back()

"""Puts the hooks around RQ's own methods, and around those of what is built upon it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from rq import Queue, Worker
from rq.job import Job

from queueprop.adapters.rq import companions
from queueprop.adapters.rq.companions import Schedulers
from queueprop.adapters.rq.publishing import PublishHooks
from queueprop.adapters.rq.spawning import SpawnWorker
from queueprop.adapters.rq.workers import WorkerHooks
from queueprop.kit.instrumentor import Adapter, Companions, Patch
from queueprop.kit.rivals import Rival, Rivals


class RQInstrumentor(Adapter):
    """Traces every queue and worker of RQ.

    ``opentelemetry-instrument rq worker`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_rq``.
    """

    __module__ = "queueprop.adapters.rq"

    library = "rq"
    requires = ("rq >= 1.16",)
    rivals = Rivals(
        "rq", Rival("opentelemetry_instrumentation_rq:RQInstrumentor", "opentelemetry-instrumentation-rq")
    )

    def patches(self) -> Iterable[Patch]:
        hooks = PublishHooks(self.engine)
        yield Patch(Queue, "enqueue_job", hooks.publish)
        yield Patch(Queue, "schedule_job", hooks.publish)
        yield Patch(Queue, "enqueue_many", hooks.publish_many)
        yield from _worker_patches(WorkerHooks(self.engine, spawned="all"))

    def companions(self) -> Companions:
        return {
            companions.SCHEDULER_MODULE: functools.partial(_scheduler_patches, Schedulers(self.engine)),
            companions.DJANGO_MODULE: django_patches,
        }


class WorkerInstrumentor(Adapter):
    """For a work horse of TracedSpawnWorker, which in RQ 2 is made of RQ's own Worker."""

    library = RQInstrumentor.library
    requires = RQInstrumentor.requires
    rivals = RQInstrumentor.rivals

    def patches(self) -> Iterable[Patch]:
        return _worker_patches(WorkerHooks(self.engine, spawned="worker"))


def _worker_patches(hooks: WorkerHooks) -> Iterator[Patch]:
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


def _scheduler_patches(hooks: Schedulers, module: Any) -> Iterator[Patch]:
    for name, hook in hooks.hooks():
        yield Patch(module.Scheduler, name, hook)


def django_patches(module: Any) -> Iterator[Patch]:
    yield Patch(module.DjangoRQ, "enqueue_call", companions.postpone)

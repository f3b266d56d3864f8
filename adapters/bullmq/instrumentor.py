"""Puts the hooks around BullMQ's own methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bullmq import FlowProducer, Job, Queue, Worker

from queueprop.adapters.bullmq import BULLMQ, _performance, _performance_of
from queueprop.adapters.bullmq.options import SYSTEM
from queueprop.adapters.bullmq.publishing import listed
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.jobs import perform_async
from queueprop.kit.rivals import Rivals

try:
    from bullmq.job_scheduler import JobScheduler
except ModuleNotFoundError:  # before BullMQ 3
    JobScheduler = None


class BullMQInstrumentor(Adapter):
    """Traces every queue, flow producer, scheduler and worker.

    ``opentelemetry-instrument python worker.py`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_bullmq``.
    """

    __module__ = "queueprop.adapters.bullmq"

    library = "bullmq"
    requires = ("bullmq >= 2.15",)
    rivals = Rivals("bullmq")

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(BULLMQ, self.engine, self.is_on)
        for owner in (Queue, FlowProducer):
            yield Patch(owner, "add", hooks.publish_async)
            yield Patch(owner, "addBulk", listed(hooks.publish_async))
        if JobScheduler is not None:  # which a queue's own method calls, and the worker for the next job
            yield Patch(JobScheduler, "upsertJobScheduler", hooks.publish_async)
        yield Patch(Worker, "processJob", self._process_job)
        yield Patch(Worker, "emit", _note_event)
        yield Patch(Job, "moveToFailed", _note_failure)

    async def _process_job(self, wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around all that a worker does with one job; also where the user calls it for a job of ``getNextJob``."""
        performance = _performance(self.engine, worker, calls.given(0, "job", args, kwargs))
        return await perform_async(SYSTEM, performance, wrapped, args, kwargs)


def _note(job: Any, error: Any) -> None:
    performance = _performance_of(job)
    if performance is not None and isinstance(error, BaseException):
        performance.note(error)


def _note_failure(wrapped: Wrapped, job: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``moveToFailed``, which may fail itself."""
    _note(job, calls.given(0, "err", args, kwargs))
    return wrapped(*args, **kwargs)


def _note_event(wrapped: Wrapped, worker: Any, args: Arguments, kwargs: Options) -> Any:
    """Around what a worker tells its listeners: it moves no job any more where it is closed by force."""
    if len(args) > 2 and args[0] == "failed":
        _note(args[1], args[2])
    elif len(args) > 2 and args[0] == "error":
        _note(args[2], args[1])
    return wrapped(*args, **kwargs)

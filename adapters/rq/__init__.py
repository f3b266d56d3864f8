"""RQ: jobs in their callers' traces. RQ 1.16 to 3.0, every worker class.

The context of a publish travels in ``job.meta["queueprop"]``, a mapping of text, put there before the job is stored.
The CONSUMER span is open for as long as a worker performs the job: the function, RQ's callbacks, and what RQ then
does about retries and dependents are inside.

What RQ does with a job of its own accord (retry, repeat, schedule, dependents, ``requeue``) is no publish: the job
keeps the context of its first one, and has a CONSUMER span there each time that it is performed.

Three things shape this adapter:

- A time limit of RQ is an ``Exception`` that a signal raises anywhere in the timed region. Spans start and end
  outside of it (``perform_job``, not ``Job.perform``).
- A work horse ends in ``os._exit``: it hands over its spans first, for a bounded time, and not at all where that was
  in vain a moment ago. It may also be killed. The parent starts the span before the fork, so both have it, and whoever
  is left ends it.
- The ``meta`` of a stored job is the user's: only what RQ itself is about to store is given the context again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, overload

from queueprop import guard
from queueprop.kit import checks
from queueprop.kit.libraries import missing_extra
from queueprop.kit.on_demand import on_demand
from queueprop.settings import Settings

try:
    from rq import SimpleWorker, Worker
    from rq.exceptions import ShutDownImminentException
    from rq.timeouts import BaseTimeoutException
except ModuleNotFoundError as error:
    if error.name not in ("rq", "redis"):
        raise
    raise missing_extra(__name__, "RQ", "rq") from None

from queueprop.adapters.rq import functions, publishing
from queueprop.adapters.rq.horses import JOB_STOPPED as JOB_STOPPED
from queueprop.adapters.rq.horses import WORK_HORSE_KILLED as WORK_HORSE_KILLED
from queueprop.adapters.rq.messages import META_KEY as META_KEY
from queueprop.adapters.rq.messages import SYSTEM as SYSTEM
from queueprop.adapters.rq.spawning import SpawnWorker
from queueprop.adapters.rq.workers import WorkerHooks

if TYPE_CHECKING:
    from rq.worker import BaseWorker

    from queueprop.adapters.rq.instrumentor import RQInstrumentor

    _WorkerMethods = BaseWorker
else:
    __getattr__, __dir__ = on_demand(__name__, RQInstrumentor="instrumentor")

    _WorkerMethods = object

__all__ = [
    "RQInstrumentor",
    "TracedSimpleWorker",
    "TracedWorker",
    "TracedWorkerMixin",
    "traced_consumer",
    "traced_publish",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

guard.let_through(BaseTimeoutException, ShutDownImminentException)


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a call that enqueues: ``enqueue = traced_publish(queue.enqueue)``.

    Arguments:
        publish: a method of a queue (``enqueue``, ``enqueue_call``, ``enqueue_in``, ``enqueue_at``,
            ``enqueue_many``, ``enqueue_job``, ``schedule_job``), ``delay`` or ``enqueue`` of a function with RQ's
            ``@job``, or a group's ``enqueue_many``; of a scheduler of rq-scheduler ``enqueue_at``, ``enqueue_in``,
            ``schedule`` and ``cron``, and in the scheduler's process ``run``, ``enqueue_jobs`` or ``enqueue_job``;
            also a ``functools.partial`` of one of them.

    Every job that the call makes gets a PRODUCER span. A job that was enqueued before keeps its own context.
    Raises TypeError for anything else.
    """
    return publishing.traced(publish, checks.engine_of(settings, "traced_publish"))


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
    engine = checks.engine_of(settings, "traced_consumer")
    if function is None:
        return functools.partial(functions.traced, engine=engine)
    return functions.traced(function, engine)


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
    def _hooks(self) -> WorkerHooks:
        engine, _ = checks.at_hand("queueprop_settings", self.queueprop_settings, None)
        return WorkerHooks(engine, spawned="worker")


class TracedWorker(TracedWorkerMixin, Worker):
    """RQ's Worker, traced: ``rq worker --worker-class queueprop.adapters.rq.TracedWorker``."""


class TracedSimpleWorker(TracedWorkerMixin, SimpleWorker):
    """RQ's SimpleWorker, traced."""


if TYPE_CHECKING or SpawnWorker is not None:

    class TracedSpawnWorker(TracedWorkerMixin, SpawnWorker):
        """RQ's SpawnWorker (from 2.2 on), traced; its work horses are traced as well."""

    __all__ += ["TracedSpawnWorker"]

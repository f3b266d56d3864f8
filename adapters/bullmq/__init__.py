"""BullMQ: jobs in their publishers' traces, in Python and in Node. BullMQ for Python 2.15 and newer.

The context travels where Node's BullMQ has it: ``opts["tm"]``, a text that is the JSON of an object. A Node worker with
``bullmq-otel`` continues what is published here, and a worker here what Node has published. It is written into a
copy of the caller's options.

Three things shape this file:

- A worker keeps its jobs' errors to itself: ``processJob`` never raises what a processor raised.
- What BullMQ does with a job of its own accord (retry, delay, promote, stalled jobs) is no publish: the job keeps its
  options, and has a CONSUMER span in its first publish's trace each time that it is processed.
- A scheduler's next job is made by the worker, from the options of the job before. It begins a trace of its own,
  else one trace would go on for ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from queueprop import guard
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.scope import Scope
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.handlers import run_inside
from queueprop.kit.hooks import Hooks
from queueprop.kit.jobs import Performance, performance_at_hand
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Source
from queueprop.kit.nesting import Mark
from queueprop.kit.on_demand import on_demand
from queueprop.settings import Settings

try:
    from bullmq import Job, custom_errors
except ModuleNotFoundError as error:
    if error.name not in ("bullmq", "redis"):
        raise
    raise missing_extra(__name__, "BullMQ", "bullmq") from None

from queueprop.adapters.bullmq.options import (
    SYSTEM,
    attributes_of,
    delay_in,
    destination_of,
    headers_in,
    omits_context,
)
from queueprop.adapters.bullmq.publishing import PUBLISHES, listed, publication_of
from queueprop.adapters.bullmq.publishing import Publish as Publish

if TYPE_CHECKING:
    from queueprop.adapters.bullmq.instrumentor import BullMQInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, BullMQInstrumentor="instrumentor")

__all__ = [
    "BULLMQ",
    "BullMQInstrumentor",
    "traced_consumer",
    "traced_publish",
]

F = TypeVar("F", bound=Callable[..., Any])


def traced_publish(publish: F, *, settings: Settings | None = None) -> F:
    """Wraps a call that publishes: ``add = traced_publish(queue.add)``.

    It may be a queue's ``add``, ``addBulk`` or ``upsertJobScheduler``, a flow producer's ``add`` or ``addBulk``, a
    ``functools.partial`` of one of them, or a coroutine function with the same arguments around it. The span ends when
    Redis has answered. ``settings`` are instead of those of the environment. Raises TypeError for anything else.
    """
    form = (
        "a queue's add, addBulk or upsertJobScheduler, or a flow producer's, as in traced_publish(queue.add)"
    )
    checks.check_call("traced_publish", publish, BULLMQ.name, PUBLISHES, form)
    hooks = Hooks(BULLMQ, checks.engine_of(settings, "traced_publish"))
    return calls.hooked(publish, listed(hooks.publish_async))


@overload
def traced_consumer(processor: F) -> F: ...
@overload
def traced_consumer(*, settings: Settings | None = None) -> Callable[[F], F]: ...
def traced_consumer(processor: F | None = None, *, settings: Settings | None = None) -> F | Callable[[F], F]:
    """Decorates a worker's processor, bare or with settings::

        @traced_consumer
        async def process(job, token): ...

        worker = Worker("orders", process)

    It runs inside the job's CONSUMER span. ``DelayedError`` and ``WaitingChildrenError`` are no failures. What a worker
    does around it (the completion, listeners, a job that stalled too often) is seen by ``BullMQInstrumentor``
    alone; together they make one span.
    """
    engine = checks.engine_of(settings, "traced_consumer")

    def decorate(decorated: F) -> F:
        checks.check_handler("traced_consumer", decorated, "a worker's processor, as in @traced_consumer")
        return run_inside(decorated, functools.partial(_processing, engine, decorated))

    return decorate if processor is None else decorate(processor)


class _BullMQ(Library):
    name = "bullmq"
    message_form = "job of BullMQ's"
    message_type = Job
    is_async = True

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        return publication_of(producer, args, kwargs, call)

    def message(self, job: Any) -> Message:
        opts = job.opts
        started, sent_at = job.attemptsStarted, job.timestamp
        return Message(
            headers=None if omits_context(opts) else headers_in(opts),
            id=calls.text(job.id),
            sent_at=sent_at / 1000 if isinstance(sent_at, (int, float)) and sent_at > 0 else None,
            # Not job.delay, which is 0 once it is due, and after a failure the time to the next attempt.
            delay=delay_in(opts),
            attempt=started if isinstance(started, int) and started > 0 else 1,
            native=job,
            attributes=attributes_of(job.name),
        )

    def consumed_from(self, job: Any, source: Source | None) -> Destination:
        return destination_of(job.queue, job.queue.name)


BULLMQ = _BullMQ()


# Processing


class _Performance(Performance):
    """One job being processed once."""

    def __init__(self, engine: Engine, owner: Any, job: Any) -> None:
        self.job = job
        super().__init__(engine.process(destination_of(owner, owner.name), BULLMQ.message(job)))
        self.process.expects_context = not omits_context(job.opts)


def _performance(engine: Engine, owner: Any, job: Any) -> _Performance | None:
    if not isinstance(job, Job) or _performance_of(job) is not None:
        return None
    try:
        return _Performance(engine, owner, job)
    except Exception as error:
        guard.fault("preparing the processing of a job of BullMQ", error)
        return None


def _performance_of(job: Any) -> _Performance | None:
    performance: _Performance | None = performance_at_hand(SYSTEM)
    return performance if performance is not None and performance.job is job else None


def _processing(engine: Engine, processor: Any, args: Arguments, kwargs: Options) -> Scope | None:
    job = next((it for it in (*args, *kwargs.values()) if isinstance(it, Job)), None)
    if job is None:
        checks.say_no_message(processor, f"a {BULLMQ.message_form}")
        return None
    performance = _performance(engine, job.queue, job)
    return None if performance is None else _Processing(performance)


class _Processing:
    """The scope of a decorated processor whose worker is not traced."""

    def __init__(self, performance: _Performance) -> None:
        self._performance = performance
        self._mark = Mark("perform", SYSTEM, work=performance)
        self.detach = performance.process.detach
        self.reattach = performance.process.reattach

    def open(self) -> None:
        self._mark.__enter__()
        self._performance.begin()

    def close(self, error: BaseException | None = None) -> None:
        if not self._mark.is_over:  # a coroutine that was awaited is told to end once more when it is gone
            self._mark.__exit__()
        self._performance.end(None if isinstance(error, _CONTROL_FLOW) else error)


_CONTROL_FLOW: tuple[type[BaseException], ...] = tuple(
    getattr(custom_errors, name)
    for name in ("DelayedError", "WaitingChildrenError")
    if hasattr(custom_errors, name)  # DelayedError: from BullMQ 3.1 on
)
"""By which a processor says that its job is to be processed again later."""

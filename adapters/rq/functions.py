"""A job's function, which opens the job's span itself where its worker is not traced."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

from rq import get_current_job

from queueprop.adapters.rq import collector
from queueprop.adapters.rq.collector import hand_over
from queueprop.adapters.rq.horses import watched
from queueprop.adapters.rq.performing import Performance, performance_of
from queueprop.engine.engine import Engine
from queueprop.kit import checks
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.handlers import run_inside
from queueprop.kit.kept import Kept

F = TypeVar("F", bound=Callable[..., Any])


def traced(function: F, engine: Engine) -> F:
    """The function inside the span of the job that it is called for. Raises TypeError for what is no function."""
    checks.check_handler("traced_consumer", function, "a job's function, as in @traced_consumer")

    def begin(args: Arguments, kwargs: Options) -> _Function | None:
        job = get_current_job()
        if job is None or performance_of(job):
            return None
        outer = _handled.find(job)
        if outer is not None and not outer.process.closed:
            return None  # a function of the same job's
        performance = Performance(engine, job, job.origin, job.connection)
        _handled.put(job, None, performance)
        return _Function(performance)

    return run_inside(function, begin)


_handled: Kept[Performance] = Kept()


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

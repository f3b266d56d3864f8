"""Work horses, as their parent sees them."""

from __future__ import annotations

import os
import time
from typing import Any

from queueprop import guard
from queueprop.adapters.rq import collector
from queueprop.adapters.rq.lines import Line, Told, unnamed_file
from queueprop.adapters.rq.messages import SYSTEM
from queueprop.adapters.rq.performing import Performance
from queueprop.engine.engine import Engine
from queueprop.engine.relay import records_for_children
from queueprop.kit.nesting import Mark, work_at_hand


class Horse:
    """A work horse as its parent sees it: the span that it should end, and the line on which it tells that."""

    def __init__(self, engine: Engine, job: Any, queue: Any, *, spawned: bool) -> None:
        self.job = job
        self.spawned = spawned
        self._pid = os.getpid()
        self._status: int | None = None
        self._stopped = False
        self.performance = Performance(
            engine, job, queue.name, queue.connection, started_at=time.time_ns() if spawned else None
        )
        self.line = self.performance.line = Line(unnamed_file() if spawned else None)
        if spawned:
            self.performance.process.is_reserve = (
                True  # the horse makes one of its own, if it has an SDK by then
            )
        else:
            self.performance.parent_measures = records_for_children(engine.instruments())
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
            collector.circuit.note(told.answered, performance.engine.settings.flush_timeout)
        if told is not None:
            performance.record_measured()
        if self._has_ended(told):
            performance.process.detach()
        else:
            self._end(told, failure)
        if not collector.circuit.is_open:
            collector.kept.release()

    def _end(self, told: Told | None, failure: Exception | None) -> None:
        performance = self.performance
        performance.begin()
        if self.spawned:
            performance.process.confirm()
        if collector.circuit.is_open:
            collector.kept.withhold(performance.process, performance.engine.settings.flush_timeout)
        if told is not None:
            performance.take_over(told)
        elif failure is None and (self._status != 0 or not self.spawned):
            performance.process.fail(*self._cause())
        performance.end(failure)

    @staticmethod
    def _has_ended(told: Told | None) -> bool:
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


def watching(horse: Horse) -> Mark:
    """For as long as its parent waits for it; in the horse itself, always."""
    return Mark("watch", SYSTEM, work=horse)


def watched() -> Horse | None:
    """The horse that this process waits for, or that it is."""
    horse: Horse | None = work_at_hand("watch", SYSTEM)
    return horse

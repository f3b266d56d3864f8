"""What task queues have in common: a job that is performed, the context in one of its options, worker processes.

A task queue keeps its job's error to itself, and its hooks see parts of what is done. So what is known of a job being
performed stands in a ``Performance``, which every hook below finds: ``performance_at_hand``.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Collection
from typing import Any

from opentelemetry.context import Context, attach, get_current

from queueprop import guard
from queueprop.engine.operations import Process
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.nesting import Mark, work_at_hand
from queueprop.process.flush import flush


class Performance:
    """One job being performed once.

    Args:
        process: its handling; the job is its message's ``native``.
        error: of a job that has failed before it began.
    """

    def __init__(self, process: Process, error: BaseException | None = None) -> None:
        self.process = process
        self.error = error

    def note(self, error: BaseException | None) -> None:
        """What the job raised, of which its library tells a hook: the first is the job's, others follow from it."""
        if self.error is None:
            self.error = error

    def begin(self) -> None:
        """Its span is current from now on."""
        self.process.open()

    def leave(self, failure: BaseException | None) -> None:
        """The call that performs it is over: the job is, where it is not another process's by now."""
        self.end(failure)

    def end(self, failure: BaseException | None = None) -> None:
        """Ends its span, with what it raised; ``failure`` is what came out of the library."""
        # An exception may be false. And whoever holds its traceback holds this frame.
        error, self.error = failure if self.error is None else self.error, None
        try:
            self.conclude(error)
        except Exception as fault:
            guard.fault("noting how a job has ended", fault)
        finally:
            self.process.close(error)

    def conclude(self, error: BaseException | None) -> None:
        """What else the span says at the end. For a job, SystemExit is a failure, whatever its status."""
        if isinstance(error, SystemExit):
            code = error.code
            self.process.fail("SystemExit", str(code) if isinstance(code, (int, str)) else "")


def perform(
    library: str, performance: Performance | None, wrapped: Wrapped, args: Arguments, kwargs: Options
) -> Any:
    """Makes the call that performs the job, inside its span; as it is where there is no performance.

    Whatever the job leaves behind as current is put back, in the frame that saw it: a time limit may be raised at any
    point of it, code of ours included.
    """
    if performance is None:
        return wrapped(*args, **kwargs)
    failure: BaseException | None = None
    before = get_current()
    with Mark("perform", library, work=performance):
        try:
            performance.begin()
            return wrapped(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            _leave(performance, failure, before)


async def perform_async(
    library: str, performance: Performance | None, wrapped: Wrapped, args: Arguments, kwargs: Options
) -> Any:
    """The same around a coroutine function."""
    if performance is None:
        return await wrapped(*args, **kwargs)
    failure: BaseException | None = None
    before = get_current()
    with Mark("perform", library, work=performance):
        try:
            performance.begin()
            return await wrapped(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            _leave(performance, failure, before)


def _leave(performance: Performance, failure: BaseException | None, before: Context) -> None:
    try:
        performance.leave(failure)
    finally:
        if get_current() is not before:
            attach(before)


def performance_at_hand(library: str) -> Any:
    """The innermost performance of this library's jobs that the code at hand runs in; None outside of any."""
    return work_at_hand("perform", library)


# The context in an option


def carrier_in(options: Any, name: str) -> Any:
    """What a job came with, which is input; None where there is nothing."""
    return options.get(name) if isinstance(options, dict) else None


def carrier_for(options: Any, name: str, apart_from: Collection[str] = ()) -> dict[str, Any]:
    """Where a publish writes its context: ours to write to, with what a forwarded job has, to be replaced.

    ``apart_from`` are entries of an adapter's own beside the context, which go with each publish anew.
    """
    found = carrier_in(options, name)
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if key not in apart_from}


def with_carrier(options: Any, name: str, carrier: object) -> Any:
    """The options with this context: a copy, or themselves where nothing changes. Without any, an old one goes."""
    if not isinstance(options, dict) or (not carrier and name not in options):
        return options
    copied = copy.copy(options)  # which may be a dict of any class
    if carrier:
        copied[name] = carrier
    else:
        del copied[name]
    return copied


SCHEDULE = "schedule"
"""Beside the context of a schedule's later jobs: the traceparent of its making."""


def made_by(headers: dict[str, Any], carrier: Any) -> Any:
    """The traceparent of a schedule's making, which its next job is linked to, however many there were between.

    It replaces that of the job before in ``headers``, which are the next one's. ``carrier`` is what the job before came
    with. None where it came with nothing.
    """
    made = carrier_in(carrier, SCHEDULE) or carrier_in(carrier, _TRACEPARENT)
    if made is not None:
        headers[_TRACEPARENT] = made
    return made


_TRACEPARENT = "traceparent"


# Worker processes


AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"


def lead_to_launcher() -> None:
    """Before workers are spawned, which are programs that ``opentelemetry-instrument`` shall find as well: until 0.65
    it takes itself out of PYTHONPATH. Nothing where this program was not started by it.
    """
    file = getattr(sys.modules.get(AUTO_INSTRUMENTATION), "__file__", None)
    if file is None:
        return
    launcher = os.path.dirname(file)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if launcher not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [launcher, *paths]))
    os.environ.update(guard.environment())


class Children:
    """Children of multiprocessing hand over their spans before they end: a forked one runs no exit hooks.

    For as long as this object is kept. ``timeout``: seconds that one may take.
    """

    def __init__(self, timeout: float) -> None:
        # Here, where a worker is set up: a program that only publishes has no need of it.
        import multiprocessing
        from multiprocessing.util import register_after_fork

        self._timeout = timeout
        register_after_fork(self, Children._begin)
        if multiprocessing.parent_process() is not None:
            self._begin()

    def _begin(self) -> None:
        from multiprocessing.util import Finalize

        # Behind the finalizers of others, which may end spans.
        Finalize(None, flush, (self._timeout,), exitpriority=-900)

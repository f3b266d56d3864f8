"""``flush()``: hand over what is recorded, in bounded time. For a process that ends without its exit hooks.

Needs no SDK: without one nothing is held back, and there is nothing to hand over.
"""

from __future__ import annotations

import logging
import mmap
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry import metrics, trace

from queueprop import guard
from queueprop.settings import Settings

Task = Callable[[], None]


def flush(timeout: float | None = None) -> bool:
    """Asks the global tracer and meter providers to hand over what they hold, and waits.

    For a child that ends in ``os._exit``, which runs no exit hooks, and for whoever freezes or kills a
    process between two messages.

    Arguments:
        timeout: seconds that it may take; by default the setting ``flush_timeout``. A hard bound: an
            exporter blocks for as long as its own timeout and retries last, and the SDK's batch processor
            does not look at the timeout that it is given. So it is called in daemon threads, which are left
            behind when they are late. Under gevent and eventlet these are greenlets: the bound holds as far as
            the exporter lets others run, as one does that sends through Python's sockets.

    Returns whether everything was handed over in time. What the providers raise is not raised here; an
    exception that a signal handler raises meanwhile (a time limit, Ctrl-C) goes through. In an exit hook, on
    Python 3.12 and later, no thread can be started any more and the answer is False; the providers' own
    hooks flush there. False at once, too, where the end of the process has waited in vain already.
    """
    if is_given_up():
        return False
    seconds = min(Settings().flush_timeout if timeout is None else timeout, threading.TIMEOUT_MAX)
    began = time.monotonic()
    answers: list[bool] = []
    try:
        make_hub()
        for provider, run in (
            (trace.get_tracer_provider, run_for_spans),
            (metrics.get_meter_provider, run_for_metrics),
        ):
            run(partial(_flush_provider, provider, int(seconds * 1000), answers))
        in_time = wait_until(lambda: len(answers) == 2, began + seconds)
    except Exception as error:  # no thread can be started, or a greenlet's hub cannot wait
        if guard.is_not_ours(error):
            raise
        guard.log(logging.DEBUG, "flush: %s", error)
        return False
    if in_time:
        last_in_vain.clear()
    else:
        last_in_vain.note(began)
    return in_time and all(answers)


def beside(task: Task) -> None:
    """Runs it in a daemon thread. Raises RuntimeError where none can be started."""
    threading.Thread(target=task, name="queueprop-flush", daemon=True).start()


run_for_spans: Callable[[Task], None] = beside
"""Where the spans' provider is asked. A lock of the SDK is a native one or a greenlet's, as it was made before gevent's
or eventlet's patching or after: who has set up the provider may know a thread of the same kind.
"""

run_for_metrics: Callable[[Task], None] = beside
"""The same for the meter provider."""


def _never() -> bool:
    return False


is_given_up: Callable[[], bool] = _never
"""Whether the last hand-over of this process was waited for in vain: what comes after it at the end would be, too."""


def wait_until(
    is_done: Callable[[], bool], deadline: float, sleep: Callable[[float], object] | None = None
) -> bool:
    """Waits until that is so, at the latest to the deadline (``time.monotonic()``). Returns whether it is.

    ``sleep`` is ``time.sleep`` as it is now; another one for a thread that is older than gevent's patching.

    It looks again and again: what is waited for may happen in a native thread and be waited for in a greenlet, and no
    primitive wakes the one from the other in every library and order of patching. It is late by a fifth at most.
    """
    pause = 0.0002
    while not is_done():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        (sleep or time.sleep)(min(pause, left))
        pause = min(pause * 1.2, 0.02)
    return True


def make_hub() -> None:
    """Makes the hub that this thread waits in under gevent. To be called before another thread has work that may wait.

    Where gevent has patched late, native threads wait in hubs, each in its own. The first of all imports modules; who
    imports what another thread is importing waits for it; and that wait wants a hub. So two first ones at a time end
    in RecursionError.
    """
    if waits_in_gevent():
        gevent: Any = sys.modules["gevent"]
        try:
            gevent.get_hub()
        except Exception as error:
            if guard.is_not_ours(error):
                raise
            guard.log(logging.DEBUG, "gevent's hub: %s", error)  # whoever waits then has it raised


def waits_in_gevent() -> bool:
    """Whether gevent has patched."""
    return getattr(time.sleep, "__module__", None) == "gevent.hub"


class LastInVain:
    """When the last wait in vain began, here or in a child that was forked: waits add up, and a process has to end.

    In memory that a forked child shares, on the clock of ``time.monotonic()``, which is the system's.
    """

    def __init__(self) -> None:
        self._began = mmap.mmap(-1, _TIME.size)

    def note(self, began: float) -> None:
        """A wait that began then was in vain. One of less than a second says nothing."""
        if time.monotonic() - began >= 1:
            self._began[:] = _TIME.pack(began)

    def clear(self) -> None:
        self._began[:] = _TIME.pack(0.0)

    def began(self, within: float, now: float) -> float | None:
        """When that was, if it is less than so many seconds ago."""
        (began,) = _TIME.unpack(self._began[:])
        return began if began and 0 <= now - began < within else None


_TIME = struct.Struct("d")

last_in_vain = LastInVain()


def _flush_provider(provider: Callable[[], object], milliseconds: int, answers: list[bool]) -> None:
    try:
        force_flush = getattr(provider(), "force_flush", None)
        # The SDK's meter provider returns None, or raises, in some versions: only False says that it failed.
        answers.append(force_flush is None or force_flush(milliseconds) is not False)
    except Exception as error:
        guard.log(logging.DEBUG, "flush: %r", error)
        answers.append(False)

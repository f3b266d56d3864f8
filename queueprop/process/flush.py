"""``flush()``: hand over what is recorded, in bounded time. For a process that ends without its exit hooks.

Needs no SDK: without one nothing is held back, and there is nothing to hand over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from opentelemetry import metrics, trace

from queueprop.settings import Settings

_logger = logging.getLogger("queueprop")


def flush(timeout: float | None = None) -> bool:
    """Asks the global tracer and meter providers to hand over what they hold, and waits.

    For a child that ends in ``os._exit``, which runs no exit hooks, and for whoever freezes or kills a
    process between two messages.

    Arguments:
        timeout: seconds that it may take; by default the setting ``flush_timeout``. A hard bound: an
            exporter blocks for as long as its own timeout and retries last, and the SDK's batch processor
            does not look at the timeout that it is given. So it is called in daemon threads, which are left
            behind when they are late.

    Returns whether everything was handed over in time. What the providers raise is not raised here; an
    exception that a signal handler raises meanwhile (a time limit, Ctrl-C) goes through. In an exit hook, on
    Python 3.12 and later, no thread can be started any more and the answer is False; the providers' own
    hooks flush there.
    """
    seconds = min(Settings().flush_timeout if timeout is None else timeout, threading.TIMEOUT_MAX)
    deadline = time.monotonic() + seconds
    answers: SimpleQueue[bool] = SimpleQueue()
    providers = (trace.get_tracer_provider, metrics.get_meter_provider)
    for provider in providers:
        if not _started(_flush_provider, provider, int(seconds * 1000), answers):
            return False
    handed_over = [_answer(answers, deadline) for _ in providers]  # wait for each, also when one has failed
    return all(handed_over)


def _flush_provider(provider: Callable[[], object], milliseconds: int, answers: SimpleQueue[bool]) -> None:
    try:
        force_flush = getattr(provider(), "force_flush", None)
        # The SDK's meter provider returns None, or raises, in some versions: only False says that it failed.
        answers.put(force_flush is None or force_flush(milliseconds) is not False)
    except Exception as error:
        _logger.debug("flush: %r", error)
        answers.put(False)


def _started(target: Callable[..., None], *args: Any) -> bool:
    try:
        threading.Thread(target=target, args=args, name="queueprop-flush", daemon=True).start()
    except RuntimeError as error:
        _logger.debug("flush: %s", error)
        return False
    return True


def _answer(answers: SimpleQueue[bool], deadline: float) -> bool:
    try:
        return answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        return False

"""``python -m integration.torture.programs LIBRARY publish|consume URL QUEUE [WHAT]``."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from typing import Any

from opentelemetry import trace

from .ledger import QUEUE, URL, await_going_on, begin, tell

LONGEST = 60.0
"""Seconds that a producer tries to have one message confirmed."""


def main(library: str, role: str, url: str, queue: str, what: str = "{}") -> None:
    os.environ[URL], os.environ[QUEUE] = url, queue
    _end_with_the_torture()
    begin()
    program = importlib.import_module(f"{__package__}.{library}")
    if role == "consume":
        program.consume(url, queue)
        return
    _publish(program, url, queue, **json.loads(what))


def _end_with_the_torture() -> None:
    """Nothing of it is left where that is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1


def _publish(
    program: Any, url: str, queue: str, count: int, pause: float, fates: dict[str, str], hold: int
) -> None:
    """``count`` messages, each until it is confirmed, as an outbox does it. At number ``hold`` it is told to go on."""
    publish: Any = None
    with contextlib.ExitStack() as stack:
        for number in range(count):
            if number == hold:
                tell("holds")
                await_going_on()
            fate = fates.get(str(number))
            body = f"{number} {fate}" if fate else str(number)
            with trace.get_tracer("torture").start_as_current_span("order") as span:
                trace_id = f"{span.get_span_context().trace_id:032x}"
                end = time.monotonic() + LONGEST
                while True:
                    try:
                        if publish is None:
                            publish = stack.enter_context(program.connect(url, queue))
                        tell("attempt", id=str(number), trace=trace_id)
                        publish(body)
                        break
                    except Exception as error:
                        called = publish is not None
                        tell("failed" if called else "unconnected", id=str(number), error=repr(error)[:200])
                        if time.monotonic() > end:
                            raise
                    publish = None
                    with contextlib.suppress(Exception):
                        stack.close()
                    time.sleep(0.1)
            tell("published", id=str(number), trace=trace_id)
            time.sleep(pause)


if __name__ == "__main__":
    main(*sys.argv[1:])

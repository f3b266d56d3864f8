"""What the programs of the torture tell of, a line each in one file, whichever process it is, however that ends.

A body is a number, and behind it, where there is one, what is to befall the process that handles it first.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry import trace

LEDGER = "_QUEUEPROP_TORTURE_LEDGER"
TRACED = "_QUEUEPROP_TORTURE_TRACED"
"""The library that is instrumented; without it none is, and there is no SDK."""
SECONDS = "_QUEUEPROP_TORTURE_SECONDS"
"""What a handler takes."""
URL = "_QUEUEPROP_TORTURE_URL"
QUEUE = "_QUEUEPROP_TORTURE_QUEUE"
AT_ONCE = "_QUEUEPROP_TORTURE_AT_ONCE"
"""How many messages a worker has in hand at most."""


LINGERING = 3.0
"""Seconds."""


def begin() -> None:
    """What the program of a user does at its start."""
    if TRACED not in os.environ:
        return
    import queueprop
    from queueprop.sdk import configure_tracing

    configure_tracing("torture")
    queueprop.instrument(os.environ[TRACED])


def tell(kind: str, **it: object) -> None:
    line = json.dumps({"kind": kind, "pid": os.getpid(), "at": time.monotonic(), **it}) + "\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def at_once() -> int:
    return int(os.environ.get(AT_ONCE, "20"))


def is_over() -> bool:
    """Whether the program is asked to end."""
    return Path(f"{os.environ[LEDGER]}.over").exists()


def await_going_on() -> None:
    while not Path(f"{os.environ[LEDGER]}.on").exists():
        time.sleep(0.02)


def handle(body: str) -> None:
    """What every handler does: it tells of the delivery, does what the body asks for, and takes its time."""
    number, lingers = _begun(body)
    try:
        time.sleep(LINGERING if lingers else _seconds())
    finally:
        tell("handled", id=number)


async def handle_async(body: str) -> None:
    number, lingers = _begun(body)
    try:
        await asyncio.sleep(LINGERING if lingers else _seconds())
    finally:  # a library may cancel it where its connection is gone
        tell("handled", id=number)


def _begun(body: str) -> tuple[str, bool]:
    """Its number, and whether it is to be handled for long."""
    number, _, fate = body.partition(" ")
    context = trace.get_current_span().get_span_context()
    tell("delivered", id=number, trace=f"{context.trace_id:032x}", span=f"{context.span_id:016x}")
    with trace.get_tracer("torture").start_as_current_span("work"):
        if not fate or not _is_first(number):
            return number, False
        if fate == "linger":
            tell("lingers")
        else:
            _FATES[fate]()
    return number, fate == "linger"


def _seconds() -> float:
    return float(os.environ.get(SECONDS, "0.002"))


def _is_first(number: str) -> bool:
    with open(os.environ[LEDGER], "rb") as file:
        told = (json.loads(line) for line in file if line.startswith(b'{"kind": "delivered"'))
        return [it["id"] for it in told].count(number) == 1


def _die(*pids: int) -> None:
    for pid in pids:
        tell("dying", who=pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    signal.pause()


def _terminate(pid: int) -> None:
    tell("terminated", who=pid)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)


def _exit() -> None:
    tell("dying", who=os.getpid())
    os._exit(3)


def _fork(in_child: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        in_child()
        sys.exit()  # unless it has left already
    os.waitpid(pid, 0)


def _work() -> None:
    with trace.get_tracer("torture").start_as_current_span("work"):
        pass


def _work_and_exit() -> None:
    _work()
    os._exit(0)


def _close_everything() -> None:
    os.closerange(3, 4096)


def _close_and_exit() -> None:
    _close_everything()
    _work_and_exit()


def _close_and_leave() -> None:
    _close_everything()
    _work()


def _close_own() -> None:
    """But for sockets, by which a job's end is told."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))
        except OSError:  # the listing's own
            continue


_FATES: dict[str, Callable[[], Any]] = {
    "kill": lambda: _die(os.getpid()),
    "kill parent": lambda: _die(os.getppid(), os.getpid()),
    "terminate": lambda: _terminate(os.getpid()),
    "terminate parent": lambda: _terminate(os.getppid()),
    "exit": _exit,
    "fork": lambda: _fork(_work_and_exit),
    "fork and leave": lambda: _fork(_work),
    "fork and close": lambda: _fork(_close_and_exit),
    "fork, close and leave": lambda: _fork(_close_and_leave),
    "close": _close_own,
}

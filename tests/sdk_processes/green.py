"""A program under gevent or eventlet, for tests/test_exit.py: ``green.py <library> <order> <scenario>``.

The order is when the library patches: ``early``, ``between`` our import and configure_tracing, ``late`` after that, or
when spans were ``exported`` already.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

A_HANG = 60  # seconds

library, order, scenario = sys.argv[1:]
green: Any = importlib.import_module(library)


def patch() -> None:
    if library == "eventlet":
        green.monkey_patch()
    else:
        importlib.import_module("gevent.monkey").patch_all()


if order == "early":
    patch()

import threading  # noqa: E402

from opentelemetry import trace  # noqa: E402

from queueprop.process import flush as flushing  # noqa: E402
from queueprop.process.flush import flush  # noqa: E402
from queueprop.sdk import configure_tracing  # noqa: E402

if order == "between":
    patch()
configure_tracing("worker", exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "20")))


def span(name: str) -> None:
    trace.get_tracer("worker").start_span(name).end()


def work() -> None:
    """Never waits long, nor works long without a pause."""
    while True:
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass
        green.sleep(0)


def normal() -> None:
    """A flush, a child, and the ends of both."""
    span("flushed")
    print("flushed", flush(20), flush=True)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    span("parent" if pid else "child")


class SlowImport:
    """Takes a while to find gevent's last import before its first hub. Another thread gets there meanwhile."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pprint":
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                pass


def first_hubs() -> None:
    """Nobody has waited yet when a flush and the thread that exports do, and the first hub takes a while."""
    sys.modules.pop("pprint", None)
    sys.meta_path.insert(0, SlowImport())
    span("flushed")
    print("flushed", flush(20), flush=True)


def sigterm_in_first_hub() -> None:
    """The first wait of the program is just making gevent's hub when the signal comes."""
    hub: Any = importlib.import_module("gevent.hub").Hub
    of_the_class = hub.backend

    def backend(self: object) -> object:
        hub.backend = of_the_class
        signal.raise_signal(signal.SIGTERM)
        return of_the_class.fget(self)

    hub.backend = property(backend)
    span("done")
    os.write(1, b"ready\n")
    time.sleep(A_HANG)


def bounded() -> None:
    """Others go on while a flush waits in vain.

    The flush's own clock stands still until they have done so for ten turns: where they do not, it never ends. By the
    machine's clock a machine that stood still would look like others that could not go on.
    """
    turns, began = 0, time.monotonic()

    def count() -> None:
        nonlocal turns
        while True:
            green.sleep(0.01)
            turns += 1

    def monotonic() -> float:
        return time.monotonic() if turns > 10 else began

    setattr(flushing, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))  # noqa: B010
    green.spawn(count)
    span("lost")
    print("flushed", flush(1), "others ran", turns > 10, flush=True)


def sigterm() -> None:
    span("done")
    try:
        with trace.get_tracer("worker").start_as_current_span("in hand"):
            os.write(1, b"ready\n")
            while True:
                time.sleep(0.02)
    finally:
        print("finally", flush=True)


def sigterm_in_thread() -> None:
    """A thread, which is a greenlet here, works while the main one waits for it."""
    span("done")
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    os.write(1, b"ready\n")
    thread.join()


def sigterm_in_greenlet() -> None:
    span("done")
    greenlet = green.spawn(work)
    os.write(1, b"ready\n")
    if library == "eventlet":
        greenlet.wait()
    else:
        greenlet.join()


if order == "exported":
    span("first")
    flush(20)
if order in ("late", "exported"):
    patch()
if __name__ == "__main__":
    globals()[scenario]()

"""The program of tests/test_exit.py: ``worker.py <scenario>`` records spans and ends in one of many ways."""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import signal as _set_handler
from typing import NoReturn

from opentelemetry import trace

import queueprop
from queueprop.process.flush import flush
from queueprop.sdk import configure_tracing


def span(name: str) -> None:
    trace.get_tracer("worker").start_span(name).end()


def configure() -> None:
    seconds = os.environ.get("EXIT_TIMEOUT", "20")
    if seconds:
        configure_tracing("worker", exit_timeout=float(seconds))
    else:
        configure_tracing("worker")


def wait_for_signal() -> NoReturn:
    os.write(1, b"ready\n")  # not print(): a handler may print, too, and that must not be entered twice
    idle()


def idle() -> NoReturn:
    while True:
        # Not signal.pause(): Python does not see a signal that comes just before it until the next one.
        time.sleep(0.02)


def normal() -> None:
    configure()
    span("done")


def sys_exit() -> None:
    configure()
    span("done")
    sys.exit(3)


def uncaught() -> None:
    configure()
    span("done")
    raise KeyError("on purpose")


def sigterm() -> None:
    configure()
    atexit.register(print, "exit hook", flush=True)
    span("done")
    try:
        with trace.get_tracer("worker").start_as_current_span("in hand"):
            wait_for_signal()
    finally:
        print("finally", flush=True)


def sigterm_after_main() -> None:
    """The main thread has ended, and the interpreter waits for a thread that never ends."""
    configure()
    span("done")
    main = threading.main_thread()

    def forever() -> None:
        # The thread is waited for from here on: the main thread has left its program.
        main.join()
        print("ready", flush=True)
        threading.Event().wait()

    threading.Thread(target=forever).start()


def sigterm_swallowed() -> None:
    configure()
    span("done")
    try:
        wait_for_signal()
    except BaseException as error:
        print("swallowed", repr(error), flush=True)
    threading.Event().wait()


def _mine(signum: int, frame: object) -> None:
    span("mine")
    print("my handler", flush=True)
    sys.exit(7)


def handler_before() -> None:
    signal.signal(signal.SIGTERM, _mine)
    configure()
    wait_for_signal()


def handler_after() -> None:
    configure()
    signal.signal(signal.SIGTERM, _mine)
    wait_for_signal()


def default_comes_back() -> None:
    """As a server does it: a handler while it serves, then what was there before, and the signal once more."""
    before = signal.signal(signal.SIGTERM, _mine)
    configure()
    span("done")
    signal.signal(signal.SIGTERM, before)
    try:
        with trace.get_tracer("worker").start_as_current_span("in hand"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        print("finally", flush=True)


def default_in_a_thread() -> None:
    """Configured in another thread, which can set no handler; later the main thread sets the default."""
    thread = threading.Thread(target=configure)
    thread.start()
    thread.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    span("done")
    wait_for_signal()


def sigterm_consumer() -> None:
    """An asyncio consumer that hands over by itself, in a thread, before it ends."""

    async def main() -> None:
        try:
            os.write(1, b"ready\n")
            while True:
                await asyncio.sleep(0.01)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, flush)

    configure()
    span("done")
    asyncio.run(main())


def sigterm_executor() -> None:
    """An asyncio program that runs its blocking work in threads, which the interpreter waits for at its end."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, threading.Event().wait)
        os.write(1, b"ready\n")
        while not work.done():
            # Not ``await work``: Python does not see a signal that comes just before it blocks until the next one.
            await asyncio.sleep(0.02)

    configure()
    span("done")
    asyncio.run(main())


def sigterm_hook_of_others() -> None:
    """An exit hook of somebody else's that never ends."""
    atexit.register(threading.Event().wait)
    configure()
    span("done")
    wait_for_signal()


class _Bad(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if os.environ["LOGGING"] == "blocks":
            threading.Event().wait()
        raise OSError("the log is full")


def _log_badly() -> None:
    logging.getLogger().addHandler(_Bad())


def sys_exit_logging() -> None:
    _log_badly()
    sys_exit()


def sigterm_swallowed_logging() -> None:
    _log_badly()
    sigterm_swallowed()


def fork() -> None:
    """The parent's span is unsent when it forks; the children end normally, in sys.exit, and in os._exit."""
    configure()
    span("parent")
    for name in ("end", "sys.exit", "os._exit"):
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            continue
        span(name)
        if name == "sys.exit":
            sys.exit(0)
        if name == "os._exit":
            print("flushed", flush(20), flush=True)
            os._exit(0)
        return


def sigterm_in_fork() -> None:
    """SIGTERM comes while the hooks of the fork are running, before ours: in the child, then in the parent."""
    target = "child"

    def terminate(who: str) -> None:
        if who == target:
            signal.raise_signal(signal.SIGTERM)

    os.register_at_fork(
        after_in_parent=lambda: terminate("parent"), after_in_child=lambda: terminate("child")
    )
    configure()
    pid = os.fork()
    if not pid:
        idle()
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    target = "parent"
    span("parent")
    if os.fork():
        idle()


def fork_after_export() -> None:
    """The parent has an open connection when it forks, and uses it again."""
    configure()
    span("first")
    flush(20)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    span("parent" if pid else "child")
    flush(20)


def ids() -> None:
    """Jobs that seed the random module, in children and in the parent."""
    configure()
    for _ in range(4):
        pid = os.fork()
        random.seed(1)
        span("seeded")
        if not pid:
            return
        os.waitpid(pid, 0)


def _job(method: str) -> None:
    span(method)


def _configured_job(method: str) -> None:
    configure()
    span(method)


def _forking_job(method: str) -> None:
    configure()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    span(f"{method}, {'parent' if pid else 'child'}")


def multiprocessing_forks() -> None:
    _run("spawn", _forking_job, "spawn")


def _finalized_job(method: str) -> None:
    configure()
    multiprocessing.util.Finalize(None, span, (method,), exitpriority=1)


def multiprocessing_finalizers() -> None:
    for method in ("fork", "spawn", "forkserver"):
        _run(method, _finalized_job, method)


def _run(method: str, target: object, *arguments: str) -> None:
    process = multiprocessing.get_context(method).Process(target=target, args=arguments)  # type: ignore[attr-defined]
    process.start()
    process.join()
    print("exitcode", process.exitcode, flush=True)


def multiprocessing_inherited() -> None:
    configure()
    span("parent")
    _run("fork", _job, "fork")


def multiprocessing_configured() -> None:
    for method in ("fork", "spawn", "forkserver"):
        _run(method, _configured_job, method)


def multiprocessing_imported() -> None:
    """The main module configures at its top, as programs do: see the end of this file."""
    for method in ("spawn", "forkserver"):
        _run(method, _job, method)


def multiprocessing_pool() -> None:
    """The pool's exit terminates its workers."""
    configure()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(_job, ["a", "b", "c", "d"])


def multiprocessing_terminated() -> None:
    configure()
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")

    def job() -> None:
        span("terminated")
        os.write(writer, b"r")
        idle()

    process = context.Process(target=job)
    process.start()
    os.read(reader, 1)
    process.terminate()
    process.join()
    print("exitcode", process.exitcode, flush=True)


def _signal_that_python_does_not_notice(goes_on: bool = False) -> None:
    """The main thread blocks; another one takes the signal, so that it interrupts nothing."""
    reader, writer = os.pipe()

    def take() -> None:
        where = Path(
            f"/proc/{os.getpid()}/wchan"
        )  # the main thread is in the kernel; some of those do not tell
        for _ in range(100):
            if "pipe" in where.read_text():
                break
            time.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if goes_on:
            time.sleep(0.5)
            os.write(writer, b"late")

    threading.Thread(target=take, daemon=True).start()
    print("read", os.read(reader, 4), flush=True)


def _in_process_object(target: Callable[[], object]) -> None:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    print("exitcode", process.exitcode, flush=True)


def unnoticed() -> None:
    def job() -> None:
        span("done")
        _signal_that_python_does_not_notice()

    configure()
    _in_process_object(job)


def unnoticed_after_asyncio() -> None:
    """Which has a descriptor of its own while it handles a signal, and then sets none."""

    async def handle_a_signal() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.remove_signal_handler(signal.SIGUSR1)

    def job() -> None:
        span("done")
        asyncio.run(handle_a_signal())
        _signal_that_python_does_not_notice()

    configure()
    _in_process_object(job)


def unnoticed_by_handler_of_program() -> None:
    _unnoticed_by(signal.signal)


def unnoticed_by_handler_of_program_early() -> None:
    """Set by the function that was imported by its name, before ours was there."""
    _unnoticed_by(_set_handler)


def _unnoticed_by(set_handler: Callable[..., object]) -> None:
    calls = []

    def job() -> None:
        set_handler(signal.SIGTERM, lambda *_: calls.append(1))
        _signal_that_python_does_not_notice(goes_on=True)
        time.sleep(0.5)
        print("calls", len(calls), flush=True)

    configure()
    _in_process_object(job)


def bounded_flush() -> None:
    configure()
    span("lost")
    print("flushed", flush(0.2), flush=True)
    os._exit(0)


def bounded_fork() -> None:
    configure()
    pid = os.fork()
    if not pid:
        span("lost")
        return
    os.waitpid(pid, 0)
    print("child ended", flush=True)


def measure() -> None:
    """A message that came without a context."""
    with queueprop.process_span(queueprop.Destination("memory", "orders"), queueprop.Message({})):
        pass


def measured() -> None:
    configure()
    measure()
    if os.environ["END"] == "at_sigterm":
        wait_for_signal()
    if os.environ["END"] == "in_os_exit":
        flush(20)
        os._exit(0)


def measured_in_children() -> None:
    """The parent has two to tell when it forks, each child one of its own."""
    configure()
    measure()
    measure()
    for _ in range(2):
        if os.environ["METHOD"] == "multiprocessing":
            child = multiprocessing.get_context("fork").Process(target=measure)
            child.start()
            child.join()
            continue
        pid = os.fork()
        if not pid:
            measure()
            return
        os.waitpid(pid, 0)


def measured_while_exporting() -> None:
    """It forks when it is told that its export is under way."""
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
    configure()
    measure()
    threading.Thread(target=flush, args=(20,), daemon=True).start()
    while not told:
        time.sleep(0.005)
    pid = os.fork()
    if not pid:
        measure()
        print("flushed", flush(20), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    os._exit(0)


if os.environ.get("CONFIGURE_ON_IMPORT"):
    configure()

if __name__ == "__main__":
    globals()[sys.argv[1]]()

"""The last spans of a process are handed over, however it ends, and that never holds it up for long.

What ends how:

- a normal end, ``sys.exit``, an exception: an ``atexit`` hook. Also in a child of ``os.fork`` that ends so.
- a child of ``multiprocessing``: a finalizer of its own (forked ones run no ``atexit`` hooks of the parent).
- a child of a pool of billiard's, which is Celery's prefork pool: it runs neither. Its hand-over comes after the
  pool's ``on_process_exit``, and with it after Celery's signal ``worker_process_shutdown``.
- SIGTERM, where it would have killed the process by default: the handler raises ``SystemExit(143)`` in the
  main thread, so that ``finally`` blocks and exit hooks run, and flushes nothing itself. 143 is what a shell
  and a container report for a death by SIGTERM (a systemd unit wants ``SuccessExitStatus=143``). Whoever has
  a handler keeps it, and may install one at any time; where they put the default back (uvicorn does, when it has
  served), it is ours again.
- SIGTERM, and the main thread does not end: something swallowed ``SystemExit``, another thread keeps the
  interpreter, or the main thread had ended before. By default the process would be dead, so it ends all the
  same, with 143, once the spans are handed over.
- SIGTERM of a child of ``multiprocessing``, just before its main thread blocks: Python does not notice it, so it is
  sent again.
- ``os._exit`` and SIGKILL run nothing: call ``queueprop.process.flush.flush()`` before the former.

How long that takes, when the Collector is dead: at most the timeout (5 s), from the first of these ends that is
reached, and what ``flush()`` or a forked child has just waited in vain is counted in. After SIGTERM the process is
gone one second later at the latest, whatever its own code does meanwhile. Of forked children one waits in vain; for
half a minute the others try briefly.

With gevent and eventlet, patched in whichever order, what has to run beside the main thread is a greenlet: where the
program neither waits nor ends after SIGTERM, it gets no turn. OpenTelemetry's SDK before 1.34 cannot be flushed where
eventlet was patched after it was set up: its own thread wakes no greenlet of another. From Python 3.12 on, under
gevent, the lookup of the Collector's name blocks at the end, and has no bound of ours.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from multiprocessing.process import parent_process
from multiprocessing.util import Finalize, register_after_fork
from types import BuiltinFunctionType, FrameType
from typing import Any, Generic, Literal, TypeVar

from queueprop import guard
from queueprop.process import sigterm
from queueprop.process.flush import Task, last_in_vain, make_hub, wait_until
from queueprop.process.wakeup import Wakeup

SIGTERM_STATUS = 128 + signal.SIGTERM

_LAST_SECOND = 1.0
"""Beyond the timeout, for who comes to hand over only then. Less, where the timeout is."""

_TRY_AGAIN = 30.0
_BRIEFLY = 0.2
"""When a wait was in vain, no forked child waits as long again for so many seconds, but only so briefly: a pool that
replaces its children would otherwise work no faster than a dead Collector lets it.
"""


_Request = Literal["end now", "end in order", "again"]


class HandOver:
    """Calls ``shutdown`` once, at the end of the process and of each of its children.

    A call that may block has a bound only in a thread of its own, and so has an end that SIGTERM asks for. The process
    has two threads for them from the beginning, since from Python 3.12 on an interpreter that is ending starts none.
    A forked child starts them when they are needed: most need none, and a work horse of RQ's is forked for each job.

    Arguments:
        flush: hands over what there is by now, and may block.
        shutdown: hands over what is left, and may block.
        timeout: seconds that the process waits for it.
        child_timeout: the same for a forked child.
    """

    def __init__(
        self,
        flush: Callable[[], object],
        shutdown: Callable[[], object],
        timeout: float,
        child_timeout: float,
    ) -> None:
        self._flush = flush
        self._shutdown = shutdown
        self._timeout = timeout
        self._child_timeout = child_timeout
        self._is_child = False
        self._terminated = False
        self._forking = False
        self._missed_in = 0
        self._may_start_late = False
        self._start_thread: Callable[[Callable[[], None]], object] = _daemon
        self._wakeup = Wakeup()
        self._renew()

    def install(self) -> None:
        """Once a process; children inherit it."""
        self._may_start_late = _at_threads_end(self._start_in_child)
        self._sleep = time.sleep
        self._start_all()
        handler = self.on_sigterm
        if native := _native_start():
            self._wakeup.install(native, handler)
        sigterm.stand_in_for_default(handler)
        if parent_process() is None:
            atexit.register(self.at_exit)
        # Else the finalizer does it, behind those of others: from Python 3.13 on exit hooks are before all of these.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork,
                after_in_child=self._in_forked_child,
            )
        # A child of multiprocessing forgets the finalizers that it inherits, and then runs this.
        register_after_fork(self, HandOver._in_new_process_object)
        self._in_process_object()

    def run(self, task: Task) -> None:
        """Runs it, after those before it, in a thread of the kind that there was when this was made."""
        self._tasks.put(task)
        self._start("work")

    def is_given_up(self) -> bool:
        """Whether the last spans of this process were waited for in vain."""
        return self._given_up

    def at_exit(self) -> None:
        """The exit hook: waits until the spans are handed over, but not longer than the timeout."""
        self._reached = True
        if not self._hand_over():
            self._tell()

    def on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """The handler, where there was none. A second one changes nothing: a launcher that passes on what its
        process group got as well is common.
        """
        self._wakeup.seen()
        if self._forking:
            # Python swallows what is raised in a fork's hooks, and a child has no threads yet.
            self._missed_in = os.getpid()
            return
        if self._terminated:
            return
        if _makes_hub(frame):
            self._request("again")
            return
        self._terminated = True
        sigterm.begin_end()
        self._begin(time.monotonic())
        make_hub()
        ends_already = self._reached or _past_the_program(frame)
        self._request("end now" if ends_already else "end in order")
        if not ends_already:
            _raise_in_main(SystemExit(SIGTERM_STATUS))

    def _renew(self) -> None:
        self._deadline = inf
        self._reached = False
        self._handed_over = False
        self._given_up = False
        self._is_brief = False
        self._told = False
        self._tasks: _Mailbox[Task] = _Mailbox()
        self._sigterm: _Mailbox[_Request] = _Mailbox()
        self._to_start = {"work": self._work, "insist": self._insist}

    def _start_all(self) -> None:
        self._start("work")
        self._start("insist")

    def _start_in_child(self) -> None:
        with suppress(RuntimeError):  # as many threads as the system allows
            self._start_all()

    def _start(self, name: str) -> None:
        target = self._to_start.pop(name, None)  # atomic: the first who asks starts it
        if target is None:
            return
        try:
            self._start_thread(target)
        except BaseException:  # also what a signal handler raises in between
            self._to_start[name] = target
            raise

    def _request(self, what: _Request) -> None:
        self._sigterm.put(what)
        with suppress(RuntimeError):  # a child at its very end, which needs nobody to insist on it
            self._start("insist")

    def _before_fork(self) -> None:
        self._forking = True

    def _after_fork(self) -> None:
        self._forking = False
        if self._missed_in:
            self._missed_in = 0
            self._request("again")

    def _in_forked_child(self) -> None:
        self._timeout, self._is_child = self._child_timeout, True
        self._terminated = False
        self._renew()
        if parent_process() is not None:
            # That has only a finalizer, which is its own. (multiprocessing itself clears the hooks of what it forks.)
            atexit.register(self.at_exit)
        # As they are now, for a thread of ours: a native one that waits in a greenlet's hub crashes an interpreter that
        # ends, and the child may be patched later.
        self._sleep = time.sleep
        self._start_thread = _native_start() or _daemon
        if self._start_thread is _daemon or not self._may_start_late:
            self._start_in_child()
        self._forking = False
        if self._missed_in == os.getpid():  # and not the parent's, which the child has inherited
            self._terminated = True
            self._begin(time.monotonic())
            self._request("end now")
        self._missed_in = 0

    def _in_new_process_object(self) -> None:
        self._wakeup.begin()
        self._in_process_object()

    def _in_process_object(self) -> None:
        # The lowest priority: after the finalizers of others, which may end spans.
        Finalize(None, self.at_exit, exitpriority=-1000)
        _after_worker_of_billiard(self.at_exit)

    def _begin(self, at: float) -> None:
        """Sets the deadline of all ends together, at the first of them."""
        if self._deadline == inf:
            self._deadline = at + self._timeout

    @property
    def _last_moment(self) -> float:
        return self._deadline + min(_LAST_SECOND, self._timeout)

    def _hand_over(self, sleep: Callable[[float], object] | None = None) -> bool:
        if self._given_up:
            return False
        now = time.monotonic()
        self._begin(last_in_vain.began(self._timeout, now) or now)
        deadline = max(self._deadline, min(now + min(_LAST_SECOND, self._timeout), self._last_moment))
        if self._is_child and last_in_vain.began(_TRY_AGAIN, now):
            self._is_brief, deadline = True, min(deadline, now + _BRIEFLY)
        try:
            self.run(self._finish)
        except RuntimeError:  # no thread can be started, and without one it could last for ever
            deadline = now
        self._given_up = not wait_until(lambda: self._handed_over, deadline, sleep)
        if not self._given_up:
            last_in_vain.clear()
        elif not self._is_brief:
            last_in_vain.note(now)
        return not self._given_up

    def _flush_early(self) -> None:
        if not self._handed_over:
            self._attempt(self._flush)

    def _finish(self) -> None:
        if self._handed_over:
            return
        try:
            self._attempt(self._shutdown)
        finally:
            self._handed_over = True

    def _attempt(self, hand_over: Callable[[], object]) -> None:
        try:
            hand_over()
        except Exception as error:
            guard.fault("handing over the last spans", error)

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _insist(self) -> None:
        while (request := self._sigterm.get()) == "again":
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            self._end(in_order=request == "end in order")
        finally:
            os._exit(SIGTERM_STATUS)

    def _end(self, in_order: bool) -> None:
        if in_order:
            self.run(self._flush_early)  # meanwhile: little is left for the end then
            in_order = wait_until(lambda: self._reached, self._deadline, self._sleep)
        if not self._hand_over(self._sleep) and not self._reached:
            # Beside: whoever has not ended may stand in a log handler, and holds its lock.
            with suppress(RuntimeError):
                told = threading.Thread(target=self._tell, name="queueprop-exit", daemon=True)
                told.start()
                wait_until(lambda: self._told, self._last_moment, self._sleep)
        if in_order:
            # For the exit hooks of others; usually the process is gone by then.
            self._sleep(max(0.0, self._last_moment - time.monotonic()))

    def _tell(self) -> None:
        if self._told:
            return
        guard.log(
            logging.DEBUG if self._is_brief else logging.WARNING,
            "queueprop, handing over the last spans: %g s were not enough, and they are lost; is the Collector at "
            "OTEL_EXPORTER_OTLP_ENDPOINT there? If it only needs longer: configure_tracing(exit_timeout=...)",
            _BRIEFLY if self._is_brief else self._timeout,
        )
        self._told = True


T = TypeVar("T")


class _Mailbox(Generic[T]):
    """What a thread waits for. Filled in a signal handler as well, so nothing of it takes a lock in Python code.

    Not ``queue.SimpleQueue``: gevent and eventlet exchange that one apart from the threads that would use it.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, item: T) -> None:
        self._items.append(item)
        with suppress(RuntimeError):  # rung already
            self._bell.release()

    def get(self) -> T:
        while not self._items:
            self._bell.acquire()
        return self._items.popleft()


def _daemon(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name="queueprop-exit", daemon=True).start()


def _native_start() -> Callable[[Callable[[], None]], object] | None:
    """What starts a native daemon thread. It takes no lock of Python code, so a signal handler may call it.

    None where gevent and eventlet have replaced it.
    """
    start = _thread.start_new_thread
    return (lambda target: start(target, ())) if isinstance(start, BuiltinFunctionType) else None


_CAN_START_AT_THREADS_END = sys.version_info[:2] in ((3, 10), (3, 11), (3, 13))
"""Python 3.12 starts no thread there any more. Later ones: where it is seen that they do."""


def _at_threads_end(call: Callable[[], None]) -> bool:
    """Calls it when the interpreter begins to end and threads can still be started, here and in forked children: the
    exit hooks come later. Returns whether it will: the hook is CPython's own, for ``concurrent.futures``.
    """
    if not _CAN_START_AT_THREADS_END:
        return False
    try:
        register: Any = threading._register_atexit  # type: ignore[attr-defined]
        register(call)
    except (AttributeError, RuntimeError):
        return False
    return True


def _after_worker_of_billiard(at_exit: Callable[[], None]) -> None:
    """Calls it when this process is a worker of a pool of billiard's and that ends: it leaves by ``os._exit``."""
    try:
        billiard: Any = sys.modules.get("billiard.process")
        worker: Any = getattr(billiard.current_process(), "_target", None) if billiard else None
        if hasattr(worker, "on_exit"):
            worker.on_exit = _both(worker.on_exit, at_exit)
    except Exception as error:
        guard.fault("preparing for the end of a pool's worker", error)


def _both(first: Callable[..., object] | None, then: Callable[[], None]) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            if first is not None:
                first(*args, **kwargs)
        finally:
            then()

    return call


def _raise_in_main(error: BaseException) -> None:
    """Raises it where the main thread stands. Python calls signal handlers there; a greenlet's hub may be running."""

    def throw() -> None:
        raise error

    # A hub passes on to the main greenlet what ends a program; a greenlet that is a patched thread would swallow it.
    greenlets = _greenlets()
    for greenlet in greenlets[:-1]:
        if hasattr(greenlet, "loop"):  # gevent's hub
            greenlet.loop.run_callback(throw)
            return
        hub = "eventlet.hubs" in sys.modules and sys.modules["eventlet.hubs"].get_hub()
        if hub and hub.greenlet is greenlet:
            hub.schedule_call_global(0, throw)
            return
    raise error


def _makes_hub(frame: FrameType | None) -> bool:
    """Whether the main thread is making gevent's hub: whoever ends there leaves half of it, and half an import."""
    return any(_place(it) == ("gevent.hub", "__init__") for it in _and_callers(frame))


def _past_the_program(frame: FrameType | None) -> bool:
    """Whether the main thread has left the program: there SystemExit does no good."""
    if not threading.main_thread().is_alive():
        return True
    greenlets = _greenlets()
    return any(map(_is_last_step, _and_callers(greenlets[-1].gr_frame if greenlets[1:] else frame)))


def _greenlets() -> list[Any]:
    """The one that runs, and those above it up to the main thread's."""
    greenlet: Any = sys.modules.get("greenlet")
    found = [greenlet.getcurrent()] if greenlet else []
    while found and found[-1].parent is not None:
        found.append(found[-1].parent)
    return found


def _and_callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_last_step(frame: FrameType) -> bool:
    """Python's own last steps, which a SystemExit would cut short before the exit hooks: joining threads, and running
    the finalizers of a multiprocessing child (a pool terminates workers that are just ending).
    """
    module, function = _place(frame)
    if function == "_shutdown":
        return module == "threading" or module.startswith("gevent.monkey")
    return (module, function) == ("multiprocessing.util", "_exit_function")


def _place(frame: FrameType) -> tuple[str, str]:
    return str(frame.f_globals.get("__name__")), frame.f_code.co_name

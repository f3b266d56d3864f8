"""The last spans of a process are handed over, however it ends, and that never holds it up for long.

What ends how:

- a normal end, ``sys.exit``, an exception: an ``atexit`` hook. Also in a child of ``os.fork`` that ends so.
- a child of ``multiprocessing``: a finalizer of its own (forked ones run no ``atexit`` hooks of the parent).
- SIGTERM, where it would have killed the process by default: the handler raises ``SystemExit(143)`` in the
  main thread, so that ``finally`` blocks and exit hooks run, and flushes nothing itself. 143 is what a shell
  and a container report for a death by SIGTERM (a systemd unit wants ``SuccessExitStatus=143``). Whoever has
  a handler keeps it, and may install one at any time.
- SIGTERM, and the main thread does not end: something swallowed ``SystemExit``, another thread keeps the
  interpreter, or the main thread had ended before. By default the process would be dead, so it ends all the
  same, with 143, once the spans are handed over. At the latest after three times the timeout.
- ``os._exit`` and SIGKILL run nothing: call ``queueprop.process.flush.flush()`` before the former.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize, register_after_fork
from queue import SimpleQueue
from types import FrameType
from typing import Literal

_logger = logging.getLogger("queueprop")

SIGTERM_STATUS = 128 + signal.SIGTERM


class HandOver:
    """Calls ``shutdown`` once, at the end of the process and of each of its children.

    Arguments:
        shutdown: hands over what is left, and may block.
        timeout: seconds that the process waits for it.
        child_timeout: the same for a forked child.
    """

    def __init__(self, shutdown: Callable[[], object], timeout: float, child_timeout: float) -> None:
        self._shutdown = shutdown
        self._timeout = timeout
        self._child_timeout = child_timeout
        self._has_sigterm = False
        self._terminated = False
        self._forking = False
        self._missed_in = 0
        self._renew()

    def install(self) -> None:
        """Once a process; children inherit it."""
        self._has_sigterm = self._took_sigterm()
        self._start()
        atexit.register(self.at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork,
                after_in_child=self._in_forked_child,
            )
        # A child of multiprocessing forgets the finalizers that it inherits, and then runs this.
        register_after_fork(self, HandOver._in_multiprocessing_child)
        if multiprocessing.parent_process() is not None:
            self._in_multiprocessing_child()

    def at_exit(self) -> None:
        """The exit hook: waits until the spans are handed over, but not longer than the timeout."""
        self._reached.set()
        self._hand_over()

    def on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """The handler, where there was none. A second one changes nothing: a launcher that passes on what its
        process group got as well is common.
        """
        if self._forking:
            # Python swallows what is raised in a fork's hooks, and a child has no threads yet.
            self._missed_in = os.getpid()
            return
        if self._terminated:
            return
        self._terminated = True
        ends_already = self._reached.is_set() or _past_the_program(frame)
        # put() is reentrant, as a signal handler needs it; the methods of Event that lock are not.
        self._sigterm.put("end now" if ends_already else "end in order")
        if not ends_already:
            raise SystemExit(SIGTERM_STATUS)

    def _took_sigterm(self) -> bool:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return False
        try:
            signal.signal(signal.SIGTERM, self.on_sigterm)
        except ValueError:  # only the main thread may; a worker thread configures tracing all the same
            _logger.debug("configured outside the main thread: SIGTERM is left as it is")
            return False
        return True

    def _renew(self) -> None:
        self._reached = threading.Event()
        self._handed_over = threading.Event()
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._sigterm: SimpleQueue[Literal["end now", "end in order", "again"]] = SimpleQueue()

    def _start(self) -> None:
        # Started now: from Python 3.12 on an interpreter that is ending starts no thread, and a call that may
        # block has a bound only in a thread of its own.
        _daemon(self._shut_down)
        if self._has_sigterm:
            _daemon(self._insist)

    def _before_fork(self) -> None:
        self._forking = True

    def _after_fork(self) -> None:
        self._forking = False
        if self._missed_in:
            self._missed_in = 0
            self._sigterm.put("again")

    def _in_forked_child(self) -> None:
        self._timeout = self._child_timeout
        self._terminated = False
        self._renew()
        self._start()
        self._forking = False
        if self._missed_in == os.getpid():  # and not the parent's, which the child has inherited
            self._terminated = True
            self._sigterm.put("end now")
        self._missed_in = 0

    def _in_multiprocessing_child(self) -> None:
        # The lowest priority: after the finalizers of others, which may end spans.
        Finalize(None, self.at_exit, exitpriority=-1000)

    def _hand_over(self) -> None:
        self._asked.put(None)
        if not self._handed_over.wait(self._timeout):
            _logger.warning(
                "%g s were not enough to hand over the last spans; they are lost (is the Collector there?)",
                self._timeout,
            )

    def _shut_down(self) -> None:
        self._asked.get()
        try:
            self._shutdown()
        finally:
            self._handed_over.set()

    def _insist(self) -> None:
        while (request := self._sigterm.get()) == "again":
            os.kill(os.getpid(), signal.SIGTERM)
        in_order = request == "end in order" and self._reached.wait(self._timeout)
        self._hand_over()
        if in_order:
            time.sleep(self._timeout)  # for the exit hooks of others; usually the process is gone by then
        os._exit(SIGTERM_STATUS)


def _daemon(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name="queueprop-exit", daemon=True).start()


# Python's own last steps, which a SystemExit would cut short before the exit hooks: joining threads, and running
# the finalizers of a multiprocessing child (a pool terminates workers that are just ending).
_LAST_STEPS = {("threading", "_shutdown"), ("multiprocessing.util", "_exit_function")}


def _past_the_program(frame: FrameType | None) -> bool:
    """Whether the main thread has left the program: there SystemExit does no good."""
    if not threading.main_thread().is_alive():
        return True
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _LAST_STEPS:
            return True
        frame = frame.f_back
    return False

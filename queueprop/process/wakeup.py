"""A SIGTERM that Python does not notice is sent again.

Python's own handler of a signal only makes a note. The function that the program has set runs in the main thread,
before its next step; a signal that comes between the last step and the call in which the thread then blocks interrupts
nothing. By default it would have killed the process. With a function of ours in that place the process waits on, for
ever if nothing else wakes it: a worker of ``multiprocessing.Pool`` that is terminated just as it asks for the next
task, and its parent, which joins it.

So a thread hears of each signal at once, by ``signal.set_wakeup_fd``, and repeats SIGTERM until our handler says that
it runs. Forked children inherit the socket, and its messages say who wrote them: one thread serves all of them, and a
fork costs nothing.

Who sets a descriptor of his own keeps it (asyncio does, while it has handlers of signals: its loop is woken by it).
It is Linux alone that tells who wrote to a socket. Children that outlive the process that was configured, and
processes with greenlets from the beginning, go without.
"""

from __future__ import annotations

import _socket
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import wrapt

_SEEN = b"\0"

_HIGH = 960
"""Numbers of descriptors from here on. Python writes to the number whatever has become of it, and a program that closes
all descriptors and opens its own files gets the low ones. Below 1,024, the usual limit.
"""

_FIRST_PAUSE = 0.05
_TIMES = 8
"""Seconds until it is sent again, twice as many each time, and how often: 13 s in all. Once is enough where the thread
blocks; one that calculates needs none.
"""

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred`` of Linux: the process, its user, its group."""


class Wakeup:
    """Repeats SIGTERM to this process and its forked children, while the handler that calls ``seen`` is there."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._identity = (0, 0)
        self._is_wanted = False
        self._is_theirs = False
        self._set: Callable[..., int] = signal.set_wakeup_fd

    def install(self, start_thread: Callable[[Callable[[], None]], object]) -> None:
        """Once a process, in its main thread.

        Arguments:
            start_thread: starts a native daemon thread.
        """
        if not hasattr(_socket, "SO_PASSCRED") or not hasattr(os, "pidfd_open"):
            return
        with suppress(
            OSError, ValueError, RuntimeError
        ):  # as many descriptors and threads as the system allows
            reader, writer = _pair()
            self._identity = _identity(writer)
            start_thread(lambda: _watch(reader))
            self._descriptor = writer
        self._is_theirs = _is_set()
        setattr(signal, "set_wakeup_fd", wrapt.FunctionWrapper(signal.set_wakeup_fd, self._set_wakeup_fd))  # noqa: B010

    def listen(self, is_wanted: bool) -> None:
        """Begins or ends it: a handler of others must not be called twice."""
        self._is_wanted = is_wanted
        if not is_wanted:
            self.seen()
        self._apply()

    def seen(self) -> None:
        """The handler runs. It may be called in a signal handler."""
        if self._descriptor == -1:
            return
        with suppress(OSError):  # closed by the program, or full: then it is repeated for a while
            if _identity(self._descriptor) != self._identity:
                return
            writer = _socket.socket(fileno=self._descriptor)
            try:
                writer.send(_SEEN, _socket.MSG_DONTWAIT)
            finally:
                writer.detach()

    def _apply(self) -> None:
        if self._descriptor == -1 or self._is_theirs:
            return
        with suppress(OSError, ValueError):  # closed by the program
            self._set(self._descriptor if self._is_wanted else -1, warn_on_full_buffer=False)

    def _set_wakeup_fd(
        self, wrapped: Callable[..., int], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        previous = wrapped(*args, **kwargs)
        self._is_theirs = args != (-1,)
        self._apply()
        return -1 if previous == self._descriptor else previous


@dataclass
class _Unseen:
    """A SIGTERM of a process that its handler has not seen yet."""

    process: int
    """A descriptor of it, so that no other one with its number is meant."""

    pause: float
    due: float
    left: int = _TIMES


def _watch(reader: int) -> None:
    """Runs in a thread of its own, to the end of the process."""
    with suppress(OSError):  # closed by the program
        listening = _socket.socket(fileno=reader)
        unseen: dict[int, _Unseen] = {}
        while True:
            _repeat_what_is_due(unseen)
            _hear(listening, unseen)


def _hear(listening: _socket.socket, unseen: dict[int, _Unseen]) -> None:
    """Takes the next message, or returns when something is due."""
    due = min((it.due for it in unseen.values()), default=None)
    listening.settimeout(None if due is None else max(0.001, due - time.monotonic()))
    try:
        data, ancillary, *_ = listening.recvmsg(256, _socket.CMSG_SPACE(_CREDENTIALS.size))
    except TimeoutError:
        return
    if not ancillary:
        return
    pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2])
    if data.endswith(_SEEN):
        _forget(unseen, pid)
    elif signal.SIGTERM in data and pid not in unseen:
        with suppress(OSError):  # it is gone
            unseen[pid] = _Unseen(os.pidfd_open(pid), _FIRST_PAUSE, time.monotonic() + _FIRST_PAUSE)


def _repeat_what_is_due(unseen: dict[int, _Unseen]) -> None:
    now = time.monotonic()
    for pid, it in list(unseen.items()):
        if it.due <= now and not _repeat(it):
            _forget(unseen, pid)


def _repeat(unseen: _Unseen) -> bool:
    """Whether it may have to be repeated once more."""
    try:
        signal.pidfd_send_signal(unseen.process, signal.SIGTERM)
    except OSError:  # it is gone
        return False
    unseen.pause *= 2
    unseen.due = time.monotonic() + unseen.pause
    unseen.left -= 1
    return unseen.left > 0


def _forget(unseen: dict[int, _Unseen], pid: int) -> None:
    it = unseen.pop(pid, None)
    if it is not None:
        os.close(it.process)


def _pair() -> tuple[int, int]:
    """The ends of a stream whose messages carry their writers' numbers of process.

    Of ``_socket``, which gevent and eventlet leave as it is.
    """
    import fcntl  # which Windows has not

    reader, writer = _socket.socketpair()
    try:
        reader.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        high = fcntl.fcntl(reader.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
        try:
            return high, _unblocked(fcntl.fcntl(writer.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH))
        except OSError:
            os.close(high)
            raise
    finally:
        reader.close()
        writer.close()


def _unblocked(descriptor: int) -> int:
    os.set_blocking(descriptor, False)
    return descriptor


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _is_set() -> bool:
    """Whether somebody has set a descriptor. Only setting one tells."""
    with suppress(ValueError):  # in another than the main thread
        current = signal.set_wakeup_fd(-1)
        if current != -1:
            signal.set_wakeup_fd(current, warn_on_full_buffer=False)
            return True
    return False

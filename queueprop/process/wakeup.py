"""A SIGTERM that a child of ``multiprocessing`` does not notice is sent again.

Python's own handler of a signal only makes a note. The function that the program has set runs in the main thread,
before its next step; a signal that comes between the last step and the call in which the thread then blocks interrupts
nothing. By default it would have killed the process. With a function of ours in that place the process waits on, for
ever if nothing else wakes it: a worker of ``Pool`` that is terminated just as it asks for the next task, and its
parent, which joins it.

So in these children each signal is told at once, by ``signal.set_wakeup_fd``, to a thread of the process that was
configured, and that repeats SIGTERM until our handler says that it runs. They inherit the socket, and its messages say
who wrote them: one thread serves all, and a fork costs nothing.

Other processes are left as they are: who terminates them looks after them (a supervisor kills in the end), and a
descriptor for signals would be in the way of their event loops. In these, whoever sets one keeps it. It is Linux alone
that tells who wrote to a socket. Children that outlive the process that was configured, and processes with greenlets
from the beginning, go without.
"""

from __future__ import annotations

import _socket
import importlib
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import wrapt

_signal: Any = importlib.import_module("_signal")
"""The module below ``signal``, whose functions that one calls."""

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

Identity = tuple[int, int]


class Wakeup:
    """Repeats SIGTERM to children of ``multiprocessing``, while the handler that calls ``seen`` stands there."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._identity: Identity = (0, 0)
        self._is_begun = False
        self._stands = False
        self._is_theirs = False
        self._set: Callable[..., int] = signal.set_wakeup_fd

    def install(
        self, start_thread: Callable[[Callable[[], None]], object], handler: Callable[..., object]
    ) -> None:
        """Once a process, before the handler is set.

        Arguments:
            start_thread: starts a native daemon thread.
            handler: calls ``seen``. A handler of others must not be called twice.
        """
        if not (hasattr(_socket, "SO_PASSCRED") and hasattr(os, "pidfd_open")):
            return
        try:
            reader, writer = _pair()
        except OSError:  # as many descriptors as the system allows
            return
        identity = _identity(writer)
        try:
            start_thread(lambda: _watch(reader, writer, identity))
        except RuntimeError:  # as many threads
            os.close(reader)
            os.close(writer)
            return
        self._descriptor, self._identity = writer, identity
        self._watch_handlers(handler)

    def begin(self) -> None:
        """In such a child, once it is made."""
        self._is_begun = True
        self._apply()

    def seen(self) -> None:
        """The handler runs. It may be called in a signal handler."""
        with suppress(OSError):  # full: then it is repeated for a while
            if self._is_begun and self._is_there():
                _write(self._descriptor, _SEEN)

    def _watch_handlers(self, handler: Callable[..., object]) -> None:
        # The function below ``signal.signal``, which is asked also by who has imported that one by name.
        real: Any = _signal.signal

        def set_handler(signalnum: int, given: object) -> object:
            previous = real(signalnum, given)
            if signalnum == signal.SIGTERM:
                self._stands = given == handler
                self._apply()
                if not self._stands:
                    self.seen()
            return previous

        setattr(_signal, "signal", set_handler)  # noqa: B010
        watched = wrapt.FunctionWrapper(signal.set_wakeup_fd, self._set_wakeup_fd)
        setattr(signal, "set_wakeup_fd", watched)  # noqa: B010

    def _set_wakeup_fd(
        self, wrapped: Callable[..., int], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        previous = wrapped(*args, **kwargs)
        self._is_theirs = args != (-1,)
        self._apply()
        return -1 if previous == self._descriptor else previous

    def _apply(self) -> None:
        if not self._is_begun or self._is_theirs:
            return
        with suppress(OSError, ValueError):  # in another than the main thread
            ours = self._descriptor if self._stands and self._is_there() else -1
            previous = self._set(ours, warn_on_full_buffer=False)
            if previous not in (-1, self._descriptor):  # set by who has imported that function by name
                self._is_theirs = True
                self._set(previous, warn_on_full_buffer=False)

    def _is_there(self) -> bool:
        """Whether the descriptor is ours still: the program may have closed it, and have another of its number."""
        try:
            return _identity(self._descriptor) == self._identity
        except OSError:
            return False


@dataclass
class _Unseen:
    """A SIGTERM of a process that its handler has not seen yet."""

    process: int
    """A descriptor of it, so that no other one with its number is meant."""

    pause: float
    due: float
    left: int = _TIMES


def _watch(reader: int, writer: int, identity: Identity) -> None:
    """Runs in a thread of its own, to the end of the process, or until the program has closed its socket."""
    listening = _socket.socket(fileno=reader)
    own = _identity(reader)
    unseen: dict[int, _Unseen] = {}
    try:
        with suppress(OSError):
            while _identity(reader) == own and _hear(listening, unseen):
                _repeat_what_is_due(unseen, writer, identity)
    finally:
        listening.detach()  # the number may be another's


def _hear(listening: _socket.socket, unseen: dict[int, _Unseen]) -> bool:
    """Takes the next message, or returns when something is due. Whether there may be more."""
    due = min((it.due for it in unseen.values()), default=None)
    listening.settimeout(None if due is None else max(0.001, due - time.monotonic()))
    try:
        data, ancillary, *_ = listening.recvmsg(256, _socket.CMSG_SPACE(_CREDENTIALS.size))
    except TimeoutError:
        return True
    if ancillary:
        pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2])
        _, seen, since = data.rpartition(_SEEN)
        if seen:
            _forget(unseen, pid)
        if signal.SIGTERM in since and pid not in unseen:
            with suppress(OSError):  # it is gone
                unseen[pid] = _Unseen(
                    _high(os.pidfd_open(pid)), _FIRST_PAUSE, time.monotonic() + _FIRST_PAUSE
                )
    return bool(data)


def _repeat_what_is_due(unseen: dict[int, _Unseen], writer: int, identity: Identity) -> None:
    now = time.monotonic()
    for pid, it in list(unseen.items()):
        if it.due <= now and not (it.left and _holds(pid, writer, identity) and _repeat(it)):
            _forget(unseen, pid)


def _repeat(unseen: _Unseen) -> bool:
    """Whether it may have to be repeated once more. The last time it stays for a pause, as what comes back is its."""
    try:
        signal.pidfd_send_signal(unseen.process, signal.SIGTERM)
    except OSError:  # it is gone
        return False
    unseen.pause *= 2
    unseen.due = time.monotonic() + unseen.pause
    unseen.left -= 1
    return True


def _holds(pid: int, writer: int, identity: Identity) -> bool:
    """Whether the process is what it was: with another program it has lost the descriptor, and a stranger has none."""
    try:
        found = os.stat(f"/proc/{pid}/fd/{writer}")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity


def _forget(unseen: dict[int, _Unseen], pid: int) -> None:
    it = unseen.pop(pid, None)
    if it is not None:
        os.close(it.process)


def _pair() -> tuple[int, int]:
    """The ends of a stream whose messages carry their writers' numbers of process.

    Of ``_socket``, which gevent and eventlet leave as it is.
    """
    reader, writer = _socket.socketpair()
    reader.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    writer.setblocking(False)
    first = _high(reader.detach())
    try:
        return first, _high(writer.detach())
    except OSError:
        os.close(first)
        raise


def _high(descriptor: int) -> int:
    """The same by a high number."""
    import fcntl  # which Windows has not

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    finally:
        os.close(descriptor)


def _identity(descriptor: int) -> Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


_write = os.write
"""As it is when this is imported: eventlet puts another one there."""

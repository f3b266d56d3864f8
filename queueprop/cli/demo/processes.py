"""The processes that the demo starts. None outlives it, however it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

_KEEPER = Path(__file__).with_name("keeper.py")

STARTUP = 60.0
"""Seconds for a program to start: for one that hangs, on a busy machine, too. One that ends is told at once."""

_LONGEST_PAUSE = 2.0
"""Seconds that a pause between two looks may count, with room for a busy machine."""

_LAST_LINES = 10.0
"""Seconds in which what an ended process has printed is read to its end, on a busy machine, too. It is no longer than
that where the process has left its output to another.
"""

_FIRST = 100
"""Lines, among which is the one that says that a program is ready, however much it prints afterwards."""

OnLine = Callable[[str, str], None]
"""Called with the name of a process and a line that it printed; in a thread of that process's."""


class Died(Exception):
    """A process ended by itself. The message has its last lines."""


class Processes:
    """A context manager: at its end every process has been stopped, and the folder that they ran in is gone.

    Each is in a session of its own, so that Ctrl-C reaches the demo alone, which stops them in order. Where
    the demo is killed, a keeper (a process of its own, at the other end of a pipe) sees that, and does it.
    """

    def __init__(
        self, on_line: OnLine, held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        """``held``: where a process is started or all are stopped; whoever raises from a signal handler waits."""
        self._on_line = on_line
        self._held = held
        self._started: list[Process] = []

    def __enter__(self) -> Processes:
        with self._held():
            self.folder = Path(tempfile.mkdtemp(prefix="queueprop-demo-"))
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", str(_KEEPER), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Starts a program. ``environment`` is added to the demo's own; a variable that is empty is taken out."""
        env = {key: value for key, value in {**os.environ, **environment}.items() if value}
        with self._held():
            process = Process(name, command, env, self.folder, self._on_line, self._held)
            self._started.append(process)
            self._tell(f"+{process.pid}")
            process.on_end = lambda: self._tell(f"-{process.pid}")
        return process

    def stop(self, *processes: Process) -> None:
        """Stops them, one after the other."""
        with self._held():
            for process in processes:
                process.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held():
            self.stop(*reversed(self._started))
            keeper_input = self._keeper.stdin
            assert keeper_input is not None
            with contextlib.suppress(OSError):
                keeper_input.close()
            self._keeper.wait()

    def _tell(self, line: str) -> None:
        keeper_input = self._keeper.stdin
        assert keeper_input is not None
        with contextlib.suppress(OSError):  # the keeper was killed; the demo still stops everything itself
            keeper_input.write(f"{line}\n".encode())
            keeper_input.flush()


class Process:
    """One of them."""

    on_end: Callable[[], None]

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        on_line: OnLine,
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.name = name
        self._held = held
        self._is_stopped = False
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=30)
        self._on_line = on_line
        self._process = subprocess.Popen(
            command,
            cwd=folder,  # and not the user's: python -m would import what lies there
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"reads-{name}", daemon=True)
        self._reader.start()

    def check(self) -> None:
        """Raises Died when it has ended."""
        with self._held():  # an exception in the middle of poll() would keep its lock, which stop() waits for
            status = self._process.poll()
        if status is not None:
            self._reader.join(_LAST_LINES)
            raise self.died(f"ended with status {status}")

    def died(self, why: str) -> Died:
        """The error, with the last lines."""
        return Died("\n".join([f"{self.name} {why}", *self._last]))

    def last_lines(self) -> list[str]:
        """The last lines that it has printed, under its name."""
        lines = tuple(self._last)
        return [f"{self.name} has printed{':' if lines else ' nothing'}", *lines]

    def has_printed(self, text: str) -> bool:
        """Whether one of its first lines, or of its last, contains the text."""
        return any(text in line for line in (*self._first, *tuple(self._last)))

    def stop(self, grace: float = 8.0) -> None:
        """SIGTERM, and SIGKILL when ``grace`` seconds were not enough. Twice is once."""
        if self._is_stopped:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # itself when it is late, and what it has left behind
        self._process.wait()
        self._is_stopped = True
        self._reader.join(1)
        self.on_end()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                if len(self._first) < _FIRST:
                    self._first.append(line)
                self._last.append(line)
                self._on_line(self.name, line)


def until(what: str, condition: Callable[[], bool], timeout: float, *processes: Process) -> None:
    """Waits for the condition. Raises Died when one of them has ended.

    And TimeoutError after ``timeout`` seconds: its message has the last lines of each of them.
    """
    for _ in looks(timeout):
        if condition():
            return
        for process in processes:
            process.check()
    printed = [line for process in processes for line in process.last_lines()]
    raise TimeoutError("\n".join([f"waited {timeout:g} s for {what}", *printed]))


def looks(timeout: float, pause: float = 0.05) -> Iterator[None]:
    """Times to look, with a pause behind each, until ``timeout`` seconds are over.

    While the machine itself stands still (a virtual one that is stopped) nobody gets on, so a pause counts as two
    seconds at most, however long it was.
    """
    left = timeout
    while True:
        began = time.monotonic()
        yield
        if left <= 0:
            return
        looked = time.monotonic()
        time.sleep(pause)
        left -= looked - began + min(time.monotonic() - looked, _LONGEST_PAUSE)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and where a server is reached. Raises OSError when none is found.

    Not from the range that systems give to connections: one of those could have it before its server does, or be
    taken for it.
    """
    for _ in range(200):
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if is_reached(probe):
                return port
    raise OSError("no free port was found on 127.0.0.1 between 20000 and 30000")


def is_reached(server: socket.socket) -> bool:
    """Whether a connection to where ``server`` is bound comes in there; it listens from then on.

    A container engine publishes a port by a rule of the kernel's, and holds no socket: the port can be bound, and
    connections go to the container, or nowhere where its engine was killed and left the rule.
    """
    server.listen(1)
    server.settimeout(1)
    try:
        with socket.create_connection(server.getsockname(), timeout=1) as client:
            itself = client.getsockname()
            accepted, peer = server.accept()
        accepted.close()  # after the client: whoever closes first holds on to its port for a while
    except OSError:
        return False
    return bool(peer == itself)


def accepts(port: int) -> bool:
    """Whether somebody listens on that port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True

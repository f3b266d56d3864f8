"""SIGTERM is sent again until its handler runs; whole processes stand in test_exit.py."""

from __future__ import annotations

import _socket
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from queueprop.process import wakeup
from queueprop.process.wakeup import Wakeup

TERM = bytes([signal.SIGTERM])


def ours(signum: int, frame: FrameType | None) -> None: ...


def theirs_to_call(signum: int, frame: FrameType | None) -> None: ...


class Installed:
    """A Wakeup whose thread is run by the test, a step at a time."""

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self.threads: list[Callable[[], None]] = []
        self.sent: list[int] = []
        self.unseen: dict[int, wakeup._Unseen] = {}

    def install(self) -> None:
        self.wakeup.install(self.threads.append, ours)

    def begin(self) -> None:
        """Goes on as a child of multiprocessing, with our handler."""
        self.install()
        self.wakeup.begin()
        signal.signal(signal.SIGTERM, ours)

    @property
    def reader(self) -> int:
        function: Any = self.threads[0]
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        return int(cells["reader"].cell_contents)

    def hear(self) -> bool:
        listening = _socket.socket(fileno=self.reader)
        try:
            return wakeup._hear(listening, self.unseen)
        finally:
            listening.detach()

    def repeat(self) -> None:
        for it in self.unseen.values():
            it.due = 0
        wakeup._repeat_what_is_due(self.unseen, self.wakeup._descriptor, self.wakeup._identity)

    def close(self) -> None:
        for descriptor in [self.wakeup._descriptor, *([self.reader] if self.threads else [])]:
            if descriptor != -1:
                os.close(descriptor)
        for it in self.unseen.values():
            os.close(it.process)


def started(descriptor: int, then: str) -> subprocess.Popen[str]:
    """A process that has the socket, and tells a SIGTERM of its own."""
    code = f"import os, sys; os.write({descriptor}, {TERM!r}); {then}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[descriptor], text=True
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    it = Installed()

    def send(process: int, signum: int) -> None:
        it.sent.append(signum)

    monkeypatch.setattr(signal, "pidfd_send_signal", send)
    real, before = signal.set_wakeup_fd, signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as restoring:
        restoring.setattr(signal, "set_wakeup_fd", real)
        restoring.setattr(wakeup._signal, "signal", wakeup._signal.signal)
        yield it
    signal.signal(signal.SIGTERM, before)
    real(-1)
    it.close()


@pytest.fixture
def theirs() -> Iterator[int]:
    """A descriptor that the program sets for itself."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield writer
    signal.set_wakeup_fd(-1)
    os.close(reader)
    os.close(writer)


class TestDescriptor:
    """Ours is there in a child, as long as our handler is and nobody else wants one, and nobody is told of it."""

    def test_none_in_other_processes(self, installed: Installed) -> None:
        """A server's own process, a work horse: their event loops find what they would find without us."""
        installed.install()
        signal.signal(signal.SIGTERM, ours)
        installed.wakeup.seen()
        assert signal.set_wakeup_fd(-1) == -1

    def test_while_our_handler_stands(self, installed: Installed) -> None:
        """It is taken back when a handler of others is set, however they have come by the function for it."""
        real, set_handler = signal.set_wakeup_fd, signal.signal
        installed.begin()
        assert real(-1) == installed.wakeup._descriptor
        set_handler(signal.SIGINT, set_handler(signal.SIGINT, ours))
        set_handler(signal.SIGTERM, theirs_to_call)
        assert real(-1) == -1
        set_handler(signal.SIGTERM, ours)
        assert real(-1) == installed.wakeup._descriptor

    def test_of_others_comes_and_goes(self, installed: Installed, theirs: int) -> None:
        """They are told that there was none (trio warns otherwise), and theirs stands while they want it."""
        real = signal.set_wakeup_fd
        installed.begin()
        assert signal.set_wakeup_fd(theirs, warn_on_full_buffer=False) == -1
        signal.signal(signal.SIGTERM, ours)
        assert real(theirs) == theirs
        assert signal.set_wakeup_fd(-1) == theirs
        assert real(-1) == installed.wakeup._descriptor

    def test_of_others_from_before(self, installed: Installed, theirs: int) -> None:
        """It stays, also where it was set by a function that we do not see (uvloop's)."""
        real = signal.set_wakeup_fd
        installed.begin()
        real(theirs)
        signal.signal(signal.SIGTERM, ours)
        signal.signal(signal.SIGTERM, theirs_to_call)
        assert real(-1) == theirs

    def test_in_another_thread(self, installed: Installed) -> None:
        """There none can be set, and nothing is raised."""
        installed.install()
        thread = threading.Thread(target=installed.wakeup.begin)
        thread.start()
        thread.join()
        assert signal.set_wakeup_fd(-1) == -1

    def test_wrong_arguments(self, installed: Installed) -> None:
        """They raise what they raise without us, and change nothing."""
        installed.begin()
        with pytest.raises(TypeError):
            signal.set_wakeup_fd("1")  # type: ignore[arg-type]
        with pytest.raises((OSError, ValueError), match=r"descriptor|fd"):
            signal.set_wakeup_fd(999_999)
        assert signal.set_wakeup_fd(-1) == -1

    def test_it_is_none_of_the_low_numbers(self, installed: Installed) -> None:
        """Those are given again to files of a program that closes all it does not know."""
        installed.install()
        assert min(installed.wakeup._descriptor, installed.reader) >= 900
        assert not os.get_inheritable(installed.wakeup._descriptor)

    def test_closed_by_the_program(self, installed: Installed) -> None:
        """Nothing is raised, and nothing is written into, or set to, what has its number now."""
        installed.begin()
        descriptor = installed.wakeup._descriptor
        signal.signal(signal.SIGTERM, theirs_to_call)
        os.close(descriptor)
        installed.wakeup.seen()
        reader, writer = _socket.socketpair()
        os.dup2(writer.fileno(), descriptor)
        signal.signal(signal.SIGTERM, ours)
        installed.wakeup.seen()
        reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.recv(1)
        assert signal.set_wakeup_fd(-1) == -1
        reader.close()
        writer.close()

    def test_without_a_thread(self, installed: Installed) -> None:
        """As many as the system allows: then it goes without, and leaves no descriptor."""
        before = set(os.listdir("/proc/self/fd"))

        def refuse(target: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        installed.wakeup.install(refuse, ours)
        # A thread of another test may just close its own.
        assert set(os.listdir("/proc/self/fd")) <= before
        installed.wakeup.begin()
        installed.wakeup.seen()
        assert signal.set_wakeup_fd(-1) == -1

    def test_without_descriptors(self, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor is one left over where the second is refused."""
        import fcntl

        given: list[int] = []

        def duplicate(descriptor: int, command: int, lowest: int) -> int:
            if given:
                raise OSError("too many open files")
            given.append(os.dup(descriptor))
            return given[0]

        monkeypatch.setattr(fcntl, "fcntl", duplicate)
        installed.install()
        assert not installed.threads
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(given[0])

    def test_where_nobody_tells_who_wrote(
        self, installed: Installed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On other systems than Linux it goes without, and watches nothing."""
        monkeypatch.delattr(_socket, "SO_PASSCRED")
        before = signal.set_wakeup_fd
        installed.install()
        assert signal.set_wakeup_fd is before


class TestRepeating:
    """What the thread does with what it hears."""

    @pytest.fixture
    def heard(self, installed: Installed) -> Installed:
        """A SIGTERM of this process, which nobody has seen yet."""
        installed.begin()
        os.write(installed.wakeup._descriptor, TERM)
        installed.hear()
        return installed

    def test_until_it_is_seen(self, heard: Installed) -> None:
        """The handler says so, and it is forgotten."""
        assert list(heard.unseen) == [os.getpid()]
        heard.wakeup.seen()
        heard.hear()
        assert not heard.unseen

    def test_seen_at_once(self, installed: Installed) -> None:
        """Both come in one message."""
        installed.begin()
        os.write(installed.wakeup._descriptor, TERM)
        installed.wakeup.seen()
        installed.hear()
        assert not installed.unseen

    def test_another_after_one_that_was_seen(self, installed: Installed) -> None:
        """It is one of its own."""
        installed.begin()
        installed.wakeup.seen()
        os.write(installed.wakeup._descriptor, TERM)
        installed.hear()
        assert installed.unseen

    def test_other_signals(self, installed: Installed) -> None:
        """They are none of ours."""
        installed.install()
        os.write(installed.wakeup._descriptor, bytes([signal.SIGCHLD]))
        installed.hear()
        assert not installed.unseen

    def test_others_behind_one_that_was_seen(self, heard: Installed) -> None:
        """A stream joins what one process writes."""
        heard.wakeup.seen()
        os.write(heard.wakeup._descriptor, bytes([signal.SIGCHLD]))
        heard.hear()
        assert not heard.unseen

    def test_after_a_pause_that_grows(self, heard: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is bounded, although each that is sent is told, too."""
        [it] = heard.unseen.values()
        pauses = []

        def send(process: int, signum: int) -> None:
            heard.sent.append(signum)
            os.write(heard.wakeup._descriptor, TERM)

        monkeypatch.setattr(signal, "pidfd_send_signal", send)
        while heard.unseen:
            heard.hear()
            pauses.append(it.pause)
            heard.repeat()
        assert pauses == [0.05 * 2**n for n in range(9)]
        assert heard.sent == [signal.SIGTERM] * 8

    def test_nothing_before_it_is_due(self, heard: Installed) -> None:
        """The handler has its time."""
        assert heard.hear()  # returns when it is due
        for it in heard.unseen.values():
            it.due += 60
        wakeup._repeat_what_is_due(heard.unseen, heard.wakeup._descriptor, heard.wakeup._identity)
        assert not heard.sent
        assert heard.unseen

    def test_who_is_gone(self, heard: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is sent to another process that has its number by now."""

        def gone(process: int, signum: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(signal, "pidfd_send_signal", gone)
        heard.repeat()
        assert not heard.unseen

    @pytest.mark.parametrize("writer", [0, 999_999])
    def test_who_has_become_another_program(self, heard: Installed, writer: int) -> None:
        """It has the socket no more, and gets nothing."""
        for it in heard.unseen.values():
            it.due = 0
        wakeup._repeat_what_is_due(heard.unseen, writer, heard.wakeup._identity)
        assert not heard.unseen
        assert not heard.sent

    def test_another_process_that_writes(self, installed: Installed) -> None:
        """It is that one's signal, and nobody else is meant."""
        installed.begin()
        with started(installed.wakeup._descriptor, "sys.stdin.read()") as child:
            installed.hear()
            assert list(installed.unseen) == [child.pid]
            installed.repeat()
            assert installed.sent == [signal.SIGTERM]
            child.communicate("")

    def test_a_child_that_is_gone_at_once(self, installed: Installed) -> None:
        """Its number is nobody's by the time its message is read."""
        installed.begin()
        with started(installed.wakeup._descriptor, "") as child:
            child.communicate("")
        installed.hear()
        assert not installed.unseen

    def test_what_tells_no_writer(self, installed: Installed) -> None:
        """It is nobody's."""
        reader, writer = _socket.socketpair()
        writer.send(TERM)
        wakeup._hear(reader, installed.unseen)
        assert not installed.unseen
        reader.close()
        writer.close()

    def test_the_thread(self, heard: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends where the program closes its socket, and leaves what has its number to the program."""
        for it in heard.unseen.values():
            os.close(it.process)
        heard.unseen.clear()
        os.write(heard.wakeup._descriptor, TERM)
        another = os.open(os.devnull, os.O_RDONLY)

        def send(process: int, signum: int) -> None:
            heard.sent.append(signum)
            os.dup2(another, heard.reader)

        monkeypatch.setattr(signal, "pidfd_send_signal", send)
        heard.threads[0]()
        assert heard.sent == [signal.SIGTERM]
        assert os.fstat(heard.reader).st_ino == os.fstat(another).st_ino
        os.close(another)

    def test_the_thread_when_nobody_can_write(self, installed: Installed) -> None:
        """It ends."""
        installed.install()
        os.close(installed.wakeup._descriptor)
        installed.wakeup._descriptor = -1
        installed.threads[0]()

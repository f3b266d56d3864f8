"""SIGTERM is sent again until its handler runs; whole processes stand in test_exit.py."""

from __future__ import annotations

import _socket
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from queueprop.process import wakeup
from queueprop.process.wakeup import Wakeup

TERM = bytes([signal.SIGTERM])


class Installed:
    """A Wakeup whose thread is run by the test, a step at a time."""

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self.threads: list[Callable[[], None]] = []
        self.sent: list[int] = []
        self.unseen: dict[int, wakeup._Unseen] = {}

    def install(self) -> None:
        self.wakeup.install(self.threads.append)

    @property
    def reader(self) -> int:
        closure = self.threads[0].__closure__
        assert closure is not None
        return int(closure[0].cell_contents)

    def hear(self) -> None:
        listening = _socket.socket(fileno=self.reader)
        wakeup._hear(listening, self.unseen)
        listening.detach()

    def close(self) -> None:
        for descriptor in [self.wakeup._descriptor, *([self.reader] if self.threads else [])]:
            if descriptor != -1:
                os.close(descriptor)
        for it in self.unseen.values():
            os.close(it.process)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    it = Installed()

    def send(process: int, signum: int) -> None:
        it.sent.append(signum)

    monkeypatch.setattr(signal, "pidfd_send_signal", send)
    real = signal.set_wakeup_fd
    with pytest.MonkeyPatch.context() as restoring:
        restoring.setattr(signal, "set_wakeup_fd", real)
        yield it
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
    """Ours is there as long as our handler is and nobody else wants one, and nobody is told of it."""

    def test_set_while_the_handler_stands(self, installed: Installed) -> None:
        """It is taken back when a handler of others is set, which must not be called twice."""
        real = signal.set_wakeup_fd
        installed.install()
        assert real(-1) == -1
        installed.wakeup.listen(True)
        assert real(-1) == installed.wakeup._descriptor
        installed.wakeup.listen(True)
        installed.wakeup.listen(False)
        assert real(-1) == -1

    def test_of_others_comes_and_goes(self, installed: Installed, theirs: int) -> None:
        """They are told that there was none (trio warns otherwise), and theirs stands while they want it."""
        real = signal.set_wakeup_fd
        installed.install()
        installed.wakeup.listen(True)
        assert signal.set_wakeup_fd(theirs, warn_on_full_buffer=False) == -1
        installed.wakeup.listen(True)
        assert real(theirs) == theirs
        assert signal.set_wakeup_fd(-1) == theirs
        assert real(-1) == installed.wakeup._descriptor

    def test_of_others_from_before(self, installed: Installed, theirs: int) -> None:
        """It stays."""
        real = signal.set_wakeup_fd
        real(theirs)
        installed.install()
        installed.wakeup.listen(True)
        assert real(-1) == theirs

    def test_wrong_arguments(self, installed: Installed) -> None:
        """They raise what they raise without us, and change nothing."""
        installed.install()
        installed.wakeup.listen(True)
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
        """Nothing is raised, and nothing is written into a file that has its number now."""
        installed.install()
        descriptor = installed.wakeup._descriptor
        os.close(descriptor)
        installed.wakeup.listen(True)
        installed.wakeup.seen()
        reader, writer = _socket.socketpair()
        os.dup2(writer.fileno(), descriptor)
        installed.wakeup.seen()
        reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.recv(1)
        reader.close()
        writer.close()

    def test_without_a_thread(self, installed: Installed) -> None:
        """As many as the system allows: then it goes without."""

        def refuse(target: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        installed.wakeup.install(refuse)
        installed.wakeup.listen(True)
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
        installed.install()
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
        installed.install()
        os.write(installed.wakeup._descriptor, TERM)
        installed.wakeup.seen()
        installed.hear()
        assert not installed.unseen

    def test_another_after_one_that_was_seen(self, installed: Installed) -> None:
        """It is one of its own."""
        installed.install()
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

    def test_after_a_pause_that_grows(self, heard: Installed) -> None:
        """It is bounded: who has not seen it by then has become another program."""
        [it] = heard.unseen.values()
        pauses = []
        while heard.unseen:
            heard.hear()  # nothing comes: returns when it is due
            pauses.append(it.pause)
            it.due = 0
            wakeup._repeat_what_is_due(heard.unseen)
            it.due = 0
        assert pauses == [0.05 * 2**n for n in range(8)]
        assert heard.sent == [signal.SIGTERM] * 8

    def test_who_is_gone(self, heard: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is sent to another process that has its number by now."""

        def gone(process: int, signum: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(signal, "pidfd_send_signal", gone)
        heard.unseen[os.getpid()].due = 0
        wakeup._repeat_what_is_due(heard.unseen)
        assert not heard.unseen

    def test_a_child_that_is_gone_at_once(self, installed: Installed) -> None:
        """Its number is nobody's by the time its message is read."""
        installed.install()
        code = f"import os; os.write({installed.wakeup._descriptor}, {TERM!r})"
        child = [sys.executable, "-c", code]
        subprocess.run(child, check=True, pass_fds=[installed.wakeup._descriptor])
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

    def test_what_is_due_is_sent_before_it_listens_on(
        self, heard: Installed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread: it ends where the program closes its socket."""
        heard.unseen.clear()
        os.write(heard.wakeup._descriptor, TERM)
        os.close(heard.wakeup._descriptor)
        heard.wakeup._descriptor = -1

        def send(process: int, signum: int) -> None:
            heard.sent.append(signum)
            os.close(heard.reader)

        monkeypatch.setattr(signal, "pidfd_send_signal", send)
        heard.threads[0]()
        assert heard.sent == [signal.SIGTERM]
        heard.threads.clear()

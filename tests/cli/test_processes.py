"""The processes that the demo starts, and the keeper that ends them when the demo cannot."""

from __future__ import annotations

import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from queueprop.cli.demo import keeper
from queueprop.cli.demo import processes as processes_module
from queueprop.cli.demo.processes import Died, Processes, accepts, free_port, until
from queueprop.cli.demo.signals import Stopped, StopSignals

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
WITH_A_CHILD = [
    sys.executable,
    "-c",
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print('ready', child.pid, flush=True); time.sleep(60)",
]


def _ignore(name: str, line: str) -> None:
    pass


def _is_there(pid: int) -> bool:
    """Whether it runs; one that is dead and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # there is no /proc, or it has just ended
        return not Path("/proc/self").exists()
    return state != "Z"


def _wait(condition: Callable[[], bool]) -> None:
    until("the test", condition, 60)


def test_nothing_is_left() -> None:
    """At the end every process is gone, those that they have started too, and so is their folder."""
    lines: list[tuple[str, str]] = []
    with Processes(lambda name, line: lines.append((name, line))) as processes:
        process = processes.start("parent", WITH_A_CHILD, {})
        _wait(lambda: bool(lines))
        folder = processes.folder
    name, line = lines[0]
    child = int(line.split()[1])
    assert name == "parent"
    assert process.has_printed("ready")
    _wait(lambda: not _is_there(process.pid) and not _is_there(child))
    assert not folder.exists()


def test_environment() -> None:
    """What is given is added to the environment, and what is given as empty is taken out of it."""
    lines: list[str] = []
    code = "import os; print(os.environ.get('GIVEN'), os.environ.get('PATH'))"
    with Processes(lambda name, line: lines.append(line)) as processes:
        processes.start("prints", [sys.executable, "-c", code], {"GIVEN": "x", "PATH": ""})
        _wait(lambda: bool(lines))
    assert lines == ["x None"]


def test_process_that_ends_by_itself() -> None:
    """Its status and its last lines are told."""
    with Processes(_ignore) as processes:
        process = processes.start(
            "breaks", [sys.executable, "-c", "print('no good'); raise SystemExit(3)"], {}
        )
        with pytest.raises(Died, match=r"^breaks ended with status 3\nno good$"):
            until("nothing", lambda: False, 60, process)


def test_process_that_does_not_stop() -> None:
    """SIGKILL ends what SIGTERM does not; stopping twice is once."""
    with Processes(_ignore) as processes:
        process = processes.start("stubborn", STUBBORN, {})
        _wait(lambda: process.has_printed("ready"))
        process.stop(grace=0.2)
        process.stop()
        assert not _is_there(process.pid)


def test_waiting_has_an_end() -> None:
    """A condition that does not come true is a TimeoutError: what was waited for, and what was printed meanwhile."""
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Processes(_ignore) as processes:
        process = processes.start("sleeps", SLEEP, {})
        _wait(lambda: process.has_printed("ready"))
        with pytest.raises(TimeoutError) as caught:
            until("rain", lambda: False, 0.1, process, processes.start("is silent", silent, {}))
    assert str(caught.value).splitlines() == [
        "waited 0.1 s for rain",
        "sleeps has printed:",
        "ready",
        "is silent has printed nothing",
    ]


def test_machine_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour in which nobody could look is no hour in which nothing came; one that a look has taken is."""
    clock = [0.0]
    looks: list[int] = []

    def pass_an_hour(seconds: float = 0.0) -> None:
        clock[0] += 3600

    def look(seconds: float = 0.0) -> bool:
        clock[0] += seconds
        looks.append(1)
        return len(looks) == 5

    monkeypatch.setattr(
        processes_module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pass_an_hour)
    )
    until("the fifth look", look, 10)
    looks.clear()
    with pytest.raises(TimeoutError):
        until("the fifth look", lambda: look(3600), 10)
    assert len(looks) == 2


def test_being_ready_is_not_forgotten() -> None:
    """A line that says so counts, however many have come after it: what waits asks now and then."""
    talks = [sys.executable, "-c", "print('ready'); [print(number) for number in range(5000)]; print('end')"]
    with Processes(_ignore) as processes:
        process = processes.start("talks", talks, {})
        _wait(lambda: process.has_printed("end"))
        assert process.has_printed("ready")


def test_signals_wait_until_a_process_is_noted() -> None:
    """No signal handler raises between the start of a process and the note of it."""
    held: list[str] = []

    @contextmanager
    def hold() -> Iterator[None]:
        held.append("begin")
        yield
        held.append("end")

    with Processes(_ignore, hold) as processes:
        held.clear()
        processes.start("sleeps", SLEEP, {})
        assert held == ["begin", "end"]


def test_demo_that_is_killed(tmp_path: Path) -> None:
    """With SIGKILL nothing of the demo runs on to clean up: the keeper ends its processes and their folder."""
    script = tmp_path / "demo.py"
    script.write_text(
        "import sys, time\n"
        "from queueprop.cli.demo.processes import Processes\n"
        "with Processes(lambda name, line: None) as processes:\n"
        f"    process = processes.start('sleeps', {SLEEP!r}, {{}})\n"
        "    print(process.pid, processes.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    demo = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    pid, folder = demo.stdout.readline().split()
    assert _is_there(int(pid))
    demo.kill()
    demo.wait()
    demo.stdout.close()
    _wait(lambda: not _is_there(int(pid)) and not Path(folder).exists())


def test_keeper_that_is_killed() -> None:
    """The demo itself stops everything all the same."""
    with Processes(_ignore) as processes:
        process = processes.start("sleeps", SLEEP, {})
        processes._keeper.kill()
        processes._keeper.wait()
    assert not _is_there(process.pid)
    os.rmdir(processes.folder)


@pytest.mark.parametrize("command", [SLEEP, STUBBORN])
def test_keeper_ends_what_is_left(command: list[str], tmp_path: Path) -> None:
    """SIGTERM first, SIGKILL after the grace; a process that was taken back is left alone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    left, taken_back = (
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) for _ in range(2)
    )
    for process in (left, taken_back):
        assert process.stdout is not None
        process.stdout.readline()
    keeper.main(str(folder), [f"+{left.pid}\n", f"+{taken_back.pid}\n", f"-{taken_back.pid}\n"], grace=0.5)
    assert left.wait(60) in (-signal.SIGTERM, -signal.SIGKILL)
    assert taken_back.poll() is None
    assert not folder.exists()
    taken_back.kill()
    for process in (left, taken_back):
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_keeper_does_not_wait_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When everything has been stopped in order, the keeper ends at once."""
    monkeypatch.setattr("sys.argv", ["keeper.py", str(tmp_path / "none")])
    monkeypatch.setattr("sys.stdin", ["+999999999\n"])
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    runpy.run_path(keeper.__file__, run_name="__main__")
    assert len(pauses) <= 1


class _Drawn:
    """A source of random numbers that gives one after another of these, and the last for ever."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def randrange(self, first: int, end: int) -> int:
        number = self._numbers.pop(0) if len(self._numbers) > 1 else self._numbers[0]
        assert first <= number < end
        return number


def _two_free_ports() -> tuple[int, int]:
    first = other = free_port()
    while other == first:  # each is drawn by itself
        other = free_port()
    return first, other


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was given out is free, and listening there shows; what is taken is not given out."""
    port, other = _two_free_ports()
    assert not accepts(port)
    with socket.create_server(("127.0.0.1", port)):
        assert accepts(port)
        drawn = _Drawn(port, port, other)
        monkeypatch.setattr(random, "SystemRandom", lambda: drawn)
        assert free_port() == other
        drawn = _Drawn(port)
        with pytest.raises(OSError, match="no free port"):
            free_port()


@pytest.mark.parametrize("goes", ["nowhere", "to a container"])
def test_a_port_that_a_container_engine_takes(monkeypatch: pytest.MonkeyPatch, goes: str) -> None:
    """A published port can be bound and still connections to it go elsewhere: such a port is not given out."""
    taken, other = _two_free_ports()
    connect = socket.create_connection

    def as_the_engine_has_it(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[1] != taken:
            return connect(address, timeout)
        if goes == "nowhere":
            raise ConnectionRefusedError
        return connect(container.getsockname(), timeout)

    monkeypatch.setattr(socket, "create_connection", as_the_engine_has_it)
    drawn = _Drawn(taken, other)
    monkeypatch.setattr(random, "SystemRandom", lambda: drawn)
    with socket.create_server(("127.0.0.1", 0)) as container:
        assert free_port() == other


def test_a_signal_while_a_process_is_looked_at() -> None:
    """At whatever line of ``Popen.poll`` it comes: it stops the wait, and the process can still be stopped."""
    line = 0
    is_over = False
    while not is_over:
        line += 1
        with StopSignals() as signals, Processes(_ignore, signals.held) as processes:
            process = processes.start("sleep", SLEEP, {})
            left = line

            def tracer(frame: FrameType, event: str, argument: object) -> Any:
                nonlocal left
                if frame.f_code.co_name != "_internal_poll":
                    return None
                if event == "line":
                    left -= 1
                    if left == 0:
                        signal.raise_signal(signal.SIGTERM)
                return tracer

            before = sys.gettrace()
            sys.settrace(tracer)
            try:
                process.check()
            except Stopped:
                pass
            finally:
                sys.settrace(before)
            is_over = left > 0
            lock = process._process._waitpid_lock  # type: ignore[attr-defined]
            is_free = lock.acquire(timeout=0)
            lock.release()
            assert is_free, f"line {line}"
    assert line > 3

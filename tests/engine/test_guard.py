"""The guard: a fault of ours is logged once a place, and what is not ours goes through."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.context import get_current

from queueprop import guard
from queueprop.engine.scope import is_suppressed


class TimeLimit(Exception):
    """As a library's time limit."""


class Handlers:
    """The kinds of signal handlers that programs have."""

    @staticmethod
    def function(number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    def method(self, number: int, frame: FrameType | None) -> None:
        self._expire()

    def with_more(self, more: str, number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    def _expire(self) -> None:
        raise TimeLimit


Handler = Callable[[int, FrameType | None], None]

HANDLERS: dict[str, Handler] = {
    "function": Handlers.function,
    "method": Handlers().method,
    "object": Handlers(),
    "partial": functools.partial(Handlers().with_more, "more"),
    "partial of a partial of an object": functools.partial(functools.partial(Handlers())),
}


@pytest.fixture
def use() -> Iterator[Callable[[Handler], None]]:
    """Installs a handler of SIGUSR1 and SIGALRM, and puts the old ones back."""
    numbers = (signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]

    def install(handler: Handler) -> None:
        for number in numbers:
            signal.signal(number, handler)

    yield install
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("guarded")
class TestFault:
    """fault()."""

    def test_the_first_of_a_place_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """A warning of the logger `queueprop` with the traceback, that says what was being done; nothing is raised."""
        caplog.set_level(logging.DEBUG)
        error = LookupError("ours")
        guard.fault("doing this", error)
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("queueprop", logging.WARNING)
        assert "queueprop failed while doing this" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error

    def test_later_ones_are_not_heard(self, caplog: pytest.LogCaptureFixture) -> None:
        """The next ones of a place go to DEBUG, whatever they are, and ever more rarely; another place is told of."""
        caplog.set_level(logging.DEBUG)
        for number in range(9):
            guard.fault("doing this", LookupError(number), about=f"publish orders-{number}")
        guard.fault("doing that", LookupError("ours"))
        assert [(record.levelname, record.getMessage()[-30:]) for record in caplog.records[1:-1]] == [
            ("DEBUG", f"(publish orders-{number}): LookupError: {number}"[-30:]) for number in (1, 3, 7)
        ]
        assert [record.levelname for record in (caplog.records[0], caplog.records[-1])] == ["WARNING"] * 2

    def test_it_says_whom_to_tell(self, caplog: pytest.LogCaptureFixture) -> None:
        """What was raised in our code is to be reported to us; what was raised elsewhere is named by its module."""
        try:
            guard.let_through(None)  # type: ignore[arg-type]
            guard.is_not_ours(LookupError())
        except TypeError as error:
            guard._not_ours = ()
            guard.fault("doing this", error)
        try:
            Handlers()(0, None)
        except TimeLimit as error:
            guard.fault("doing that", error)
        ours, theirs = (record.getMessage() for record in caplog.records)
        assert "Please report this" in ours
        assert f"It was raised in {__name__}." in theirs

    def test_places_without_end_are_not_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        """Of 10,000 different places 1,000 are told and remembered."""
        for number in range(10_000):
            guard.mistake(f"publishing to {number}", "no")
        assert (len(caplog.records), len(guard._logged)) == (1000, 1000)

    def test_registered_exceptions_go_through(self, caplog: pytest.LogCaptureFixture) -> None:
        """let_through names what a library raises from outside; its subclasses count; nothing is logged."""

        class Other(Exception):
            pass

        class Deeper(TimeLimit):
            pass

        guard.let_through(Other)
        guard.let_through(TimeLimit, TimeLimit)
        for error in (Other(), TimeLimit(), Deeper()):
            with pytest.raises(type(error)) as raised:
                guard.fault("doing this", error)
            assert raised.value is error
        assert caplog.records == []
        guard.fault("doing this", LookupError("ours"))

    @pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS.keys())
    def test_what_a_signal_handler_raises_goes_through(
        self, use: Callable[[Handler], None], caplog: pytest.LogCaptureFixture, handler: Handler
    ) -> None:
        """Whatever kind of handler it is, and wherever in it the exception was raised."""
        use(handler)
        with pytest.raises(TimeLimit) as raised:
            signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(TimeLimit) as again:
            guard.fault("doing this", raised.value)
        assert again.value is raised.value
        assert caplog.records == []

    def test_the_same_exception_raised_by_code_is_a_fault(
        self, use: Callable[[Handler], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Not its class but where it came from tells."""
        use(Handlers.function)
        try:
            raise TimeLimit
        except TimeLimit as error:
            guard.fault("doing this", error)
        assert len(caplog.records) == 1

    def test_an_exception_that_was_never_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        """It has no traceback, and is a fault like others."""
        guard.fault("doing this", TimeLimit())
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler])
    def test_handlers_without_code(
        self, use: Callable[[Any], None], caplog: pytest.LogCaptureFixture, handler: Any
    ) -> None:
        """Handlers that are no Python functions raise nothing of the kind, and disturb nothing."""
        use(handler)
        try:
            signal.Signals(9999)
        except ValueError as error:  # raised inside enum, whose code is no handler's
            guard.fault("doing this", error)
        assert len(caplog.records) == 1

    def test_in_another_thread(self, caplog: pytest.LogCaptureFixture) -> None:
        """Faults of worker threads are taken as well, where signals cannot be set."""
        thread = threading.Thread(target=guard.fault, args=("doing this", LookupError("ours")))
        thread.start()
        thread.join()
        assert len(caplog.records) == 1


class TestRaising:
    """Under queueprop's own test suite."""

    def test_faults_are_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        """The very exception, every time; nothing is logged."""
        error = LookupError("ours")
        for _ in range(2):
            with pytest.raises(LookupError) as raised:
                guard.fault("doing this", error)
            assert raised.value is error
        assert caplog.records == []

    @pytest.mark.parametrize(("value", "raises"), [("1", True), ("0", False), ("", False), (None, False)])
    def test_it_is_off_for_everybody_else(self, value: str | None, raises: bool) -> None:
        """A fresh process raises faults only where the suite's own variable says so."""
        environment = {} if value is None else {"_QUEUEPROP_RAISE_FAULTS": value}
        result = run("-c", "import queueprop.guard as guard; print(guard.raise_faults)", **environment)
        assert result.stdout.strip() == str(raises)


class TestMistake:
    """mistake(): something that the user can mend."""

    def test_one_line_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """A warning without a traceback, once a place and text; it is never raised, not even in our suite."""
        for _ in range(2):
            guard.mistake("writing headers", "a tuple cannot be written")
        guard.mistake("writing headers", "None cannot be written")
        assert [record.getMessage() for record in caplog.records] == [
            "queueprop, writing headers: a tuple cannot be written",
            "queueprop, writing headers: None cannot be written",
        ]
        assert all(record.exc_info is None for record in caplog.records)

    def test_it_is_one_line_whatever_it_names(self, caplog: pytest.LogCaptureFixture) -> None:
        """A name that comes from outside is escaped and cut, and is no other place."""
        for name in ("orders\nERROR forged: \x1b[31m", "x" * 5000):
            guard.mistake("publishing", "no room", about=name)
        (record,) = caplog.records
        assert record.getMessage() == r"queueprop, publishing (orders\nERROR forged: \x1b[31m): no room"
        guard.mistake("publishing", "x" * 5000)
        assert len(caplog.records[1].getMessage()) < 1100


class TestSlip:
    """slip(): a function of the user's that raised."""

    def test_one_line_that_says_where(self, caplog: pytest.LogCaptureFixture) -> None:
        """No traceback and no request to report it: what it raised, and in which line; once; also in our suite."""
        for _ in range(2):
            try:
                Handlers()(0, None)
            except TimeLimit as error:
                guard.slip("calling Settings(publish_hook=...)", error)
        (record,) = caplog.records
        assert re.fullmatch(
            r"queueprop, calling Settings\(publish_hook=\.\.\.\): it raised TimeLimit \(test_guard\.py:\d+\); "
            r"the message goes on without it",
            record.getMessage(),
        )
        assert record.exc_info is None

    def test_what_is_meant_for_the_program_goes_through(self) -> None:
        """A time limit that fires inside the user's function is raised."""
        guard.let_through(TimeLimit)
        with pytest.raises(TimeLimit):
            guard.slip("calling a hook", TimeLimit())


class Unprintable(Exception):
    """As an exception of somebody's who made a mistake in it."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class Broken(logging.Handler):
    """As a handler of somebody's that raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.fixture
def handler() -> Iterator[Callable[[logging.Handler], None]]:
    """Gives the root logger a handler, for the test alone."""
    added: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        added.append(handler)
        logging.root.addHandler(handler)

    yield add
    for one in added:
        logging.root.removeHandler(one)


TELLINGS: dict[str, Callable[[], None]] = {
    "fault": lambda: guard.fault("doing this", LookupError("ours")),
    "fault without a text": lambda: guard.fault("doing this", Unprintable()),
    "slip": lambda: guard.slip("calling a hook", Unprintable()),
    "mistake": lambda: guard.mistake("doing this", "no", about=Unprintable()),
    "log": lambda: guard.log(logging.ERROR, "no"),
}


@pytest.mark.usefixtures("guarded")
class TestTelling:
    """What is said, where logging is broken or is the traced library itself."""

    @pytest.mark.parametrize("tell", TELLINGS.values(), ids=TELLINGS.keys())
    def test_a_handler_that_raises(
        self, handler: Callable[[logging.Handler], None], tell: Callable[[], None]
    ) -> None:
        """Nothing of it is raised, whatever is told."""
        handler(Broken(ValueError("I/O operation on closed file")))
        tell()
        tell()

    @pytest.mark.parametrize("tell", TELLINGS.values(), ids=TELLINGS.keys())
    def test_a_filter_that_raises(self, monkeypatch: pytest.MonkeyPatch, tell: Callable[[], None]) -> None:
        """Nothing of it is raised, whatever is told."""

        def refuse(record: logging.LogRecord) -> bool:
            raise ValueError("no")

        monkeypatch.setattr(guard._logger, "filters", [refuse])
        tell()

    def test_a_time_limit_goes_through(self, handler: Callable[[logging.Handler], None]) -> None:
        """What a library raises from outside while a handler runs was meant for the program."""
        guard.let_through(TimeLimit)
        handler(Broken(TimeLimit()))
        with pytest.raises(TimeLimit):
            guard.mistake("doing this", "no")

    def test_a_closed_stderr(self) -> None:
        """A process whose stderr is closed goes on; also one that has none."""
        program = (
            "import sys, logging; logging.basicConfig(level=0); sys.stderr.{0}\n"
            "from queueprop import guard\n"
            "guard.fault('doing this', LookupError('ours')); guard.mistake('doing that', 'no'); print('on')\n"
        )
        closed = run("-c", program.format("close()"))
        none = run("-c", program.format("flush(); sys.stderr = None"))
        assert (closed.stdout, none.stdout) == ("on\n", "on\n")

    def test_a_log_that_is_shipped_through_the_traced_library(
        self, handler: Callable[[logging.Handler], None]
    ) -> None:
        """What a handler publishes meanwhile is suppressed, and its own fault is not said from within: no recursion."""
        suppressed = []

        class Shipping(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                suppressed.append(is_suppressed(get_current()))
                guard.fault("publishing", LookupError("ours"))

        handler(Shipping())
        for _ in range(40):
            guard.fault("publishing", LookupError("ours"))
        assert suppressed
        assert all(suppressed)
        assert not is_suppressed(get_current())

    def test_warnings_as_errors(self) -> None:
        """Under ``-W error`` nothing that is said is raised."""
        program = "from queueprop import guard as g; g.mistake('doing this', 'no'); g.fault('x', OSError()); print(1)"
        result = run("-W", "error", "-c", program)
        assert result.stdout == "1\n"
        assert result.stderr.startswith("queueprop, doing this: no\n")


SETUPS = {
    "no logging": ("", True),
    "a handler that shows it": ("logging.basicConfig(stream=sys.stdout)", False),
    "a handler at a higher level": (
        "h = logging.StreamHandler(); h.setLevel('ERROR'); logging.root.addHandler(h)",
        True,
    ),
    "the root logger at a higher level": ("logging.basicConfig(level='ERROR', stream=sys.stdout)", True),
    "handlers that show nothing": ("logging.root.addHandler(logging.NullHandler())", True),
    "all other loggers disabled": (
        "from queueprop import guard; import logging.config; "
        "logging.config.dictConfig({'version': 1, 'root': {'handlers': []}})",
        True,
    ),
    "told by name to be silent": ("logging.getLogger('queueprop').setLevel('ERROR')", False),
    "told by name to keep it": (
        "l = logging.getLogger('queueprop'); l.propagate = False; l.addHandler(logging.NullHandler())",
        False,
    ),
    "all of logging told to be silent": ("logging.disable()", False),
}


@pytest.mark.parametrize(("setup", "on_stderr"), SETUPS.values(), ids=SETUPS.keys())
def test_a_mistake_reaches_a_person(setup: str, on_stderr: bool) -> None:
    """On stderr, once, where no handler of the program shows it, unless somebody has asked for silence."""
    program = f"import logging, sys\n{setup}\nfrom queueprop import guard\nguard.mistake('doing this', 'no')"
    result = run("-c", program)
    assert result.stderr == ("queueprop, doing this: no\n" if on_stderr else "")


def test_mistakes_are_collected(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks for what a user would be told has all of it, what was told before included, and nobody else has."""
    for _ in range(2):
        with guard.collecting() as collected:
            guard.mistake("doing this", "no\n", about="orders")
        assert collected == ["doing this (orders): no\\n"]
    assert capsys.readouterr().err == ""


class TestWhereItGoes:
    """The same within one process."""

    @pytest.fixture(autouse=True)
    def _no_last_resort(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logging, "lastResort", None)

    def on_stderr(self, capsys: pytest.CaptureFixture[str], handlers: list[Any] | None = None) -> bool:
        guard._logged.clear()
        with pytest.MonkeyPatch.context() as patch:  # pytest's own handlers come with the test
            patch.setattr(logging.root, "handlers", handlers or [])
            guard.mistake("doing this", "no")
        return capsys.readouterr().err.endswith("queueprop, doing this: no\n")

    def test_no_handler(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """logging writes it, unless somebody took its last resort away."""
        assert self.on_stderr(capsys)
        monkeypatch.setattr(logging, "lastResort", logging.NullHandler())
        assert not self.on_stderr(capsys)

    def test_silence(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Of the logger by its level, and of all of logging."""
        with monkeypatch.context() as patch:
            patch.setattr(guard._logger, "level", logging.ERROR)
            assert not self.on_stderr(capsys)
        monkeypatch.setattr(logging.root.manager, "_disable", logging.WARNING)
        assert not self.on_stderr(capsys)

    def test_a_logger_that_was_disabled(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """By a configuration that disables all that it does not name: nobody has asked for it."""
        monkeypatch.setattr(guard._logger, "disabled", True)
        assert self.on_stderr(capsys)

    def test_what_is_no_handler(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Logging that is broken shows nothing."""
        assert self.on_stderr(capsys, [object()])

    def test_a_text_of_a_time_limit(self) -> None:
        """What is meant for the program goes through, also where only the text of something is asked for."""

        class Late:
            def __str__(self) -> str:
                raise TimeLimit

        guard.let_through(TimeLimit)
        with pytest.raises(TimeLimit):
            guard.one_line(Late())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_once_a_process_tree() -> None:
    """What the parent has said before a fork its children do not say again."""
    program = (
        "import os; from queueprop import guard\n"
        "for _ in range(2): guard.mistake('doing this', 'no')\n"
        "pids = [os.fork() or (guard.mistake('doing this', 'no'), os._exit(0)) for _ in range(3)]\n"
        "for pid in pids: os.waitpid(pid, 0)"
    )
    assert run("-c", program).stderr == "queueprop, doing this: no\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_siblings_say_it_once() -> None:
    """What one child of a process has said, which nobody had before, its siblings and its parent do not say again."""
    program = (
        "import os; from queueprop import guard\n"
        "for _ in range(3):\n"
        "    pid = os.fork() or (guard.mistake('doing this', 'no'), guard.mistake('doing this', 'no'), os._exit(0))\n"
        "    os.waitpid(pid, 0)\n"
        "guard.mistake('doing this', 'no'); guard.mistake('doing that', 'no')"
    )
    assert run("-c", program).stderr == "queueprop, doing this: no\nqueueprop, doing that: no\n"


def test_a_program_that_is_a_part_of_this_one() -> None:
    """It is told by its environment what was said, and so is one that it starts: they say the rest."""
    child = (
        "import os, subprocess, sys; from queueprop import guard\n"
        "for what in sys.argv[1:]: guard.mistake(f'doing {what}', 'no')\n"
        "if len(sys.argv) == 3: subprocess.run([sys.executable, '-c', os.environ['CHILD'], 'this', 'that', 'more'],\n"
        "    env={**os.environ, **guard.environment()}, check=True)"
    )
    guard.mistake("doing this", "no")
    result = run("-c", child, "this", "that", CHILD=child, **guard.environment())
    assert result.stderr == "queueprop, doing that: no\nqueueprop, doing more: no\n"


def test_what_such_a_program_is_told_has_a_bound() -> None:
    """However much was said here and by those that started this one: too long a variable would keep it from starting.
    Junk that stands there is handed on to nobody.
    """
    program = (
        "import sys; from queueprop import guard\n"
        "for number in range(2000): guard.mistake('doing this', str(number))\n"
        "[said] = guard.environment().values(); sys.stdout.write(f'{len(said)} {said.count(chr(44))} {said[:8]}')"
    )
    before = ",".join(f"{number:08x}" for number in range(9000))
    for told in (before, f"{'j' * 40_000},{before}"):
        length, commas, first = run("-c", program, _QUEUEPROP_SAID=told).stdout.split()
        assert int(length) < 9000
        assert int(commas) < 1000
        assert first != "00000000"


def test_where_no_page_can_be_shared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A system without memory to share, or that forbids it: each process says it once."""

    def refuse(*_: Any) -> Any:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("mmap.mmap", refuse)
    monkeypatch.setattr(guard, "_sayers", guard._shared_page())
    for _ in range(2):
        guard.mistake("doing this", "no")
    assert len(caplog.records) == 1


def test_siblings_that_begin_together_say_it_once() -> None:
    """Forked children that have the same thing to say in the same moment: one of them says it."""
    assert run("-c", SIBLINGS).stderr == "queueprop, doing this: no\n"


def test_a_sibling_that_died_in_the_middle_is_waited_for_once() -> None:
    """It holds the lock for ever; what is to be said is said, and the next thing at once."""
    result = run("-c", DIED)
    assert result.stderr == "queueprop, doing this: no\nqueueprop, doing that: no\n"
    assert result.stdout == "True None\n"


def test_a_page_that_stays_locked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever finds it so says what is to be said, and asks for the lock no more."""
    lock = guard._shared_lock()
    lock.acquire()
    monkeypatch.setattr(guard, "_page_lock", lock)
    monkeypatch.setattr(guard, "_LONGEST_WAIT", 0.01)
    guard.mistake("doing this", "no")
    assert (guard._page_lock, len(caplog.records)) == (None, 1)


@pytest.mark.parametrize("refusal", [OSError, TypeError])
def test_where_no_lock_can_be_shared(
    refusal: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A system without semaphores, or a Python that makes them otherwise: it is said all the same."""

    def refuse(*_: Any) -> Any:
        raise refusal

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    monkeypatch.setattr(guard, "_page_lock", guard._shared_lock())
    assert guard._page_lock is None
    guard.mistake("doing this", "no")
    assert len(caplog.records) == 1


# The page is read for so long that siblings look at it at the same time, were it not for the lock.
SIBLINGS = """
import os, time
from queueprop import guard

class SlowPage:
    def __getitem__(self, place):
        read = page[place]
        time.sleep(0.05)
        return read

    def __setitem__(self, place, value):
        page[place] = value

page, guard._sayers, guard._LONGEST_WAIT = guard._sayers, SlowPage(), 60
reading, writing = os.pipe()
for _ in range(4):
    if not os.fork():
        os.close(writing)
        os.read(reading, 1)
        guard.mistake("doing this", "no")
        os._exit(0)
os.close(writing)
for _ in range(4):
    os.wait()
"""

DIED = """
import os
from queueprop import guard

lock = guard._page_lock
if not os.fork():
    lock.acquire()
    os._exit(0)
os.wait()
guard.mistake("doing this", "no")
guard.mistake("doing that", "no")
print(lock is not None, guard._page_lock)
"""


def test_a_timer_in_the_middle_of_our_work() -> None:
    """A real interval timer whose handler raises while messages are sent and handled: each time the exception comes
    out, nothing of it is logged as a fault of ours, and what is current is as before."""
    result = run(str(Path(__file__).with_name("timer.py")), "50")
    assert (result.stdout.split(), result.stderr) == (["50", "50", "50"], "")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python that imports what this one does."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_the_keys_that_suppress_where_they_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API that keeps them under another name is asked what it sets: the same."""
    import_module("opentelemetry.instrumentation.utils")  # this one has the name, and imports it
    monkeypatch.delattr(context, "_SUPPRESS_INSTRUMENTATION_KEY")
    assert set(guard._suppressing_keys()) == set(guard.SUPPRESSING_KEYS)

"""The guard: a fault of ours is logged once a place, and what is not ours goes through."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from queueprop import guard


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
        """The next ones of a place go to DEBUG, whatever they are; another place is told of."""
        caplog.set_level(logging.DEBUG)
        for number in range(3):
            guard.fault("doing this", LookupError(number))
        guard.fault("doing that", LookupError("ours"))
        assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG", "WARNING"]

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

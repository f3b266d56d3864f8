"""``signal.signal`` while it is watched: ours stands where the default would, and nobody else notices."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from queueprop.process.sigterm import stand_in_for_default

TERM = signal.SIGTERM


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals that reached our handler, which stands in for the default of SIGTERM."""
    signals: list[int] = []
    before = signal.signal(TERM, signal.SIG_DFL)
    with pytest.MonkeyPatch.context() as restoring:
        for name in ("signal", "getsignal"):
            restoring.setattr(signal, name, getattr(signal, name))
        stand_in_for_default(lambda signum, frame: signals.append(signum))
        yield signals
    signal.signal(TERM, before)


def theirs(signum: int, frame: FrameType | None) -> None:
    pass


def test_ours_has_the_signal_at_once(came: list[int]) -> None:
    """Where the default would have killed the process."""
    signal.raise_signal(TERM)
    assert came == [TERM]


def test_who_asks_is_told_the_default(came: list[int]) -> None:
    """A program that sets a handler only where there is none sets it; what it gets back is what it had set."""
    assert signal.getsignal(TERM) is signal.SIG_DFL
    assert signal.signal(TERM, theirs) is signal.SIG_DFL
    assert signal.getsignal(TERM) is theirs
    assert signal.signal(TERM, signal.SIG_DFL) is theirs
    assert signal.signal(TERM, signal.SIG_DFL) is signal.SIG_DFL


@pytest.mark.parametrize(
    "restore",
    [
        lambda: signal.signal(TERM, signal.SIG_DFL),
        lambda: signal.signal(int(TERM), 0),
        lambda: signal.signal(signalnum=TERM, handler=signal.SIG_DFL),
        lambda: signal.signal(TERM, handler=signal.SIG_DFL),
        lambda: signal.signal(TERM, signal.getsignal(TERM) if came_back() else signal.SIG_DFL),
    ],
)
def test_a_default_that_comes_back_is_ours(came: list[int], restore: Callable[[], object]) -> None:
    """However it is written."""
    signal.signal(TERM, theirs)
    restore()
    signal.raise_signal(TERM)
    assert came == [TERM]


def came_back() -> bool:
    return signal.getsignal(TERM) is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, theirs])
def test_a_handler_of_theirs_stays(came: list[int], handler: Callable[..., object]) -> None:
    """Also one that ignores the signal."""
    signal.signal(TERM, handler)
    signal.raise_signal(TERM)
    assert signal.getsignal(TERM) is handler
    assert came == []


@pytest.mark.parametrize("handler", [signal.SIG_IGN, theirs])
def test_a_handler_that_was_there_stays(
    monkeypatch: pytest.MonkeyPatch, handler: Callable[..., object]
) -> None:
    """Whoever had one before us keeps it, until they put the default back."""
    monkeypatch.setattr(signal, "getsignal", signal.getsignal)
    monkeypatch.setattr(signal, "signal", signal.signal)
    came: list[int] = []
    before = signal.signal(TERM, handler)
    try:
        stand_in_for_default(lambda signum, frame: came.append(signum))
        assert signal.getsignal(TERM) is handler
        signal.raise_signal(TERM)
        assert came == []
        signal.signal(TERM, signal.SIG_DFL)
        signal.raise_signal(TERM)
        assert came == [TERM]
    finally:
        signal.signal(TERM, before)


def test_another_thread_begins_with_the_next_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can set no handler, and nothing is raised; when the main thread sets the default, ours is there."""
    monkeypatch.setattr(signal, "getsignal", signal.getsignal)
    monkeypatch.setattr(signal, "signal", signal.signal)
    came: list[int] = []
    before = signal.signal(TERM, signal.SIG_DFL)
    try:
        thread = threading.Thread(target=stand_in_for_default, args=[lambda *_: came.append(1)])
        thread.start()
        thread.join()
        assert signal.getsignal(TERM) is signal.SIG_DFL
        signal.signal(TERM, signal.SIG_DFL)
        signal.raise_signal(TERM)
        assert came == [1]
    finally:
        signal.signal(TERM, before)


def test_other_signals_keep_their_default(came: list[int]) -> None:
    """Only SIGTERM is watched."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_DFL


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (TERM,),
        (TERM, signal.SIG_DFL, 1),
        (TERM, "no handler"),
        (TERM, None),
        ("TERM", signal.SIG_DFL),
        (999, 0),
    ],
)
def test_what_python_refuses_it_refuses_in_its_own_words(
    came: list[int], arguments: tuple[object, ...]
) -> None:
    """Wrong arguments are the same errors as without us."""
    original = inspect.unwrap(signal.signal, stop=lambda function: hasattr(function, "__code__"))
    with pytest.raises((TypeError, ValueError)) as expected:
        original(*arguments)
    with pytest.raises(expected.type) as raised:
        signal.signal(*arguments)  # type: ignore[arg-type]
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, theirs])
def test_another_thread_gets_pythons_error(came: list[int], handler: Callable[..., object]) -> None:
    """Only the main thread may set a handler."""
    errors: list[str] = []

    def set_handler() -> None:
        try:
            signal.signal(TERM, handler)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=set_handler)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


def test_it_looks_like_pythons(came: list[int]) -> None:
    """Name, signature and documentation are those of the function that is watched."""
    assert signal.signal.__name__ == "signal"
    assert list(inspect.signature(signal.signal).parameters) == ["signalnum", "handler"]
    assert signal.getsignal.__name__ == "getsignal"


def test_a_program_that_is_started_has_the_default(came: list[int]) -> None:
    """Also where SIGTERM's default is set between fork and exec."""
    code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(TERM, signal.SIG_DFL),
        env={**os.environ},
    )
    assert result.stdout == "True\n"


def test_a_process_that_would_be_dead_knows_it() -> None:
    """From the signal on, and in no child: what it still does would not be done by default."""
    result = subprocess.run(
        [sys.executable, "-c", _ENDING], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert result.stdout.split() == ["False", "True", "False"], result.stderr


_ENDING = """
import os, signal
from queueprop.process import sigterm
from queueprop.process.exit import HandOver
HandOver(lambda: None, lambda: None, 60.0, 60.0).install()
print(sigterm.is_ending(), flush=True)
try:
    os.kill(os.getpid(), signal.SIGTERM)
except SystemExit:
    print(sigterm.is_ending(), flush=True)
    if os.fork() == 0:
        print(sigterm.is_ending(), flush=True)
        os._exit(0)
    os.wait()
"""

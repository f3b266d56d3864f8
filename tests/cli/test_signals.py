"""Ctrl-C and SIGTERM in the demo."""

from __future__ import annotations

import os
import signal

import pytest

from queueprop.cli.demo.signals import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_stops(number: int) -> None:
    """It raises, with the status of a death by that signal; those behind it change nothing."""
    with StopSignals():
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 128 + number


def test_held_signal_comes_at_the_end() -> None:
    """While signals are held nothing is raised; where holds are nested, the outermost ends it. Once."""
    done = []

    def work() -> None:
        with signals.held():
            with signals.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")

    with StopSignals() as signals:
        with pytest.raises(Stopped):
            work()
        with signals.held():
            done.append("after")
    assert done == ["inner", "outer", "after"]


def test_handlers_are_put_back() -> None:
    """Afterwards signals do what they did before."""
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before

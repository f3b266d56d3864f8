from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import metrics, trace

from queueprop.process.flush import flush

A_HANG = 60  # seconds


class Provider:
    def __init__(self, force_flush: Callable[[int], object]) -> None:
        self.force_flush = force_flush


Install = Callable[[object, object], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the two global providers in place."""

    def install(tracer_provider: object, meter_provider: object) -> None:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracer_provider)
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: meter_provider)

    return install


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that comes when the test is over, for the thread that is left behind."""
    event = threading.Event()
    yield event
    event.set()


def test_without_an_sdk_nothing_is_held_back(install: Install) -> None:
    """Providers that cannot flush have nothing to hand over."""
    install(object(), object())
    assert flush(A_HANG) is True


@pytest.mark.parametrize("answer", [True, None])
def test_both_providers_hand_over(install: Install, answer: object) -> None:
    """Spans and metrics are asked for, in milliseconds; no answer (a meter provider's) is a good one."""
    asked: list[int] = []

    def force_flush(milliseconds: int) -> object:
        asked.append(milliseconds)
        return answer

    install(Provider(force_flush), Provider(force_flush))
    assert flush(A_HANG) is True
    assert asked == [A_HANG * 1000] * 2


def test_by_default_the_setting_is_the_bound(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument QUEUEPROP_FLUSH_TIMEOUT counts."""
    asked: list[int] = []
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "45.5")
    install(Provider(asked.append), object())
    assert flush() is True
    assert asked == [45500]


def test_a_failure_is_false(install: Install) -> None:
    """One that says so, and one that raises."""

    def raises(milliseconds: int) -> object:
        raise OSError("the reader failed")

    install(Provider(lambda _: False), object())
    assert flush(A_HANG) is False
    install(object(), Provider(raises))
    assert flush(A_HANG) is False


def test_after_a_failure_the_other_provider_is_still_waited_for(install: Install) -> None:
    """The process may end right after flush(): metrics are handed over although spans could not be."""
    handed_over: list[str] = []
    failed = threading.Event()

    def fails(milliseconds: int) -> bool:
        failed.set()
        return False

    def slow(milliseconds: int) -> None:
        failed.wait(A_HANG)
        handed_over.append("metrics")

    install(Provider(fails), Provider(slow))
    assert flush(A_HANG) is False
    assert handed_over == ["metrics"]


@pytest.mark.parametrize("timeout", [0.01, 0, -1])
def test_an_exporter_that_blocks_is_left_behind(
    install: Install, never: threading.Event, timeout: float
) -> None:
    """The bound is hard, whatever the provider does with it."""
    install(Provider(lambda _: never.wait(A_HANG)), object())
    assert flush(timeout) is False


def test_any_timeout_can_be_given(install: Install) -> None:
    """One beyond what the platform can wait is cut."""
    install(object(), object())
    assert flush(1e300) is True


def test_where_no_thread_can_be_started_nothing_is_raised(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that is ending (3.12 and later), or a system at its limit."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    install(object(), object())
    assert flush(A_HANG) is False

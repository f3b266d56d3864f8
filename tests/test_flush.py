from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from opentelemetry import metrics, trace

from queueprop import guard
from queueprop.process import exit
from queueprop.process import flush as flushing
from queueprop.process.flush import flush

A_HANG = 60  # seconds


def test_its_public_name() -> None:
    """It is ``queueprop.flush.flush``; what ``queueprop.exit`` gives has its public name, too."""
    assert importlib.import_module("queueprop.flush").flush is flush
    doors = importlib.import_module("queueprop.exit")
    assert (doors.HandOver, doors.SIGTERM_STATUS) == (exit.HandOver, exit.SIGTERM_STATUS)


class Provider:
    def __init__(self, force_flush: Callable[[int], object]) -> None:
        self.force_flush = force_flush


Install = Callable[[object, object], None]


@pytest.fixture(autouse=True)
def in_vain(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """When the last wait in vain began, as the processes of a test run do not share it."""
    began = bytearray(8)
    monkeypatch.setattr(flushing.last_in_vain, "_began", began)
    return began


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


def test_spans_are_asked_for_where_the_setup_says(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of the kind that their provider was made with; metrics in one that is started."""
    tasks: list[Callable[[], None]] = []
    asked: list[str] = []

    def run(task: Callable[[], None]) -> None:
        tasks.append(task)
        task()

    install(Provider(lambda _: asked.append("spans")), Provider(lambda _: asked.append("metrics")))
    monkeypatch.setattr(flushing, "run_for_spans", run)
    assert flush(A_HANG) is True
    assert sorted(asked) == ["metrics", "spans"]
    assert len(tasks) == 1


class TimeLimit(Exception):
    pass


def test_a_time_limit_of_the_program_goes_through(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's, which is raised wherever the program stands."""

    def run(task: Callable[[], None]) -> None:
        raise TimeLimit

    monkeypatch.setattr(guard, "_not_ours", (TimeLimit,))
    monkeypatch.setattr(flushing, "run_for_spans", run)
    install(object(), object())
    with pytest.raises(TimeLimit):
        flush(A_HANG)


class TestHub:
    """gevent's hub of the thread that flushes is there before another thread has anything to do."""

    @pytest.fixture
    def order(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What is asked, in its order."""
        order: list[str] = []
        self.hub(monkeypatch, lambda: order.append("hub"))
        install(Provider(lambda _: order.append("flush")), object())
        return order

    def hub(self, monkeypatch: pytest.MonkeyPatch, get_hub: Callable[[], object]) -> None:
        monkeypatch.setitem(sys.modules, "gevent", cast(ModuleType, SimpleNamespace(get_hub=get_hub)))

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def sleep(seconds: float, wait: Callable[[float], object] = time.sleep) -> None:
            wait(seconds)

        sleep.__module__ = "gevent.hub"
        monkeypatch.setattr(time, "sleep", sleep)

    def test_patched(self, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is made first."""
        self.patch(monkeypatch)
        assert flush(A_HANG) is True
        assert order == ["hub", "flush"]

    def test_imported_only(self, order: list[str]) -> None:
        """Whoever waits without it needs none."""
        assert flush(A_HANG) is True
        assert order == ["flush"]

    def test_that_cannot_be_made(self, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """It may yet be in time; nothing is raised."""

        def get_hub() -> None:
            raise ImportError("on purpose")

        self.patch(monkeypatch)
        self.hub(monkeypatch, get_hub)
        assert flush(A_HANG) is True

    def test_a_time_limit_goes_through(self, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Here as anywhere."""

        def get_hub() -> None:
            raise TimeLimit

        self.patch(monkeypatch)
        self.hub(monkeypatch, get_hub)
        monkeypatch.setattr(guard, "_not_ours", (TimeLimit,))
        with pytest.raises(TimeLimit):
            flush(A_HANG)


class TestLastInVain:
    """What a process and its forked children know of the Collector."""

    def test_a_flush_in_vain_is_noted(
        self, install: Install, never: threading.Event, in_vain: bytearray
    ) -> None:
        """It began when it was called; one that is answered, even with a failure, takes the note away."""
        install(Provider(lambda _: never.wait(A_HANG)), object())
        before = time.monotonic()
        assert flush(1) is False
        began = flushing.last_in_vain.began(A_HANG, time.monotonic())
        assert began is not None
        assert before <= began <= time.monotonic() - 1
        install(Provider(lambda _: False), object())
        assert flush(A_HANG) is False
        assert flushing.last_in_vain.began(A_HANG, time.monotonic()) is None

    @pytest.mark.parametrize(("timeout", "is_noted"), [(0.01, False), (0.99, False), (1.0, True)])
    def test_one_of_less_than_a_second_is_not(
        self,
        install: Install,
        never: threading.Event,
        in_vain: bytearray,
        monkeypatch: pytest.MonkeyPatch,
        timeout: float,
        is_noted: bool,
    ) -> None:
        """It says nothing of the Collector."""
        now = 1000.0

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

        monkeypatch.setattr(flushing, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
        install(Provider(lambda _: never.wait(A_HANG)), object())
        assert flush(timeout) is False
        assert (in_vain != bytes(8)) is is_noted

    def test_a_child_and_its_parent_share_it(self) -> None:
        """What the one notes the other reads."""
        shared = flushing.LastInVain()
        pid = os.fork()
        if not pid:
            shared.note(time.monotonic() - 2)
            os._exit(0)
        os.waitpid(pid, 0)
        assert shared.began(A_HANG, time.monotonic()) is not None
        assert shared.began(2, time.monotonic()) is None


class TestWaiting:
    """It looks again and again, at shorter times for what is soon over."""

    def test_what_is_so_already_is_not_waited_for(self) -> None:
        """Also after the deadline."""
        assert flushing.wait_until(lambda: True, 0.0)

    def test_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is kept, and not overslept; nobody spins meanwhile."""
        pauses: list[float] = []
        now = 0.0

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds
            pauses.append(seconds)

        monkeypatch.setattr(flushing, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
        assert not flushing.wait_until(lambda: False, 5.0)
        assert now == pytest.approx(5.0)
        assert max(pauses) == 0.02
        assert len(pauses) < 300

    @pytest.mark.parametrize("takes", [0.001, 0.005, 0.02, 0.05])
    def test_it_is_late_by_a_fifth_at_most(self, monkeypatch: pytest.MonkeyPatch, takes: float) -> None:
        """And by less than the longest pause."""
        now = 0.0

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

        monkeypatch.setattr(flushing, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
        flushing.wait_until(lambda: now >= takes, 5.0)
        assert takes <= now < takes * 1.2 + 0.0002

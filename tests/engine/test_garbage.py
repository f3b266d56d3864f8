"""What the garbage collector ends: it runs wherever a thread stands, and waits for nobody's lock there."""

from __future__ import annotations

import _thread
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from queueprop import Message, Settings
from queueprop.engine import garbage
from queueprop.engine.engine import engine_for
from queueprop.kit.iteration import iterate_inside
from tests.telemetry import ORDERS

A_HANG = 60.0  # seconds


class Locking(SpanProcessor):
    """Takes a lock at the end of each span, as the SDK does for its measurements."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended: list[bool] = []
        self.over = threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        has_lock = self.lock.acquire(timeout=A_HANG)
        if has_lock:
            self.lock.release()
        self.ended.append(has_lock)
        self.over.set()


@pytest.fixture
def locking() -> Locking:
    return Locking()


@pytest.fixture
def left(locking: Locking) -> Callable[[], None]:
    """Leaves a loop over messages that only the garbage collector finds, in the middle of a message."""
    provider = TracerProvider()
    provider.add_span_processor(locking)
    engine = engine_for(Settings(tracer_provider=provider))

    def leave() -> None:
        loop = iterate_inside(iter([1, 2]), lambda number: engine.process(ORDERS, Message({})))
        try:
            for number in loop:
                raise LookupError(number)
        except LookupError as error:
            circle: list[Any] = [error]
            circle.append(circle)

    return leave


def test_a_span_is_ended_at_once(locking: Locking, left: Callable[[], None]) -> None:
    """Where nobody holds a lock it is over when the collector is."""
    left()
    assert locking.ended == []
    gc.collect()
    assert locking.ended == [True]


def test_a_lock_that_this_thread_holds(locking: Locking, left: Callable[[], None]) -> None:
    """The collector does not wait for it for ever, and the span is ended all the same, once it is released."""
    left()
    with locking.lock:
        gc.collect()
        assert locking.ended == []
    assert locking.over.wait(A_HANG)
    assert locking.ended == [True]


def test_greenlets_have_their_turn_later(
    locking: Locking, left: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where threads are replaced by them the collector waits for none: it may stand in their hub."""
    later: list[Callable[[], None]] = []
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, arguments: later.append(run))
    left()
    gc.collect()
    assert locking.ended == []
    [run] = later
    run()
    assert locking.ended == [True]


def test_what_ends_beside_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins no further thread, though garbage is collected still."""
    later: list[Callable[[], None]] = []
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, arguments: later.append(run))
    asked: list[bool] = []
    assert garbage.is_ended_beside(lambda: asked.append(garbage.is_ended_beside(lambda: None)))
    later.pop()()
    assert (asked, later) == ([False], [])


def test_at_the_end_of_the_interpreter(
    locking: Locking, left: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread is started there any more: the span is ended where the collector is."""

    def ending(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_thread, "start_new_thread", ending)
    left()
    gc.collect()
    assert locking.ended == [True]


def test_it_is_watched_once() -> None:
    """However many settings there are."""
    garbage.watch()
    garbage.watch()
    assert gc.callbacks.count(garbage._note) == 1

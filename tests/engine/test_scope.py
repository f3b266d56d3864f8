"""Scopes: what is current, and its exact restoring, in whatever order and place they are closed."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context, attach, detach, get_current, set_value
from opentelemetry.instrumentation.utils import suppress_instrumentation

from queueprop import guard
from queueprop.engine.scope import (
    AttachedContext,
    CarriedContext,
    current_scope,
    is_suppressed,
    span_context_of,
)


def opened(name: str) -> AttachedContext:
    """A scope that is current; its name can be read by ``current``."""
    scope = AttachedContext()
    before = get_current()
    scope.attach({**before, "name": name}, before)
    return scope


def current() -> object:
    return get_current().get("name")


@pytest.fixture(autouse=True)
def _no_failed_detach(caplog: pytest.LogCaptureFixture) -> object:
    """OpenTelemetry logs "Failed to detach context" where a token is used in the wrong place: never with us."""
    yield
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_it_restores_the_very_same_context() -> None:
    """Not an equal one: the object that was current."""
    attach(set_value("mine", 1))
    before = get_current()
    scope = opened("a")
    assert current() == "a"
    assert get_current()["mine"] == 1
    scope.detach()
    assert get_current() is before
    attach(Context())


def test_twice_is_once() -> None:
    """A second detach does not touch what is current by then."""
    before = get_current()
    scope = opened("a")
    scope.detach()
    other = opened("b")
    scope.detach()
    assert current() == "b"
    other.detach()
    assert get_current() is before


def test_a_captured_context_is_the_programs() -> None:
    """Whoever attaches the scope's context again by themselves keeps it: a late detach does not take it away."""
    scope = opened("a")
    captured = get_current()
    scope.detach()
    token = attach(captured)
    scope.detach()
    assert current() == "a"
    detach(token)


def test_never_attached() -> None:
    """Detaching or reattaching what never was current changes nothing."""
    before = get_current()
    AttachedContext().detach()
    AttachedContext().reattach()
    assert get_current() is before


def test_nested() -> None:
    """Closed in order: each restores the one around it."""
    before = get_current()
    outer, inner = opened("outer"), opened("inner")
    inner.detach()
    assert current() == "outer"
    outer.detach()
    assert get_current() is before


def test_the_outer_one_first() -> None:
    """Two interleaved loops: the one that is still open stays current, and then what was before both."""
    before = get_current()
    outer, inner = opened("outer"), opened("inner")
    outer.detach()
    assert current() == "inner"
    inner.detach()
    assert get_current() is before


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], ids=str)
def test_three_in_any_order(order: tuple[int, int, int]) -> None:
    """Whatever the order, the innermost open one is current, and nothing is left at the end."""
    before = get_current()
    scopes = [opened(str(number)) for number in range(3)]
    still_open = [0, 1, 2]
    for number in order:
        scopes[number].detach()
        still_open.remove(number)
        assert current() == (str(still_open[-1]) if still_open else None)
    assert get_current() is before


def test_opened_again_while_another_is_open() -> None:
    """reattach puts it on top of what is current now, and detach takes it off from there."""
    before = get_current()
    first = opened("first")
    first.detach()
    second = opened("second")
    first.reattach()
    assert current() == "first"
    first.reattach()  # it is current already
    first.detach()
    assert current() == "second"
    second.detach()
    assert get_current() is before


def test_a_context_that_was_left_on_top() -> None:
    """Somebody attached inside the scope and never detached: what was before the scope comes back."""
    before = get_current()
    scope = opened("a")
    attach(set_value("left", 1))
    scope.detach()
    assert get_current() is before


def test_a_context_that_does_not_know_it() -> None:
    """Where a fresh context is current, not ours, it stays: it is not ours to take away."""
    before = get_current()
    scope = opened("a")
    token = attach(Context({"name": "theirs"}))
    scope.detach()
    assert current() == "theirs"
    detach(token)
    attach(before)


def test_in_another_thread() -> None:
    """Detached by another thread, it changes nothing there."""
    scope = opened("a")
    seen: list[object] = []

    def close() -> None:
        other = opened("other")
        scope.detach()
        seen.append(current())
        other.detach()
        seen.append(get_current())

    before = scope._previous
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert seen == ["other", {}]
    assert before is not None
    attach(before)


def test_in_a_copied_context() -> None:
    """Closed where a copy of its contextvars Context runs (a callback of asyncio's): no error, and only that copy."""
    scope = opened("a")
    copied = contextvars.copy_context()
    copied.run(scope.detach)
    assert copied.run(current) is None
    assert current() == "a"
    attach(Context())


def test_tasks_interleaved() -> None:
    """Each task has its own: a hundred of them, stepping in turn, see themselves and leave nothing."""

    async def work(number: int) -> bool:
        before = get_current()
        scope = opened(str(number))
        for _ in range(5):
            await asyncio.sleep(0)
            if current() != str(number):
                return False
        scope.detach()
        return get_current() is before

    async def run() -> list[bool]:
        return await asyncio.gather(*(work(number) for number in range(100)))

    assert asyncio.run(run()) == [True] * 100


def test_current_scope() -> None:
    """The innermost operation that is current; a carried context belongs to the operation that it came from."""
    assert current_scope(get_current()) is None
    scope = opened("a")
    assert current_scope(get_current()) is scope
    inside = get_current()
    scope.detach()
    carried = CarriedContext(inside)
    twice: list[object] = []
    carried.open()
    again = CarriedContext(get_current())
    again.open()
    twice.append(current_scope(get_current()))
    assert current() == "a"
    again.close()
    carried.close()
    assert twice == [scope]
    assert get_current() == {}


def test_a_carried_context_without_an_operation() -> None:
    """A context of nobody's is carried all the same."""
    carried = CarriedContext(Context({"name": "x"}))
    carried.open()
    assert current() == "x"
    assert current_scope(get_current()) is None
    carried.close()
    assert current() is None


def test_a_time_limit_while_a_span_is_asked_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library raises from outside is not a span that does not tell."""

    class TimeLimit(Exception):
        pass

    class Slow:
        def get_span_context(self) -> None:
            raise TimeLimit

    monkeypatch.setattr(guard, "is_not_ours", lambda error: isinstance(error, TimeLimit))
    with pytest.raises(TimeLimit):
        span_context_of(Slow())


def test_suppression_is_seen() -> None:
    """suppress_instrumentation() counts under every key that OpenTelemetry uses for it, and ends with its block."""
    assert not is_suppressed(get_current())
    with suppress_instrumentation():
        inside = get_current()
        assert is_suppressed(inside)
    keys = [key for key, value in inside.items() if value is True]
    assert keys
    for key in keys:
        assert is_suppressed(Context({key: True}))
        assert not is_suppressed(Context({key: False}))


def test_other_values_suppress_nothing() -> None:
    """Whatever else a program keeps in its context is no suppression."""
    assert not is_suppressed(Context({"mine": True, "suppress_me": True}))


@given(st.lists(st.tuples(st.sampled_from(["attach", "detach", "reattach"]), st.integers(0, 4)), max_size=40))
def test_any_order(steps: list[tuple[str, int]]) -> None:
    """Whatever is attached, detached and attached again in whatever order: the one that came last of those that are
    still attached is current, and at the end the very context of the beginning."""
    before = get_current()
    scopes: dict[int, AttachedContext] = {}
    still_attached: list[int] = []
    for step, number in steps:
        if step == "attach" and number not in scopes:
            scopes[number] = opened(str(number))
            still_attached.append(number)
        elif step == "detach" and number in scopes:
            scopes[number].detach()
            if number in still_attached:
                still_attached.remove(number)
        elif step == "reattach" and number in scopes:
            scopes[number].reattach()
            if number not in still_attached:
                still_attached.append(number)
        assert current() == (str(still_attached[-1]) if still_attached else None)
    for number in still_attached:
        scopes[number].detach()
    assert get_current() is before


class TimeIsUp(BaseException):
    """As a time limit raises it, wherever the program stands."""


def test_a_time_limit_while_a_carried_context_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody closes what did not open: nothing of it stays current."""

    def attach_and_be_interrupted(context: Context) -> object:
        token = attach(context)
        if context.get("name") == "carried":
            raise TimeIsUp
        return token

    monkeypatch.setattr("queueprop.engine.scope.attach", attach_and_be_interrupted)
    with pytest.raises(TimeIsUp):
        CarriedContext(Context({"name": "carried"})).open()
    assert current() is None

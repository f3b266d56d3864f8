"""A job that is performed, its context in one of its options, and the end of a worker process."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import attach, get_current
from opentelemetry.trace import StatusCode, get_current_span

from queueprop import Message, guard
from queueprop.engine.engine import Engine
from queueprop.kit import jobs
from queueprop.kit.jobs import (
    Children,
    Performance,
    carrier_for,
    carrier_in,
    made_by,
    perform,
    perform_async,
    performance_at_hand,
    with_carrier,
)
from queueprop.process.flush import flush
from tests.telemetry import ORDERS, TRACE, TRACEPARENT, Telemetry, attributes


@pytest.fixture
def make(telemetry: Telemetry) -> Callable[..., Performance]:
    engine = Engine(telemetry.settings())

    def performance(error: BaseException | None = None) -> Performance:
        return Performance(engine.process(ORDERS, Message({"traceparent": TRACEPARENT})), error)

    return performance


class TestPerformance:
    def test_the_job_runs_inside_its_span(
        self, telemetry: Telemetry, make: Callable[..., Performance]
    ) -> None:
        """Every hook below finds the performance, of this library alone; afterwards nothing is left."""
        performance = make()

        def work(number: int, *, factor: int) -> int:
            assert performance_at_hand("tasks") is performance
            assert performance_at_hand("others") is None
            assert get_current_span() is performance.process.span
            return number * factor

        before = get_current()
        assert perform("tasks", performance, work, (6,), {"factor": 7}) == 42
        assert performance_at_hand("tasks") is None
        assert get_current() is before
        assert telemetry.only().context.trace_id == TRACE

    def test_without_a_performance_it_is_the_call(self) -> None:
        """Nothing is traced."""
        assert perform("tasks", None, lambda: performance_at_hand("tasks"), (), {}) is None

    def test_what_comes_out_is_the_job_s_error(
        self, telemetry: Telemetry, make: Callable[..., Performance]
    ) -> None:
        """It is raised on, and is the span's."""
        with pytest.raises(LookupError):
            perform("tasks", make(), {}.popitem, (), {})
        assert attributes(telemetry.only())["error.type"] == "KeyError"

    def test_what_a_hook_was_told_first_is_the_job_s_error(
        self, telemetry: Telemetry, make: Callable[..., Performance]
    ) -> None:
        """What the library keeps to itself; what follows from it is another's. An exception may be false."""

        class Empty(Exception):
            def __bool__(self) -> bool:
                return False

        performance = make()

        def work() -> None:
            performance.note(None)
            performance.note(Empty())
            performance.note(LookupError())
            raise TimeoutError

        with pytest.raises(TimeoutError):
            perform("tasks", performance, work, (), {})
        assert attributes(telemetry.only())["error.type"].endswith("Empty")
        assert performance.error is None  # nobody holds its traceback

    def test_a_job_that_has_failed_before_it_began(
        self, telemetry: Telemetry, make: Callable[..., Performance]
    ) -> None:
        """The span has that error."""
        perform("tasks", make(LookupError("no such task")), lambda: None, (), {})
        assert telemetry.only().status.description == "no such task"

    @pytest.mark.parametrize(
        ("code", "text"), [(0, "0"), (3, "3"), ("enough", "enough"), ([], "[]"), (None, "")]
    )
    def test_an_exit_is_a_failure_of_a_job(
        self, telemetry: Telemetry, make: Callable[..., Performance], code: Any, text: str
    ) -> None:
        """Whatever its status, where it would be the end of a program."""
        with pytest.raises(SystemExit):
            perform("tasks", make(), lambda: (_ for _ in ()).throw(SystemExit(code)), (), {})
        span = telemetry.only()
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, text)
        assert attributes(span)["error.type"] == "SystemExit"

    def test_what_a_job_leaves_behind_is_put_back(self, make: Callable[..., Performance]) -> None:
        """A context that it attached and never detached."""
        before = get_current()
        perform("tasks", make(), lambda: attach(baggage.set_baggage("left", "behind")), (), {})
        assert get_current() is before

    def test_a_fault_of_ours_ends_no_job(
        self, telemetry: Telemetry, make: Callable[..., Performance], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The span ends all the same."""
        monkeypatch.setattr(guard, "raise_faults", False)
        performance = make()
        monkeypatch.setattr(performance, "conclude", {}.popitem)
        assert perform("tasks", performance, lambda: 7, (), {}) == 7
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_an_error_of_the_library_s_own_end_is_put_back_too(
        self, make: Callable[..., Performance]
    ) -> None:
        """A time limit may be raised in our own code at a job's end: nothing stays current."""

        class TimeLimit(BaseException):
            pass

        performance, before = make(), get_current()

        def leave(failure: BaseException | None) -> None:
            attach(baggage.set_baggage("left", "behind"))
            raise TimeLimit

        performance.leave = leave  # type: ignore[method-assign]
        with pytest.raises(TimeLimit):
            perform("tasks", performance, lambda: None, (), {})
        assert get_current() is before
        assert performance_at_hand("tasks") is None


class TestAsyncPerformance:
    """The same around a coroutine function."""

    def test_the_job_runs_inside_its_span(
        self, telemetry: Telemetry, make: Callable[..., Performance]
    ) -> None:
        """Across its awaits; afterwards nothing is left, whatever it has left behind."""
        performance = make()

        async def work(number: int, *, factor: int) -> int:
            await asyncio.sleep(0)
            assert performance_at_hand("tasks") is performance
            assert get_current_span() is performance.process.span
            attach(baggage.set_baggage("left", "behind"))
            return number * factor

        async def worker() -> None:
            before = get_current()
            assert await perform_async("tasks", performance, work, (6,), {"factor": 7}) == 42
            assert performance_at_hand("tasks") is None
            assert get_current() is before

        asyncio.run(worker())
        assert telemetry.only().context.trace_id == TRACE

    def test_without_a_performance_it_is_the_call(self) -> None:
        """Nothing is traced."""

        async def work() -> Any:
            return performance_at_hand("tasks")

        assert asyncio.run(perform_async("tasks", None, work, (), {})) is None

    def test_a_cancelled_job_has_failed(self, telemetry: Telemetry, make: Callable[..., Performance]) -> None:
        """The cancellation goes on, and is the span's error."""

        async def work() -> None:
            raise asyncio.CancelledError

        async def worker() -> None:
            with pytest.raises(asyncio.CancelledError):
                await perform_async("tasks", make(), work, (), {})

        asyncio.run(worker())
        assert attributes(telemetry.only())["error.type"] == "asyncio.exceptions.CancelledError"


class TestCarrier:
    """The context, under a name among a job's options."""

    def test_what_a_job_came_with(self) -> None:
        """Whatever it is; None where there is nothing, or no options."""
        assert carrier_in({"queueprop": {"traceparent": "x"}}, "queueprop") == {"traceparent": "x"}
        assert carrier_in({}, "queueprop") is carrier_in(["queueprop"], "queueprop") is None

    def test_where_a_publish_writes(self) -> None:
        """A dict of its own, with what a forwarded job has, but for an adapter's own entries."""
        options = {"queueprop": {"traceparent": "x", "sent_at": "1"}}
        found = carrier_for(options, "queueprop", apart_from=("sent_at",))
        assert found == {"traceparent": "x"}
        assert found is not options["queueprop"]
        assert carrier_for({"queueprop": 7}, "queueprop") == carrier_for(None, "queueprop") == {}

    def test_it_goes_into_a_copy(self) -> None:
        """Of the same class; the caller's stays as it is."""

        class Options(dict[str, Any]):
            pass

        options = Options(tenant="a")
        written = with_carrier(options, "queueprop", {"traceparent": "x"})
        assert (type(written), written) == (Options, {"tenant": "a", "queueprop": {"traceparent": "x"}})
        assert options == {"tenant": "a"}

    def test_without_a_context_an_old_one_goes(self) -> None:
        """And where there is none, nothing is copied; nor of what are no options."""
        assert with_carrier({"queueprop": {}, "tenant": "a"}, "queueprop", {}) == {"tenant": "a"}
        for options in ({"tenant": "a"}, ["tenant"], None):
            assert with_carrier(options, "queueprop", {}) is options
        assert with_carrier(["tenant"], "queueprop", {"traceparent": "x"}) == ["tenant"]


class TestChildren:
    @pytest.mark.parametrize("is_child", [False, True])
    def test_they_hand_over_their_spans_at_their_end(
        self, monkeypatch: pytest.MonkeyPatch, is_child: bool
    ) -> None:
        """One that forks after its fork, one that was spawned at once: behind the finalizers of others."""
        finalizers: list[Any] = []
        after_fork: list[Any] = []
        monkeypatch.setattr(
            multiprocessing.util, "Finalize", lambda *args, **kwargs: finalizers.append((args, kwargs))
        )
        monkeypatch.setattr(
            multiprocessing.util, "register_after_fork", lambda *args: after_fork.append(args)
        )
        monkeypatch.setattr(
            multiprocessing, "parent_process", lambda: SimpleNamespace() if is_child else None
        )
        children = Children(1.5)
        assert len(finalizers) == is_child
        [(kept, begin)] = after_fork
        assert kept is children
        begin(children)
        assert finalizers == [((None, flush, (1.5,)), {"exitpriority": -900})] * (1 + is_child)


class TestSchedule:
    """What the jobs of a schedule are linked to."""

    @pytest.mark.parametrize(
        ("carrier", "made"),
        [
            ({"traceparent": "first"}, "first"),
            ({"traceparent": "latest", "schedule": "first"}, "first"),
            ({"tracestate": "a=1"}, None),
            (None, None),
            (7, None),
        ],
    )
    def test_it_is_the_making_however_many_there_were_between(self, carrier: Any, made: str | None) -> None:
        """Not the job before, whose context the next one comes with; nothing where nothing usable is there."""
        headers = {"tracestate": "b=2"}
        assert made_by(headers, carrier) == made
        assert headers.get("traceparent") == made
        assert headers["tracestate"] == "b=2"


def test_a_program_that_the_launcher_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are not led to it."""
    monkeypatch.delitem(sys.modules, jobs.AUTO_INSTRUMENTATION, raising=False)
    monkeypatch.setenv("PYTHONPATH", "ours")
    jobs.lead_to_launcher()
    assert os.environ["PYTHONPATH"] == "ours"

"""The judgements of the torture: each of its rules notices what it is there for."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context
from rich.console import Console

from integration.brokers import BrokerError
from integration.torture import children, concurrency, fuzz, hostile, soak
from integration.torture.__main__ import _rows
from integration.torture.hostilities import BEHAVIOURS, HOSTILITIES, Behaviour, Broken
from integration.torture.report import Row, printed


def test_one_row_that_fails_fails_all() -> None:
    """The exit status is that of all rows, whichever comes last."""
    console = Console(file=io.StringIO())

    assert printed([Row("soak", "rq", "it", True, {"messages": 1})], console)
    assert not printed([Row("soak", "rq", "it", False), Row("soak", "pika", "it", True)], console)


def test_a_part_that_is_brought_down_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had found is told, that it did not get to its end fails, and the parts behind it run."""

    def no_broker(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
        yield Row("hostile", "rq", "stand-in", True)
        raise BrokerError("RabbitMQ did not answer; its log ends with:\nstarted")

    monkeypatch.setattr(hostile, "run", no_broker)
    monkeypatch.setattr(soak, "run", lambda is_short, say: [Row("soak", "rq", "it", True)])

    rows = list(_rows(("hostile", "soak"), True, Console(file=io.StringIO())))

    assert [(row.part, row.library, row.holds) for row in rows] == [
        ("hostile", "rq", True),
        ("hostile", "all", False),
        ("soak", "rq", True),
    ]
    assert rows[1].counts == {"BrokerError": "RabbitMQ did not answer; its log ends with:"}


class TestFuzz:
    """Plain and traced, compared."""

    def test_what_plain_does_not_raise_is_found(self) -> None:
        """Of a publish and of a delivery."""
        plain = ["publish sent a=str; deliver  handled 1"]

        assert list(fuzz.differing(plain, plain)) == []
        assert len(list(fuzz.differing(plain, ["publish TypeError ; deliver  handled 1"]))) == 1
        assert len(list(fuzz.differing(plain, ["publish sent a=str; deliver KeyError handled 0"]))) == 1

    def test_a_lost_header_and_an_altered_object_are_found(self) -> None:
        """Headers of others go out as they are, and what the caller owns stays as it was."""
        plain = ["publish sent a=str; deliver  handled 1"]

        assert len(list(fuzz.differing(plain, ["publish sent ; deliver  handled 1"]))) == 1
        assert len(list(fuzz.differing(plain, ["publish sent a=str altered; deliver  handled 1"]))) == 1
        assert len(list(fuzz.differing(plain, ["publish sent a=str; deliver  handled 1 altered"]))) == 1

    def test_what_plain_refuses_may_go_out(self) -> None:
        """An odd context is replaced; a delivery beside it is judged all the same."""
        plain = ["publish TypeError ; deliver  handled 1"]

        assert list(fuzz.differing(plain, ["publish sent ; deliver  handled 1"])) == []
        assert len(list(fuzz.differing(plain, ["publish sent ; deliver  handled 0"]))) == 1

    def test_what_cannot_be_looked_into_must_go_out_all_the_same(self) -> None:
        """A container of the caller's whose class raises, of which ours has sent a copy."""
        plain = ["publish sent unreadable; deliver  handled 1"]

        assert list(fuzz.differing(plain, ["publish sent a=str; deliver  handled 1"])) == []
        assert len(list(fuzz.differing(plain, ["publish TypeError ; deliver  handled 1"]))) == 1
        assert len(list(fuzz.differing(plain, ["publish sent  altered; deliver  handled 1"]))) == 1


REPORT: children.Report = {
    "messages": 10,
    "PRODUCER spans": 10,
    "CONSUMER spans": 10,
    "settle spans": 0,
    "grown KiB": 100,
    "threads left": 0,
    "descriptors left": 0,
    "contexts left": 0,
}


class TestSoak:
    """What a report must say."""

    @pytest.mark.parametrize(
        "worse",
        [
            {"CONSUMER spans": 11},
            {"CONSUMER spans": 9},
            {"settle spans": 9},
            {"threads left": 1},
            {"descriptors left": 1},
            {"contexts left": 1},
            {"grown KiB": 2048},
        ],
        ids=str,
    )
    def test_each_rule_is_judged(self, worse: dict[str, int]) -> None:
        """A span too many or too few, what is left, what grows."""
        assert soak._holds(REPORT, is_short=False)
        assert not soak._holds({**REPORT, **worse}, is_short=False)

    def test_what_plain_grows_by_is_not_ours(self) -> None:
        """A library may keep something of each message itself."""
        grown = {**REPORT, "grown KiB": 5000}

        assert not soak._holds({**grown, "grown plain KiB": 100}, is_short=False)
        assert soak._holds({**grown, "grown plain KiB": 4900}, is_short=False)


class TestHostile:
    """What is called, and by how many at once."""

    def test_threads_that_wait_for_each_other_are_found(self) -> None:
        """Blocked one after another, as behind a lock, or at the same time."""
        lock = threading.Lock()

        def locked(behaviour: Behaviour) -> None:
            with lock:
                behaviour(None)

        waited, beside = BEHAVIOURS["blocks"](), hostile.meeting()
        _in_threads(lambda: locked(waited))
        _in_threads(lambda: beside(None))

        assert waited.at_once == 1
        assert beside.at_once > 1
        assert hostile._held_up("consume_hook", waited) == ["4 calls, one after another"]
        assert hostile._held_up("consume_hook", beside) == []

    def test_a_call_too_many_is_found(self) -> None:
        """A hook is called once a message."""
        hook = Behaviour("gives None", lambda: None)
        hook.calls, hook.at_once = 100, 2

        assert hostile._held_up("publish_hook", hook) == ["100 calls for 8 messages"]

    @pytest.mark.parametrize("place", ["processor.on_end", "sampler.should_sample", "ids.span", "span.end"])
    def test_a_place_of_the_sdk_behaves(self, place: str) -> None:
        """Somebody who starts a span without queueprop gets what is raised there."""
        behaviour = BEHAVIOURS["raises"]()

        with HOSTILITIES[place](behaviour, {}) as settings, pytest.raises(Broken):
            settings.tracer_provider.get_tracer("test").start_span("it").end()

        assert behaviour.calls == 1


def _in_threads(act: Any) -> None:
    threads = [threading.Thread(target=act) for _ in range(hostile.THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestConcurrency:
    """What a handler compares."""

    def test_another_trace_or_other_baggage_is_wrong(self) -> None:
        """Only its own are right, and nothing is left behind."""
        before, verdict = context.get_current(), concurrency.Verdict()

        with concurrency.request(1) as first:
            verdict.check(first)
        with concurrency.request(2) as second:
            verdict.check(second)
            verdict.check(first)
            verdict.check(second.replace("-2", "-3"))

        assert verdict.handled == [True, True, False, False]
        assert context.get_current() == before

    def test_the_long_form_is_a_million(self) -> None:
        """In sum, and of equal parts for each thread or task."""
        assert sum(concurrency.MESSAGES.values()) >= 1_000_000
        for (way, library), number in concurrency.MESSAGES.items():
            greenlets = concurrency.THREADS if library == "celery" else concurrency.GREENLETS
            threads = {
                "threads": concurrency.THREADS,
                "pool": concurrency.THREADS,
                "tasks": concurrency.TASKS,
            }
            assert number % threads.get(way, greenlets) == 0, (way, library)

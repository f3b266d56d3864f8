"""Behaviours of the current context: 15, 16, 24."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import baggage, context, trace

from integration.contract import values
from integration.contract.actions import do
from integration.contract.run import Rig, Run
from integration.contract.scenario import scenario
from integration.contract.telemetry import DEADLINE, ambient_span

_DETACH = "Failed to detach context"


class Contexts:
    @scenario(15)
    @pytest.mark.parametrize("outcome", ["returns", "raises"])
    def test_after_a_handler_the_context_is_as_before(self, rig: Rig, outcome: str) -> None:
        """A handler returned or raised: what was current around the loop is current again, and the span has
        ended.
        """
        handler = do("observe") if outcome == "returns" else do("fail", times=1)
        refusal = rig.driver_class.refusals[0]
        deliveries = 1 if outcome == "returns" else refusal.deliveries
        with rig.run() as run, ambient_span():
            run.driver.publish("hello", refusal=refusal.name)
            before = context.get_current()
            run.driver.consume(handler, deliveries if outcome == "returns" else min(2, deliveries))
            assert context.get_current() == before
            assert run.consumers
            _assert_no_detach_failure(run)

    @scenario(15)
    def test_after_a_publish_the_context_is_as_before(self, rig: Rig) -> None:
        """A publish that worked, and one that failed, leave the current context alone."""
        with rig.run() as run, ambient_span():
            before = context.get_current()
            run.driver.publish("hello")
            for failing in run.driver.failing():
                with pytest.raises(Exception):  # noqa: B017, PT011 -- which one is scenario 10's matter
                    failing.publish()
            assert context.get_current() == before
            _assert_no_detach_failure(run)

    @scenario(15, "exits")
    def test_a_loop_that_is_left_leaves_nothing_behind(self, rig: Rig) -> None:
        """break, return, an exception, a cancel, a generator closed elsewhere: nothing is current that was
        not before.
        """
        for how in rig.driver_class.exits(rig.column.style):
            with rig.run() as run, ambient_span():
                run.driver.publish("one")
                run.driver.publish("two")
                before = context.get_current()
                run.driver.leave(how, do("observe"))
                assert context.get_current() == before, how
                assert [seen.body for seen in run.seen] == ["one"], how
                consumer = run.consumers[0]
                assert (consumer.trace_id, consumer.span_id) == (run.seen[0].trace_id, run.seen[0].span_id), (
                    how
                )
                _assert_no_detach_failure(run)

    @scenario(15, "same thread")
    def test_ten_thousand_messages_leave_the_thread_as_it_was(self, rig: Rig) -> None:
        """Each of ten thousand handlers on one thread is in its own message's trace, and nothing has piled up
        after.
        """
        count = rig.driver_class.many(rig.column)
        with rig.run() as run, ambient_span():
            before = context.get_current()
            for number in range(1, count + 1):
                producer = trace.SpanContext(number, number, True, trace.TraceFlags(0))
                with values.current(trace.set_span_in_context(trace.NonRecordingSpan(producer), before)):
                    run.driver.publish(f"{number:032x}")
            run.driver.consume(do("check current"), count)
            assert context.get_current() == before
            assert run.seen == [], "handlers that ran in another trace than their message's"
            assert run.driver.counts().left == 0
            _assert_no_detach_failure(run)

    @scenario(16)
    def test_publishers_in_threads_do_not_mix(self, rig: Rig) -> None:
        """Threads publish at the same time: each message carries the trace and the baggage of its own
        thread.
        """
        with rig.run() as run:
            count = len(rig.thinned(range(8), 2))
            expected = _publish_from_threads(run, count)
            run.driver.consume(do("observe"), count)
            assert {seen.body: (seen.trace_id, dict(seen.baggage)) for seen in run.seen} == expected

    @scenario(16, "concurrency")
    def test_handlers_at_once_do_not_mix(self, rig: Rig) -> None:
        """Eight threads or processes, or a hundred tasks, all inside a handler at once: each sees its own
        trace, throughout.
        """
        count = rig.driver_class.at_once(rig.column.style)
        with rig.run() as run:
            expected = _publish_from_threads(run, count)
            run.driver.consume_concurrently(do("meet", count=count), count)
            for note in ("before", "after"):
                seen = {it.body: (it.trace_id, dict(it.baggage)) for it in run.seen if it.note == note}
                assert seen == expected, note
            assert {(span.trace_id, span.parent_id) for span in run.consumers} == {
                it.context for it in run.producers
            }
            _assert_no_detach_failure(run)

    @scenario(24)
    def test_carried_work_stays_in_the_trace(self, rig: Rig) -> None:
        """carry_context hands the handler's span and baggage to a thread and an executor; else they are outside."""
        with rig.run() as run:
            with values.current(baggage.set_baggage("tenant", "42")), ambient_span():
                run.driver.publish("hello")
            run.driver.consume(do("executor"))
            by_note = {seen.note: seen for seen in run.seen}
            for note in ("thread", "executor"):
                carried = by_note[note]
                assert (carried.trace_id, carried.span_id) == run.consumer.context, note
                assert carried.baggage == {"tenant": "42"}, note
                work = next(span for span in run.spans if span.span_id == carried.child_id)
                assert (work.trace_id, work.parent_id) == run.consumer.context, note
            bare = by_note["without carry_context"]
            assert int(bare.trace_id, 16) == 0
            assert bare.baggage == {}


def _publish_from_threads(run: Run, count: int) -> dict[str, tuple[str, dict[str, str]]]:
    """One message in a trace of its own from each of at most eight threads at a time; what each handler
    should see.
    """
    threads = min(count, 8)
    start = threading.Barrier(threads)

    def publish(number: int) -> tuple[str, tuple[str, dict[str, str]]]:
        if number < threads:
            start.wait(DEADLINE)
        body = f"message {number}"
        with values.current(baggage.set_baggage("sender", str(number))), ambient_span() as ambient:
            run.driver.publish(body)
        return body, (values.ids(ambient)[0], {"sender": str(number)})

    with ThreadPoolExecutor(threads) as executor:
        return dict(executor.map(publish, range(count)))


def _assert_no_detach_failure(run: Run) -> None:
    assert [text for text in run.complaints() if _DETACH in text] == []

"""Behaviours of worker processes and of brokers that come back: 22, 23, 27."""

from __future__ import annotations

import os

from integration.contract.actions import do
from integration.contract.run import Rig, together
from integration.contract.scenario import scenario
from integration.contract.telemetry import ambient_span


class Workers:
    @scenario(22, "worker processes")
    def test_worker_processes_lose_no_span(self, rig: Rig) -> None:
        """Every message handled in a child process has its CONSUMER span and its handler's span; no id comes
        twice.
        """
        count = len(rig.thinned(range(12), 3))
        with rig.run() as run:
            for number in range(count):
                with ambient_span():
                    run.driver.publish(f"message {number}")
            run.driver.consume(do("observe"), count)
            assert len(run.seen) == len(run.consumers) == count
            work = [span for span in run.spans if span.name == "work"]
            assert sorted(span.span_id for span in work) == sorted(seen.child_id for seen in run.seen)
            assert {(span.trace_id, span.parent_id) for span in run.consumers} == {
                it.context for it in run.producers
            }
            assert {(span.trace_id, span.parent_id) for span in work} == {it.context for it in run.consumers}
            assert os.getpid() not in {seen.pid for seen in run.seen}, "handled in a process of their own"
            assert len({seen.pid for seen in run.seen}) > 1
            assert len({span.span_id for span in run.spans}) == len(run.spans)
            assert run.complaints() == []

    @scenario(23, "kill")
    def test_a_killed_worker_s_message_is_redelivered_into_the_same_trace(self, rig: Rig) -> None:
        """SIGKILL in the middle: as many deliveries and messages left as without us, and the redelivery is in
        the trace.
        """
        outcomes = []
        for traced in (False, True):
            with rig.run(traced=traced) as run:
                with ambient_span():
                    run.driver.publish("hello", retries=1)
                run.driver.consume_killed(do("kill", times=1))
                outcomes.append((len(run.seen), run.driver.counts()))
                if not traced:
                    assert len(run.seen) == 2, "killed once, then handled"
                    continue
                last = run.consumer_of(run.seen[-1])
                assert (last.trace_id, last.parent_id) == run.producer.context
                assert last.status == "UNSET"
                assert {span.trace_id for span in run.consumers} == {run.producer.trace_id}
                killed = [span for span in run.consumers if span is not last and span.context != last.context]
                assert [span.status for span in killed] == ["ERROR"] * rig.driver_class.tells_killed(
                    rig.column.style
                )
        assert outcomes[0] == outcomes[1]

    @scenario(27, "restart")
    def test_after_a_restart_of_the_broker_it_is_traced_as_before(self, rigs: list[Rig]) -> None:
        """The broker stops and comes back: channels, producers and consumers made after it are traced, in every
        style.
        """
        broker = rigs[0].private_broker()
        with together(rigs, broker.url) as runs:
            for when in ("before", "after"):
                for run in runs:
                    with ambient_span():
                        run.driver.publish(f"{when}, {run.driver.style}")
                    run.driver.consume(do("observe"))
                if when == "before":
                    broker.restart()
                    for run in runs:
                        run.driver.reconnect()
            told = runs[0]
            assert [seen.body for seen in told.seen] == [
                f"{when}, {run.driver.style}" for when in ("before", "after") for run in runs
            ]
            assert [(span.trace_id, span.parent_id) for span in told.consumers] == [
                span.context for span in told.producers
            ]
            assert len(told.producers) == len(told.consumers) == 2 * len(runs)

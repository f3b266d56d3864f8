"""BullMQ on a live Redis, and on PostgreSQL, BullMQ 3's other backend: what the contract's verbs do not reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bullmq")

from bullmq import Queue, Worker, custom_errors
from opentelemetry import trace

from integration.bullmq_programs import Handled, flow_producer_on, on, queue_on, work
from integration.contract.telemetry import DEADLINE, ambient_span, telemetry
from integration.live import Spans, run_killed, unique
from integration.postgresql import PostgreSQL
from queueprop import Settings
from queueprop.adapters.bullmq import BullMQInstrumentor, traced_consumer, traced_publish

of_3 = pytest.mark.skipif(not hasattr(Queue, "upsertJobScheduler"), reason="from BullMQ 3 on")


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    """With BullMQ instrumented."""
    with telemetry(tmp_path / "told.jsonl") as told:
        BullMQInstrumentor().instrument(settings=Settings())
        yield Spans(told)
        BullMQInstrumentor().uninstrument()


@pytest.fixture(params=["redis", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of what the queues are in."""
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    pytest.importorskip("psycopg")
    pytest.importorskip("bullmq.backends.postgres_backend", reason="from BullMQ 3 on")
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.conninfo


@pytest.fixture
def name() -> str:
    return unique("orders")


def run(verb: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(verb())


def parents(spans: Spans) -> list[tuple[str, str | None]]:
    """Of the CONSUMER spans, in their order."""
    return [(span.trace_id, span.parent_id) for span in spans.of("process")]


async def until(condition: Callable[[], Any]) -> None:
    async def hold() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(hold(), DEADLINE)


class TestFlows:
    def test_a_tree_over_two_queues(self, spans: Spans, url: str, name: str) -> None:
        """All of it in the publisher's trace: each job a child of its own create span, the parent job, too, which comes
        last and reads what its children returned.
        """
        payments = unique("payments")
        values: list[Any] = []

        async def pay(job: Any, token: str) -> Any:
            return job.data

        async def order(job: Any, token: str) -> None:
            values.extend((await job.getChildrenValues()).values())

        async def all_of_it() -> None:
            children = [{"name": "pay", "queueName": payments, "data": number} for number in (1, 2)]
            async with flow_producer_on(url) as producer:
                with ambient_span():
                    await producer.add({"name": "order", "queueName": name, "data": 0, "children": children})
            await work(url, payments, pay, 2)
            await work(url, name, order)

        run(all_of_it)
        root, first, second = spans.of("create")
        assert sorted(map(str, values)) == ["1", "2"]  # of PostgreSQL they come as JSON
        assert parents(spans) == [first.context, second.context, root.context]
        assert len({span.trace_id for span in spans.all}) == 1
        [send] = [span for span in spans.of("send") if span.kind == "CLIENT"]
        assert {link.context for link in send.links} == {it.context for it in (root, first, second)}

    @of_3
    def test_a_parent_that_waits_for_more(self, spans: Spans, url: str, name: str) -> None:
        """WaitingChildrenError is no failure: two CONSUMER spans of the one job, and the child that its handler added
        is in its trace.
        """

        async def wait(job: Any, token: str) -> None:
            async with queue_on(url, name) as queue:
                parent = {"id": job.id, "queue": queue.qualifiedName}
                await queue.add("child", 1, {"parent": parent, "priority": 1})
            if await job.moveToWaitingChildren(token, {}):
                raise custom_errors.WaitingChildrenError

        async def all_of_it() -> list[str]:
            handled = Handled(wait)
            async with queue_on(url, name) as queue:
                await queue.add("parent", 1)
            await work(url, name, handled, 3)
            return handled.names

        assert run(all_of_it) == ["parent", "child", "parent"]
        first, child, second = spans.of("process")
        of_parent, of_child = spans.of("send")
        assert {first.status, child.status, second.status} == {"UNSET"}
        assert parents(spans) == [of_parent.context, of_child.context, of_parent.context]
        assert (of_child.trace_id, of_child.parent_id) == first.context


@of_3
class TestSchedulers:
    def test_every_job_but_the_first_begins_a_trace(self, spans: Spans, url: str, name: str) -> None:
        """The first is in the trace of who made the schedule; the later ones are published by the worker, as roots that
        are linked to that, and never as children of what is current around it.
        """

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                with ambient_span():
                    await queue.upsertJobScheduler("daily", {"every": 60, "limit": 3}, "report")
                with ambient_span():
                    await work(url, name, Handled(), 3)

        run(all_of_it)
        made, *later = spans.of("send")
        assert len(later) == 2
        assert made.parent_id is not None
        for span in later:
            assert span.parent_id is None
            assert [link.context for link in span.links] == [made.context]
        assert parents(spans) == [made.context, *(span.context for span in later)]
        assert len({span.trace_id for span in [made, *later]}) == 3

    def test_a_retry_makes_no_further_job(self, spans: Spans, url: str, name: str) -> None:
        """The worker asks for the next one at each attempt, and Redis has it already: no second span of it."""

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                await queue.upsertJobScheduler("daily", {"every": 86_400_000}, "report", 1, {"attempts": 3})
                await work(url, name, Handled(LookupError(), LookupError()), 3)
                await queue.removeJobScheduler("daily")

        run(all_of_it)
        made, following = spans.of("send")
        assert parents(spans) == [made.context] * 3
        assert (following.parent_id, [it.context for it in following.links]) == (None, [made.context])

    def test_a_pattern(self, spans: Spans, url: str, name: str) -> None:
        """A cron schedule's first job waits, and its wait was asked for."""

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                await queue.upsertJobScheduler("once", {"pattern": "*/2 * * * * *", "limit": 1}, "report")
                await work(url, name, Handled())

        run(all_of_it)
        [made], [consumer] = spans.of("send"), spans.of("process")
        assert parents(spans) == [made.context]
        assert 0 < consumer.attributes["queueprop.message.delay"] <= 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFailures:
    @of_3
    def test_one_that_is_not_to_be_tried_again(self, spans: Spans, url: str, name: str) -> None:
        """UnrecoverableError: one attempt, and its error."""
        run(lambda: self._processed(url, name, Handled(custom_errors.UnrecoverableError("no such order")), 1))
        [consumer] = spans.of("process")
        assert (consumer.status, consumer.description) == ("ERROR", "no such order")
        assert consumer.attributes["error.type"].endswith("UnrecoverableError")

    @pytest.mark.skipif(not hasattr(custom_errors, "DelayedError"), reason="from BullMQ 3.1 on")
    def test_one_that_asks_for_later(self, spans: Spans, url: str, name: str) -> None:
        """DelayedError is no failure; the second delivery is a sibling, and is counted on."""

        async def later(job: Any, token: str) -> None:
            await job.moveToDelayed(int(job.timestamp), token)
            raise custom_errors.DelayedError

        run(lambda: self._processed(url, name, Handled(later), 2))
        [producer] = spans.of("send")
        assert parents(spans) == [producer.context] * 2
        assert [span.status for span in spans.of("process")] == ["UNSET"] * 2
        assert [span.attributes["queueprop.message.delivery_attempt"] for span in spans.of("process")] == [
            1,
            2,
        ]

    async def _processed(self, url: str, name: str, handled: Handled, count: int) -> None:
        async with queue_on(url, name) as queue:
            await queue.add("mails.send", 1, {"attempts": 3, "backoff": 1})
            await work(url, name, handled, count)
            assert await queue.getJobCounts("active", "wait") == {"active": 0, "wait": 0}

    @of_3
    def test_one_that_stalls_too_often(self, spans: Spans, url: str, name: str) -> None:
        """A worker is killed once more than is allowed: no processor runs, and one span says so, in the trace."""
        # So long the one that is killed may take to die; then others find its job.
        stalling = {"lockDuration": 3000, "stalledInterval": 150, "maxStalledCount": 0}

        async def add() -> None:
            async with queue_on(url, name) as queue:
                await queue.add("mails.send", 1)

        async def die(job: Any, token: str) -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

        async def live_on() -> None:
            handled = Handled()
            worker: Any = Worker(name, handled, {**on(url), **stalling})
            failed: list[Any] = []
            worker.on("failed", lambda job, error, *_: failed.append(error))
            await until(lambda: failed)
            await worker.close()
            assert handled.names == []

        run(add)
        run_killed(lambda: asyncio.run(work(url, name, die, **stalling)))
        run(live_on)
        [producer], [consumer] = spans.of("send"), spans.of("process")
        assert parents(spans) == [producer.context]
        assert consumer.status == "ERROR"
        assert "stalled" in (consumer.description or "")

    def test_a_worker_that_is_closed_by_force(self, spans: Spans, url: str, name: str) -> None:
        """The processor is cancelled in the middle of its job: the span has ended, with that."""
        begun = asyncio.Event()

        async def wait(job: Any, token: str) -> None:
            begun.set()
            await asyncio.sleep(DEADLINE)

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                await queue.add("mails.send", 1)
            worker: Any = Worker(name, wait, on(url))
            await asyncio.wait_for(begun.wait(), DEADLINE)
            await worker.close(force=True)
            await until(lambda: spans.of("process"))

        run(all_of_it)
        [consumer] = spans.of("process")
        assert (consumer.status, consumer.attributes["error.type"]) == (
            "ERROR",
            "asyncio.exceptions.CancelledError",
        )


class TestJobs:
    def test_no_context_is_wanted(self, spans: Spans, url: str, name: str) -> None:
        """omitContext: a root, linked to nothing, and none is missing."""

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                with ambient_span():
                    await queue.add("mails.send", 1, {"telemetry": {"omitContext": True}})
                await work(url, name, Handled())

        run(all_of_it)
        [consumer] = spans.of("process")
        assert (consumer.parent_id, list(consumer.links)) == (None, [])
        assert [point for point in spans._told.points if point.metric == "queueprop.context.missing"] == []

    @of_3
    def test_one_that_is_there_already(self, spans: Spans, url: str, name: str) -> None:
        """A duplicate has a PRODUCER span, and the job that Redis kept is in the trace of the first."""

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                for _ in range(2):
                    await queue.add("mails.send", 1, {"deduplication": {"id": "once"}})
                await work(url, name, Handled())

        run(all_of_it)
        first, second = spans.of("send")
        assert first.attributes["messaging.message.id"] == second.attributes["messaging.message.id"]
        assert parents(spans) == [first.context]

    def test_what_bullmq_does_of_its_own_accord_is_no_publish(
        self, spans: Spans, url: str, name: str
    ) -> None:
        """promote, and retry of a job that has failed: the same trace, and no span of their own."""

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                job = await queue.add("mails.send", 1, {"delay": 3_600_000})
                await job.promote()
                await work(url, name, Handled(LookupError()))
                await job.retry("failed")
                await work(url, name, Handled())

        run(all_of_it)
        [producer] = spans.of("send")
        assert parents(spans) == [producer.context] * 2
        assert [span.status for span in spans.of("process")] == ["ERROR", "UNSET"]
        assert len(spans.all) == 3

    def test_priorities_and_concurrency(self, spans: Spans, url: str, name: str) -> None:
        """Jobs at once, in an order of their own: each handler is in its own job's trace."""
        seen: dict[int, str] = {}

        async def process(job: Any, token: str) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            seen[job.data] = f"{trace.get_current_span().get_span_context().trace_id:032x}"

        async def all_of_it() -> dict[int, str]:
            sent = {}
            async with queue_on(url, name) as queue:
                for number in range(20):
                    with ambient_span() as ambient:
                        await queue.add("mails.send", number, {"priority": 20 - number})
                        sent[number] = f"{ambient.trace_id:032x}"
            await work(url, name, process, 20, concurrency=5)
            return sent

        assert run(all_of_it) == seen
        assert len(set(seen.values())) == 20


class TestWorkers:
    def test_one_that_is_built_inside_a_span(self, spans: Spans, url: str, name: str) -> None:
        """Its task keeps the context of who built it: no job is in that trace, once the span is over not even by a
        link; an idle worker has no spans at all.
        """

        async def all_of_it() -> None:
            handled = Handled()
            with ambient_span() as ambient:
                worker: Any = Worker(name, handled, {**on(url), "drainDelay": 0.05})
                await asyncio.sleep(0.3)
            assert spans.all == []
            async with queue_on(url, name) as queue:
                await queue.add("mails.send", 1)
            await until(lambda: handled.names)
            await worker.close()
            [consumer] = spans.of("process")
            assert consumer.trace_id != f"{ambient.trace_id:032x}"
            assert f"{ambient.trace_id:032x}" not in [link.trace_id for link in consumer.links]

        run(all_of_it)

    @of_3
    def test_a_processor_that_can_be_aborted(self, spans: Spans, url: str, name: str) -> None:
        """It is given its signal, decorated or not; what it raises when it is told to stop is its error."""
        signals: list[Any] = []
        workers: list[Any] = []

        @traced_consumer
        async def process(job: Any, token: str, signal: Any) -> None:
            signals.append(signal)
            workers[0].cancelJob(job.id, "enough")
            if signal.aborted:
                raise TimeoutError(signal.reason)

        async def all_of_it() -> None:
            async with queue_on(url, name) as queue:
                await queue.add("mails.send", 1)
            worker: Any = Worker(name, process, on(url))
            workers.append(worker)
            await until(lambda: signals and not worker.jobs)
            await worker.close()

        run(all_of_it)
        [consumer] = spans.of("process")
        assert (consumer.status, consumer.description) == ("ERROR", "enough")

    def test_without_patching(self, tmp_path: Path, url: str, name: str) -> None:
        """The explicit words alone, over several queues and a flow."""
        with telemetry(tmp_path / "told.jsonl") as told:

            @traced_consumer
            async def process(job: Any, token: str) -> None:
                async with queue_on(url, f"{name}-done") as queue:
                    await traced_publish(queue.add)("done", job.data)

            async def all_of_it() -> list[dict[str, Any]]:
                async with flow_producer_on(url) as producer:
                    await traced_publish(producer.add)({"name": "order", "queueName": name, "data": 1})
                await work(url, name, process)
                handled: list[Any] = []

                async def note(job: Any, token: str) -> None:
                    handled.append(json.loads(job.opts["tm"]))

                await work(url, f"{name}-done", note)
                return handled

            [carried] = run(all_of_it)
            spans = Spans(told)
            [create], [consumer] = spans.of("create"), spans.of("process")
            published = next(span for span in spans.of("send") if span.kind == "PRODUCER")
            assert parents(spans) == [create.context]
            assert (published.trace_id, published.parent_id) == consumer.context
            assert published.span_id in carried["traceparent"]

"""BullMQ between Python and Node, with bullmq-otel and without: real Node processes on a live Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bullmq")

from bullmq import Queue
from opentelemetry import baggage

from integration.bullmq_programs import Handled, flow_producer_on, queue_on, work
from integration.contract import values
from integration.contract.telemetry import ambient_span, telemetry
from integration.live import NOTHING, Spans, unique
from integration.node_modules import Node
from queueprop import Settings
from queueprop.adapters.bullmq import BullMQInstrumentor

BAGGAGE = {"user": "Jürgen M, 100%", "sum": "1+1", "path": "a/b;c=d", "sushi": "寿司"}


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    """With BullMQ instrumented."""
    with telemetry(tmp_path / "told.jsonl") as told:
        BullMQInstrumentor().instrument(settings=Settings())
        yield Spans(told)
        BullMQInstrumentor().uninstrument()


@pytest.fixture
def peer(node: Node, redis_url: str) -> Peer:
    return Peer(node, redis_url)


class Peer:
    """Node's side of a queue of this test's own."""

    def __init__(self, node: Node, url: str) -> None:
        self.url = url
        self.queue = unique("orders")
        self.other_queue = unique("payments")
        self._node = node

    def publish(
        self,
        way: str,
        *jobs: Mapping[str, Any],
        telemetry: bool = True,
        baggage: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Inside a span `request`, of which it gives the spans."""
        what = {"way": way, "jobs": jobs, "baggage": baggage}
        return self._run(self.queue, telemetry, publish=what)

    def work(self, count: int = 1, *, telemetry: bool = True, failing: int = 0, queue: str = "") -> Worked:
        """A worker that processes so many jobs, of which the first ones fail."""
        return Worked(self._run(queue or self.queue, telemetry, work={"count": count, "failing": failing}))

    def _run(self, queue: str, telemetry: bool, **what: Any) -> list[dict[str, Any]]:
        return self._node.run("bullmq.mjs", {"url": self.url, "queue": queue, "telemetry": telemetry, **what})


class Worked:
    """What a worker of Node's told."""

    def __init__(self, told: Sequence[dict[str, Any]]) -> None:
        self.handled = [it for it in told if it["event"] == "handled"]
        self.consumers = [it for it in told if it["event"] == "span" and it["kind"] == "CONSUMER"]

    @property
    def parents(self) -> list[tuple[str, str]]:
        return [(it["trace_id"], it["parent_id"]) for it in self.consumers]


def run(verb: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(verb)


def span_of(told: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    [found] = [it for it in told if it.get("name") == name]
    return found["trace_id"], found["span_id"]


def flow(peer: Peer) -> dict[str, Any]:
    """Node gives a context to those of its jobs that have options, be they empty."""
    children = [{"name": "pay", "queueName": peer.other_queue, "data": 2, "opts": {}}]
    return {"name": "order", "queueName": peer.queue, "data": 1, "opts": {}, "children": children}


def mail(data: Any = 1, **opts: Any) -> dict[str, Any]:
    return {"name": "mails.send", "data": data, "opts": opts}


class TestFromNode:
    def test_add(self, spans: Spans, peer: Peer) -> None:
        """The CONSUMER span is a child of Node's PRODUCER span; the handler reads Node's baggage as it was."""
        told = peer.publish("add", mail(), baggage=BAGGAGE)
        handled = Handled()
        run(work(peer.url, peer.queue, handled))
        [consumer] = spans.of("process")
        assert (consumer.trace_id, consumer.parent_id) == span_of(told, f"add {peer.queue}.mails.send")
        assert consumer.trace_id == span_of(told, "request")[0]
        assert handled.contexts == [consumer.context]
        assert handled.baggage == [BAGGAGE]
        assert consumer.attributes["bullmq.job.name"] == "mails.send"
        assert consumer.attributes["queueprop.message.queue_time"] >= 0

    def test_add_bulk(self, spans: Spans, peer: Peer) -> None:
        """Node has one context for all of them: each job's CONSUMER span is its child."""
        told = peer.publish("addBulk", mail(1), mail(2))
        run(work(peer.url, peer.queue, Handled(), 2))
        assert {it.trace_id for it in spans.of("process")} == {span_of(told, "request")[0]}
        assert len(spans.of("process")) == 2

    def test_flow(self, spans: Spans, peer: Peer) -> None:
        """Over two queues: all in the trace of Node's request."""
        told = peer.publish("flow", flow(peer))
        run(work(peer.url, peer.other_queue, Handled()))
        run(work(peer.url, peer.queue, Handled()))
        assert [it.name for it in spans.of("process")] == [
            f"process {peer.other_queue}",
            f"process {peer.queue}",
        ]
        assert {it.trace_id for it in spans.of("process")} == {span_of(told, "request")[0]}

    def test_delay(self, spans: Spans, peer: Peer) -> None:
        """The delay that was asked for is told apart from the time in the queue."""
        told = peer.publish("add", mail(delay=300))
        run(work(peer.url, peer.queue, Handled()))
        [consumer] = spans.of("process")
        assert consumer.trace_id == span_of(told, "request")[0]
        assert consumer.attributes["queueprop.message.delay"] == 0.3

    @pytest.mark.skipif(not hasattr(Queue, "upsertJobScheduler"), reason="from BullMQ 3 on")
    def test_a_schedule(self, spans: Spans, peer: Peer) -> None:
        """Its first job is in the trace of Node's request; the next one, which the worker here makes, begins a trace
        that is linked to it.
        """
        told = peer.publish(
            "upsertJobScheduler", {"name": "report", "data": 1, "repeat": {"every": 60, "limit": 2}}
        )
        run(work(peer.url, peer.queue, Handled(), 2))
        [following] = spans.of("send")
        first, second = spans.of("process")
        producer = span_of(told, f"add {peer.queue}.report")
        assert (first.trace_id, first.parent_id) == producer
        assert (following.parent_id, [link.context for link in following.links]) == (None, [producer])
        assert (second.trace_id, second.parent_id) == following.context

    def test_a_retry_that_python_takes(self, spans: Spans, peer: Peer) -> None:
        """Siblings under Node's PRODUCER span, and the attempt is counted on."""
        told = peer.publish("add", mail(attempts=2))
        failed = peer.work(failing=1)
        run(work(peer.url, peer.queue, Handled()))
        [consumer] = spans.of("process")
        producer = span_of(told, f"add {peer.queue}.mails.send")
        assert failed.parents == [producer]
        assert (consumer.trace_id, consumer.parent_id) == producer
        assert consumer.attributes["queueprop.message.delivery_attempt"] == 2

    def test_omit_context(self, spans: Spans, peer: Peer) -> None:
        """Node's producer wants no context carried: a root, linked to nothing."""
        peer.publish("add", mail(telemetry={"omitContext": True}))
        run(work(peer.url, peer.queue, Handled()))
        [consumer] = spans.of("process")
        assert (consumer.parent_id, list(consumer.links)) == (None, [])

    def test_without_telemetry(self, spans: Spans, peer: Peer) -> None:
        """A plain Node producer: a root."""
        peer.publish("add", mail(), telemetry=False)
        run(work(peer.url, peer.queue, Handled()))
        [consumer] = spans.of("process")
        assert (consumer.parent_id, consumer.status) == (None, "UNSET")

    def test_what_python_publishes_on(self, spans: Spans, peer: Peer) -> None:
        """With the options that came from Node: one context, the new one, which Node goes on with."""

        async def forward(job: Any, token: str) -> None:
            async with queue_on(peer.url, peer.other_queue) as queue:
                await queue.add(job.name, job.data, job.opts)

        told = peer.publish("add", mail(), baggage=BAGGAGE)
        run(work(peer.url, peer.queue, Handled(forward)))
        worked = peer.work(queue=peer.other_queue)
        [producer] = spans.of("send")
        assert worked.parents == [producer.context]
        assert producer.trace_id == span_of(told, "request")[0]
        assert worked.handled[0]["baggage"] == BAGGAGE


class TestToNode:
    def add(self, peer: Peer, opts: Any = None, members: Mapping[str, str] | None = None) -> None:
        async def add() -> None:
            async with queue_on(peer.url, peer.queue) as queue:
                await queue.add("mails.send", 1, opts or {})

        context = None
        for key, value in (members or {}).items():
            context = baggage.set_baggage(key, value, context)
        if context is None:
            run(add())
        else:
            with values.current(context):
                run(add())

    def test_add(self, spans: Spans, peer: Peer) -> None:
        """Node's CONSUMER span is a child of our PRODUCER span; its handler reads our baggage as it was."""
        self.add(peer, members=BAGGAGE)
        worked = peer.work()
        [producer] = spans.of("send")
        assert worked.parents == [producer.context]
        [handled] = worked.handled
        assert handled["trace_id"] == producer.trace_id
        assert handled["baggage"] == BAGGAGE

    def test_add_bulk(self, spans: Spans, peer: Peer) -> None:
        """Each job has its own create span as its parent."""

        async def add() -> None:
            async with queue_on(peer.url, peer.queue) as queue:
                await queue.addBulk([mail(1), mail(2)])

        run(add())
        worked = peer.work(2)
        assert worked.parents == [it.context for it in spans.of("create")]
        assert len(worked.parents) == 2

    def test_flow(self, spans: Spans, peer: Peer) -> None:
        """Over two queues: each job is a child of its own create span, and all are in one trace."""

        async def add() -> None:
            async with flow_producer_on(peer.url) as producer:
                with ambient_span():
                    await producer.add(flow(peer))

        run(add())
        of_child, of_root = peer.work(queue=peer.other_queue), peer.work()
        root, child = spans.of("create")
        assert of_child.parents == [child.context]
        assert of_root.parents == [root.context]
        assert root.trace_id == child.trace_id

    def test_delay(self, spans: Spans, peer: Peer) -> None:
        """A job that waits keeps its context."""
        self.add(peer, {"delay": 200})
        worked = peer.work()
        [producer] = spans.of("send")
        assert worked.parents == [producer.context]

    def test_a_retry_that_node_takes(self, spans: Spans, peer: Peer) -> None:
        """Siblings under our PRODUCER span: the first attempt's here, with its error, and Node's."""
        self.add(peer, {"attempts": 2})
        run(work(peer.url, peer.queue, Handled(LookupError("no stock"))))
        worked = peer.work()
        [producer], [consumer] = spans.of("send"), spans.of("process")
        assert (consumer.trace_id, consumer.parent_id) == producer.context
        assert (consumer.status, consumer.description) == ("ERROR", "no stock")
        assert worked.parents == [producer.context]

    @pytest.mark.skipif(not hasattr(Queue, "upsertJobScheduler"), reason="from BullMQ 3 on")
    def test_a_schedule(self, spans: Spans, peer: Peer) -> None:
        """Its first job is a child of our PRODUCER span; the next ones are the Node worker's to publish."""

        async def upsert() -> None:
            async with queue_on(peer.url, peer.queue) as queue:
                await queue.upsertJobScheduler("daily", {"every": 60, "limit": 2}, "report")

        run(upsert())
        worked = peer.work(2)
        [producer] = spans.of("send")
        assert worked.parents[0] == producer.context
        assert len(worked.handled) == 2

    @pytest.mark.parametrize("opts", [{"omc": True}, {"telemetry": {"omitContext": True}}])
    def test_omit_context(self, spans: Spans, peer: Peer, opts: Mapping[str, Any]) -> None:
        """Nothing is carried: Node's CONSUMER span is a root."""
        self.add(peer, opts)
        worked = peer.work()
        [producer] = spans.of("send")
        [consumer] = worked.consumers
        assert consumer["parent_id"] is None
        assert consumer["trace_id"] != producer.trace_id

    def test_without_telemetry(self, spans: Spans, peer: Peer) -> None:
        """A plain Node worker handles it, and knows nothing of a trace."""
        self.add(peer)
        [handled] = peer.work(telemetry=False).handled
        assert handled["data"] == 1
        assert "trace_id" not in handled

    @pytest.mark.parametrize(
        "opts", [{"tm": "no json"}, {"tm": 7}, {"telemetry": {"metadata": "no json", "more": 1}}]
    )
    def test_junk_of_the_caller_s(self, spans: Spans, peer: Peer, opts: Mapping[str, Any]) -> None:
        """Options that would stop a Node worker go out with a context in the junk's place."""
        self.add(peer, opts)
        [producer] = spans.of("send")
        assert peer.work().parents == [producer.context]


class TestJunk:
    @pytest.mark.parametrize("junk", ["no json", "null", 7, False, [1], {"traceparent": "in an object"}])
    def test_it_stops_no_worker_here(self, spans: Spans, peer: Peer, junk: Any) -> None:
        """Written by hand, by whoever: the job is processed, in a trace of its own; so is the next one."""
        BullMQInstrumentor().uninstrument()

        async def add() -> None:
            async with queue_on(peer.url, peer.queue) as queue:
                await queue.add("mails.send", 1, {"tm": junk})
                await queue.add("mails.send", 2, {"tm": json.dumps({"traceparent": values.VALID})})

        run(add())
        BullMQInstrumentor().instrument(settings=Settings())
        handled = Handled()
        run(work(peer.url, peer.queue, handled, 2))
        first, second = spans.of("process")
        assert (first.parent_id, second.trace_id) == (None, values.TRACE_ID)
        assert NOTHING not in handled.contexts
        assert spans.complaints == []

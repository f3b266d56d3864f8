"""The BullMQ adapter without a server: BullMQ's own queues, flow producers and workers on a client of ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("bullmq")

import msgpack  # type: ignore[import-untyped]
from bullmq import FlowProducer, Job, Queue, Worker, custom_errors
from opentelemetry import baggage
from opentelemetry.context import attach, detach
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, get_current_span, get_tracer
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from queueprop import Settings, guard
from queueprop.adapters import bullmq as adapter
from queueprop.adapters.bullmq import instrumentor as patching
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans
from tests.adapters.faults import OF_ITS_PUBLICATIONS, break_word

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE_ID:032x}-b7ad6b7169203331-01"
IS_3 = hasattr(Queue, "upsertJobScheduler")
of_3 = pytest.mark.skipif(not IS_3, reason="from BullMQ 3 on")


class Server(Redis):
    """Redis, as BullMQ's scripts meet it: it gives ids to jobs, and takes whatever else it is told."""

    def __init__(self) -> None:
        super().__init__(host="redis.example", port=6380, decode_responses=True)
        self.sent: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self._adding: set[str] = set()

    def register_script(self, script: Any) -> Any:
        found = super().register_script(script)
        if "dds a" in script[:200]:
            self._adding.add(found.sha)
        return found

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.sent.append(args)
        return f"job-{len(self.sent)}" if args[1] in self._adding else 0

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _Pipeline(self)

    @property
    def opts(self) -> list[dict[str, Any]]:
        """The options of the jobs that were added, as they are stored."""
        added = [args for args in self.sent if args[0] == "EVALSHA" and args[1] in self._adding]
        return [_opts_of(args) for args in added]


class _Pipeline(Pipeline):
    def __init__(self, server: Server) -> None:
        super().__init__(server.connection_pool, server.response_callbacks, True, None)
        self._server = server

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [command[0] for command in self.command_stack]
        return [await self._server.execute_command(*command) for command in commands]


def _opts_of(args: tuple[Any, ...]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        it
        for packed in reversed(args)
        if isinstance(packed, bytes) and isinstance(it := msgpack.unpackb(packed), dict)
    )
    return found


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run_test


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def instrumented() -> Iterator[adapter.BullMQInstrumentor]:
    instrumentor = adapter.BullMQInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    instrumentor.uninstrument()


def carried(opts: dict[str, Any]) -> str:
    """The span that the options name."""
    traceparent: str = json.loads(opts["tm"])["traceparent"]
    return traceparent.split("-")[2]


def span_id(span: Any) -> str:
    return f"{span.get_span_context().span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def of_kind(spans: CapturedSpans, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in spans if span.kind is kind]


class TestAdd:
    @run
    async def test_the_context_lies_where_node_has_it(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """`opts["tm"]`: text that is the JSON of an object, in ASCII; the id that Redis gave is on the span."""
        add = adapter.traced_publish(Queue("orders", {"connection": server}).add)
        token = attach(baggage.set_baggage("user", "Jürgen M, prio+"))
        job = await add("mails.send", {"to": 1}, {"delay": 1500})
        detach(token)
        [span] = captured_spans
        [opts] = server.opts
        assert carried(opts) == span_id(span)
        assert json.loads(opts["tm"])["baggage"] == "user=J%C3%BCrgen%20M%2C%20prio%2B"
        assert opts["tm"].isascii()
        assert (span.name, span.kind) == ("publish orders", SpanKind.PRODUCER)
        found = attributes(span)
        assert (found["messaging.system"], found["bullmq.job.name"]) == ("bullmq", "mails.send")
        assert (found["server.address"], found["server.port"]) == ("redis.example", 6380)
        assert found["messaging.message.id"] == job.id == "job-1"
        assert found["queueprop.message.delay"] == 1.5

    @run
    async def test_the_id_that_the_caller_gave(self, captured_spans: CapturedSpans, server: Server) -> None:
        """It is on the span from its start, also where Redis never answers."""
        server.error = ConnectionError("gone")
        add = adapter.traced_publish(Queue("orders", {"connection": server}).add)
        with pytest.raises(ConnectionError) as raised:
            await add("mails.send", 1, {"jobId": "mine"})
        [span] = captured_spans
        assert raised.value is server.error
        assert attributes(span)["messaging.message.id"] == "mine"
        assert attributes(span)["error.type"] == "ConnectionError"

    @run
    async def test_a_publish_hook_is_given_the_caller_s_own(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """Queue, name, data and options."""
        given: list[Any] = []
        settings = Settings(publish_hook=lambda span, publish: given.append(publish))
        opts = {"tenant": "a"}
        await adapter.traced_publish(Queue("orders", {"connection": server}).add, settings=settings)(
            "mails.send", 7, opts
        )
        assert given == [adapter.Publish("orders", "mails.send", 7, opts)]
        assert given[0].opts is opts
        assert opts == {"tenant": "a"}

    @pytest.mark.parametrize("opts", [{"omc": True}, {"telemetry": {"omitContext": True}}])
    @pytest.mark.parametrize("place", ["the job", "the defaults"])
    @run
    async def test_a_context_that_is_not_wanted(
        self, captured_spans: CapturedSpans, server: Server, opts: dict[str, Any], place: str
    ) -> None:
        """A span, and nothing is carried, nor is what the options had of before."""
        defaults = {"defaultJobOptions": opts} if place == "the defaults" else {}
        queue = Queue("orders", {"connection": server, **defaults})
        given = {"tm": "stale", **({} if defaults else opts)}
        await adapter.traced_publish(queue.add)("mails.send", 1, given)
        assert "tm" not in server.opts[0]
        assert len(captured_spans) == 1

    @run
    async def test_options_of_another_job(self, captured_spans: CapturedSpans, server: Server) -> None:
        """Forwarded, they lose its context, wherever it was. What else stood there stays, and the context is with it:
        of two places Node takes the one or the other.
        """
        add = adapter.traced_publish(Queue("orders", {"connection": server}).add)
        old = json.dumps({"traceparent": TRACEPARENT, "uber-trace-id": "1:2:3:1", "odd": 1})
        given = {"telemetry": {"metadata": old, "more": 1}}
        await add("mails.send", 1, given)
        [opts], [span] = server.opts, captured_spans
        assert span.parent is not None
        assert span.parent.trace_id == TRACE_ID  # no span was current
        assert "tm" not in opts
        assert opts["telemetry"].pop("more") == 1
        [written] = opts["telemetry"].values()
        assert json.loads(written).keys() == {"traceparent", "uber-trace-id"}
        await add("mails.send", 1, {"telemetry": {"metadata": old}})
        assert "telemetry" not in server.opts[1]
        assert carried(server.opts[1]) == span_id(list(captured_spans)[1])
        assert given == {"telemetry": {"metadata": old, "more": 1}}

    @run
    async def test_suppressed_or_excluded(self, captured_spans: CapturedSpans, server: Server) -> None:
        """No span: the options stay as they are, or carry what is current."""
        queue = Queue("orders", {"connection": server})
        with suppress_instrumentation():
            await adapter.traced_publish(queue.add)("mails.send", 1, {"tm": "theirs"})
        add = adapter.traced_publish(queue.add, settings=Settings(exclude=("orders",)))
        await add("mails.send", 1, {"tm": json.dumps({"traceparent": "stale"})})
        with get_tracer("test").start_as_current_span("ambient"):
            await add("mails.send", 1)
        [ambient] = captured_spans
        first, second, third = server.opts
        assert first["tm"] == "theirs"
        assert "tm" not in second
        assert carried(third) == span_id(ambient)

    @run
    async def test_odd_arguments_are_the_library_s_to_judge(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """Options that are none, a call that does not fit: its own error, and no span. Data that is no JSON has one."""
        queue = Queue("orders", {"connection": server})
        add: Any = adapter.traced_publish(queue.add)
        with pytest.raises((TypeError, AttributeError, ValueError)):
            await add("mails.send", 1, 7)
        with pytest.raises(TypeError):
            await add()
        with pytest.raises(TypeError):
            await add("mails.send", 1, {}, 4)
        assert len(captured_spans) == 0
        with pytest.raises(TypeError, match="JSON"):
            await add("mails.send", iter([1]))
        [span] = captured_spans
        assert span.status.status_code is StatusCode.ERROR

    @pytest.mark.parametrize("delay", ["soon", -1, 10**400, None])
    @run
    async def test_odd_delays(self, captured_spans: CapturedSpans, server: Server, delay: Any) -> None:
        """What is no time to wait is not told as one."""
        add = adapter.traced_publish(Queue("orders", {"connection": server}).add)
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # of msgpack, for some
            await add("mails.send", 1, {"delay": delay})
        [span] = captured_spans
        assert "queueprop.message.delay" not in attributes(span)

    @run
    async def test_a_function_of_the_user_s_own_around_it(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """Known by its arguments; the queue is not told. So is a partial."""
        queue, producer = Queue("orders", {"connection": server}), FlowProducer(server)

        async def publish(what: Any, data: Any = None, opts: Any = None) -> Any:
            return await (producer.add(what) if isinstance(what, dict) else queue.add(what, data, opts))

        async def publish_all(jobs: Any) -> Any:
            return await (producer if "queueName" in jobs[0] else queue).addBulk(jobs)

        await adapter.traced_publish(publish)("mails.send", 1)
        await adapter.traced_publish(publish)({"name": "mails.send", "queueName": "orders"})
        await adapter.traced_publish(publish_all)([{"name": "mails.send", "data": 1}])
        await adapter.traced_publish(publish_all)([{"name": "mails.send", "queueName": "orders"}])
        await adapter.traced_publish(functools.partial(queue.add, "mails.send"))(1)
        assert len(server.opts) == 5
        assert all("tm" in opts for opts in server.opts)
        names = [span.name for span in captured_spans if span.kind is SpanKind.PRODUCER]
        assert names == ["publish", "create orders", "create", "create orders", "publish orders"]


class TestBulk:
    @run
    async def test_each_job_carries_its_own_create_span(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """The entries and their options stay as they were, also where they share them; an iterator is read once."""
        shared = {"tenant": "a"}
        jobs = [{"name": "one", "data": 1, "opts": shared}, {"name": "two", "data": 2, "opts": shared}]
        add = adapter.traced_publish(Queue("orders", {"connection": server}).addBulk)
        await add(iter(jobs))
        creates = of_kind(captured_spans, SpanKind.PRODUCER)
        assert [carried(opts) for opts in server.opts] == [span_id(span) for span in creates]
        assert [attributes(span)["bullmq.job.name"] for span in creates] == ["one", "two"]
        assert [attributes(span)["messaging.message.id"] for span in creates] == ["job-1", "job-2"]
        [send] = of_kind(captured_spans, SpanKind.CLIENT)
        assert (send.name, len(send.links)) == ("publish orders", 2)
        assert jobs == [{"name": "one", "data": 1, "opts": {"tenant": "a"}}, jobs[1]]
        assert shared == {"tenant": "a"}

    @run
    async def test_what_a_flow_would_have_is_nothing_here(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """A queue's bulk knows neither other queues nor children."""
        add: Any = adapter.traced_publish(Queue("orders", {"connection": server}).addBulk)
        await add([{"name": "one", "data": 1, "queueName": "others", "children": [{"name": "two"}]}])
        assert [span.name for span in of_kind(captured_spans, SpanKind.PRODUCER)] == ["create orders"]

    @run
    async def test_one_that_fails(self, captured_spans: CapturedSpans, server: Server) -> None:
        """Redis may have it all the same: the create spans are there, and the call's has the error."""
        server.error = ConnectionError("gone")
        add = adapter.traced_publish(Queue("orders", {"connection": server}).addBulk)
        with pytest.raises(ConnectionError):
            await add([{"name": "one", "data": 1}])
        [create], [send] = (of_kind(captured_spans, kind) for kind in (SpanKind.PRODUCER, SpanKind.CLIENT))
        assert (create.status.status_code, send.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)

    @run
    async def test_one_that_is_refused(
        self, captured_spans: CapturedSpans, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a parent that is not there: Redis adds the others, BullMQ raises nothing, and the call's span tells."""
        answer = server.execute_command

        async def refuse_second(*args: Any, **options: Any) -> Any:
            return -5 if await answer(*args, **options) == "job-2" else f"job-{len(server.sent)}"

        monkeypatch.setattr(server, "execute_command", refuse_second)
        add = adapter.traced_publish(Queue("orders", {"connection": server}).addBulk)
        jobs = await add([{"name": "one", "data": 1}, {"name": "two", "data": 2}])
        assert [job.id for job in jobs] == ["job-1", -5]
        [send] = of_kind(captured_spans, SpanKind.CLIENT)
        assert (send.status.status_code, send.status.description) == (
            StatusCode.ERROR,
            "1 of 2 jobs were not added: code -5",
        )
        assert attributes(send)["error.type"] == "job_refused"
        ids = [
            attributes(span).get("messaging.message.id")
            for span in of_kind(captured_spans, SpanKind.PRODUCER)
        ]
        assert ids == ["job-1", None]

    @run
    async def test_nothing_to_add(self, captured_spans: CapturedSpans, server: Server) -> None:
        """No span; and what is no list of jobs is the library's to judge."""
        add: Any = adapter.traced_publish(Queue("orders", {"connection": server}).addBulk)
        await add(jobs=[])
        with pytest.raises(TypeError):
            await add(7)
        with pytest.raises((AttributeError, TypeError)):
            await add([7])
        with pytest.raises((AttributeError, TypeError, ValueError)):
            await add([{"name": "one", "data": 1, "opts": 7}])
        assert [span.name for span in captured_spans if span.kind is SpanKind.PRODUCER] == ["create orders"]


class TestFlows:
    def flow(self) -> dict[str, Any]:
        children = [{"name": "pay", "queueName": "payments", "data": 1, "opts": {"tenant": "a"}}]
        return {"name": "order", "queueName": "orders", "data": 0, "children": children}

    @run
    async def test_a_create_span_a_job_of_the_tree(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """Each names its own queue; the span of the call, which links to them, names none where they differ."""
        flow = self.flow()
        tree = await adapter.traced_publish(FlowProducer(server).add)(flow)
        creates = of_kind(captured_spans, SpanKind.PRODUCER)
        assert [span.name for span in creates] == ["create orders", "create payments"]
        assert [carried(opts) for opts in server.opts] == [span_id(span) for span in creates]
        [send] = of_kind(captured_spans, SpanKind.CLIENT)
        assert send.name == "publish redis.example:6380"
        assert {link.context.span_id for link in send.links} == {int(span_id(span), 16) for span in creates}
        assert flow == self.flow()
        ids = [tree["job"].id, tree["children"][0]["job"].id]
        assert [attributes(span)["messaging.message.id"] for span in creates] == ids
        assert tree["children"][0]["job"].opts["tenant"] == "a"

    @run
    async def test_several_flows(self, captured_spans: CapturedSpans, server: Server) -> None:
        """All of their jobs, from the roots on."""
        await adapter.traced_publish(FlowProducer(server).addBulk)(flows=[self.flow(), self.flow()])
        creates = of_kind(captured_spans, SpanKind.PRODUCER)
        assert [carried(opts) for opts in server.opts] == [span_id(span) for span in creates]
        assert len(creates) == 4

    @pytest.mark.skipif(
        not hasattr(FlowProducer(Server()), "closing"), reason="BullMQ 2 knows no closed producer"
    )
    @pytest.mark.parametrize("is_instrumented", [False, True])
    @run
    async def test_a_closed_producer_adds_nothing(
        self,
        captured_spans: CapturedSpans,
        server: Server,
        is_instrumented: bool,
        request: pytest.FixtureRequest,
    ) -> None:
        """It returns None and sends nothing, which is no publish."""
        flows = FlowProducer(server)
        add, add_bulk = flows.add, flows.addBulk
        if is_instrumented:
            request.getfixturevalue("instrumented")
            add, add_bulk = flows.add, flows.addBulk
        else:
            add, add_bulk = adapter.traced_publish(add), adapter.traced_publish(add_bulk)
        flows.closing = True
        assert (await add(self.flow()), await add_bulk([self.flow()])) == (None, None)
        assert (len(captured_spans), server.sent) == (0, [])
        flows.closing = False
        await add(self.flow())
        assert len(of_kind(captured_spans, SpanKind.PRODUCER)) == 2

    @run
    async def test_a_function_around_a_producer_need_not_return_its_jobs(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """What it sent has its spans."""
        flows = FlowProducer(server)

        async def publish(flow: Any) -> None:
            await flows.add(flow)

        await adapter.traced_publish(publish)(self.flow())
        assert len(of_kind(captured_spans, SpanKind.PRODUCER)) == 2

    @run
    async def test_the_queues_defaults(self, captured_spans: CapturedSpans, server: Server) -> None:
        """Nothing of ours is left in them, nor are they lost; they may say that no context is wanted."""
        defaults = {
            "orders": {"defaultJobOptions": {"attempts": 3}},
            "payments": {"defaultJobOptions": {"omc": True}},
            "others": {},
            "odd": 7,
        }
        given: dict[str, Any] = {"queuesOptions": defaults}
        before = json.dumps(given)
        await adapter.traced_publish(FlowProducer(server).add)(self.flow(), given)
        assert json.dumps(given) == before
        order, payment = server.opts
        assert order["attempts"] == 3
        assert "tm" in order
        assert "tm" not in payment

    @run
    async def test_some_queues_are_excluded(self, captured_spans: CapturedSpans, server: Server) -> None:
        """Their jobs have no span, and carry what is current; where all are, there is none at all."""
        add = adapter.traced_publish(FlowProducer(server).add, settings=Settings(exclude=("payments",)))
        with get_tracer("test").start_as_current_span("ambient") as ambient:
            await add(self.flow())
            await add({**self.flow(), "queueName": "payments"})
        assert len(of_kind(captured_spans, SpanKind.PRODUCER)) == 1
        assert len(of_kind(captured_spans, SpanKind.CLIENT)) == 1
        current = f"{ambient.get_span_context().span_id:016x}"
        assert [carried(opts) for opts in server.opts][1:] == [current] * 3

    @run
    async def test_odd_flows(self, captured_spans: CapturedSpans, server: Server) -> None:
        """They are the library's to judge."""
        add: Any = adapter.traced_publish(FlowProducer(server).add)
        calls: list[tuple[Any, ...]] = [(7,), (), ({}, {}, 3), ({**self.flow(), "children": [7]},)]
        for given in calls:
            with pytest.raises((AttributeError, TypeError)):
                await add(*given)


@of_3
class TestSchedulers:
    @pytest.fixture(autouse=True)
    def _stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a backend is asked to store, instead of scripts that answer with a table."""
        from bullmq.backends import RedisBackend

        self.templates: list[Any] = []
        self.next: list[Any] = []
        self.answer: Any = "repeat:daily:2"

        async def add(backend: Any, *args: Any) -> Any:
            self.templates.append(args[3])
            self.next.append(args[5])
            return ["repeat:daily:1", 0]

        async def update(backend: Any, *args: Any) -> Any:
            self.next.append(args[3])
            return self.answer

        monkeypatch.setattr(RedisBackend, "addJobScheduler", add)
        monkeypatch.setattr(RedisBackend, "updateJobSchedulerNextMillis", update)

    @pytest.mark.parametrize("is_instrumented", [False, True])
    @run
    async def test_who_makes_one_publishes_its_first_job(
        self,
        captured_spans: CapturedSpans,
        server: Server,
        is_instrumented: bool,
        request: pytest.FixtureRequest,
    ) -> None:
        """One PRODUCER span, named after the job or else the schedule; the first job carries it."""
        if is_instrumented:
            request.getfixturevalue("instrumented")
        upsert = adapter.traced_publish(Queue("orders", {"connection": server}).upsertJobScheduler)
        opts = {"attempts": 2}
        await upsert("daily", {"every": 1000}, opts=opts)
        [span] = captured_spans
        assert (span.name, carried(self.next[0])) == ("publish orders", span_id(span))
        assert attributes(span)["bullmq.job.name"] == "daily"
        assert attributes(span)["messaging.message.id"] == "repeat:daily:1"
        assert opts == {"attempts": 2}

    @pytest.mark.parametrize("is_instrumented", [False, True])
    @run
    async def test_a_schedule_that_is_over_publishes_nothing(
        self,
        captured_spans: CapturedSpans,
        server: Server,
        is_instrumented: bool,
        request: pytest.FixtureRequest,
    ) -> None:
        """BullMQ returns None for it, and there is no span; nothing is current that was not before."""
        queue = Queue("orders", {"connection": server})
        if is_instrumented:
            request.getfixturevalue("instrumented")
            upsert = queue.upsertJobScheduler
        else:
            upsert = adapter.traced_publish(queue.upsertJobScheduler)
        assert await upsert("daily", {"every": 1000, "limit": 0}) is None
        assert await upsert("daily", {"every": 1000, "endDate": 1}) is None
        assert (len(captured_spans), self.next) == (0, [])
        assert get_current_span() is INVALID_SPAN

    @run
    async def test_a_function_around_it_need_not_return_its_job(
        self, captured_spans: CapturedSpans, server: Server
    ) -> None:
        """What it sent has its span."""
        queue = Queue("orders", {"connection": server})

        async def upsertJobScheduler(
            name: Any, repeat: Any, job: Any = None, data: Any = None, opts: Any = None
        ) -> None:
            await queue.upsertJobScheduler(name, repeat, opts=opts)

        await adapter.traced_publish(upsertJobScheduler)("daily", {"every": 1000})
        [span] = captured_spans
        assert carried(self.next[0]) == span_id(span)

    @run
    async def test_later_jobs_begin_traces(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """A root each, linked to the making of the schedule however many there were; its baggage goes on."""
        made = {"traceparent": TRACEPARENT, "baggage": "tenant=42"}
        job = scheduled(worker_on(server), {"tm": json.dumps(made)})
        with get_tracer("test").start_as_current_span("ambient"):
            await job.queue._scheduleNextIteration(job)
            job.opts = self.next[0]
            await job.queue._scheduleNextIteration(job)
        first, second = of_kind(captured_spans, SpanKind.PRODUCER)
        for span, opts in zip((first, second), self.next, strict=True):
            assert span.parent is None
            assert [link.context.trace_id for link in span.links] == [TRACE_ID]
            assert carried(opts) == span_id(span)
            assert json.loads(opts["tm"])["baggage"] == "tenant=42"
        assert job.opts is self.next[0]

    @run
    async def test_suppressed(self, captured_spans: CapturedSpans, server: Server, instrumented: Any) -> None:
        """No span, and the options stay as they are."""
        made = json.dumps({"traceparent": "first", "schedule": TRACEPARENT})
        job = scheduled(worker_on(server), {"tm": made})
        with suppress_instrumentation():
            await job.queue._scheduleNextIteration(job)
        assert (len(captured_spans), self.next[0]["tm"]) == (0, made)

    @run
    async def test_where_no_job_is_due_any_more(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """A worker asks at each attempt: there is no span, and nothing is a child of one that never ends."""
        self.answer = None
        job = scheduled(worker_on(server), {"tm": json.dumps({"traceparent": TRACEPARENT})})
        await job.queue._scheduleNextIteration(job)
        assert len(captured_spans) == 0

    @pytest.mark.parametrize("opts", [{"omc": True, "tm": False}, {}, {"tm": "junk"}])
    @run
    async def test_schedules_without_a_context(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any, opts: dict[str, Any]
    ) -> None:
        """Roots without a link; where none is wanted none is carried."""
        job = scheduled(worker_on(server), opts)
        await job.queue._scheduleNextIteration(job)
        [span] = captured_spans
        assert (span.parent, list(span.links)) == (None, [])
        assert ("tm" in self.next[0]) == ("omc" not in opts)

    @run
    async def test_a_call_that_does_not_fit(self, captured_spans: CapturedSpans, server: Server) -> None:
        """It is the library's to judge."""
        upsert: Any = adapter.traced_publish(Queue("orders", {"connection": server}).upsertJobScheduler)
        with pytest.raises(TypeError):
            await upsert()
        assert len(captured_spans) == 0


def worker_on(server: Server, process: Any = None, **opts: Any) -> Any:
    return Worker("orders", process, {"connection": server, "autorun": False, **opts})


def delivered(worker: Any, opts: Any = None, **fields: Any) -> Any:
    """A job as a worker has it, which was added a second ago."""
    job = Job(worker, "mails.send", {"to": 1}, {"attempts": 1, **(opts or {})}, "7")
    job.timestamp = int(time.time() * 1000) - 1000
    job.attemptsStarted = 1
    for name, value in fields.items():
        setattr(job, name, value)
    return job


def scheduled(worker: Any, opts: dict[str, Any]) -> Any:
    return delivered(worker, {"repeat": {"every": 1000, "count": 1}, **opts}, repeatJobKey="daily")


class TestProcessing:
    @run
    async def test_the_span_is_open_for_all_that_the_worker_does(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """The processor and the listeners are inside it; what is known of the job is on it."""
        seen: list[int] = []

        async def process(job: Any, token: str) -> str:
            seen.append(get_current_span().get_span_context().span_id)
            return f"{baggage.get_baggage('user')}{token}"

        worker = worker_on(server, process)
        worker.on("completed", lambda job, result: seen.append(get_current_span().get_span_context().span_id))
        carrier = json.dumps({"traceparent": TRACEPARENT, "baggage": "user=J%C3%BCrgen"})
        job = delivered(worker, {"tm": carrier, "delay": 400}, delay=0, attemptsStarted=3)
        await worker.processJob(job, "token")
        [span] = captured_spans
        assert job.returnvalue == "Jürgentoken"
        assert seen == [int(span_id(span), 16)] * 2
        assert span.parent is not None
        assert (span.parent.trace_id, span.name) == (TRACE_ID, "process orders")
        found = attributes(span)
        assert found["queueprop.message.delivery_attempt"] == 3
        assert found["queueprop.message.delay"] == 0.4
        assert 0.6 <= found["queueprop.message.queue_time"] < 60
        assert (found["messaging.message.id"], found["bullmq.job.name"]) == ("7", "mails.send")
        assert (found["server.address"], found["server.port"]) == ("redis.example", 6380)

    @run
    async def test_what_the_worker_keeps_to_itself(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """The processor's exception is the span's, also where the job's failure cannot be stored."""
        error = LookupError("no stock")

        async def process(job: Any, token: str) -> None:
            raise error

        worker = worker_on(server, process)
        heard: list[Any] = []
        worker.on("failed", lambda job, raised: heard.append(raised))
        worker.on("error", lambda raised, job: heard.append(raised))
        await worker.processJob(delivered(worker), "token")
        server.error = ConnectionError("gone")
        await worker.processJob(delivered(worker), "token")
        for span in captured_spans:
            assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no stock")
            assert attributes(span)["error.type"] == "LookupError"
        assert heard == [error, server.error]

    @run
    async def test_a_completion_that_fails(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """The job was done, and Redis does not know of it."""

        async def process(job: Any, token: str) -> None:
            server.error = ConnectionError("gone")

        worker = worker_on(server, process)
        worker.on("error", lambda raised, job: None)
        await worker.processJob(delivered(worker), "token")
        [span] = captured_spans
        assert span.status.description == "gone"

    @run
    async def test_a_worker_that_is_closed_by_force(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """It stores no failure any more; what the processor raised is known all the same, as is its cancellation."""
        errors: list[BaseException] = [LookupError("no stock"), asyncio.CancelledError()]

        async def process(job: Any, token: str) -> None:
            raise errors.pop(0)

        worker = worker_on(server, process)
        worker.forceClosing = True
        await worker.processJob(delivered(worker), "token")
        with pytest.raises(asyncio.CancelledError):
            await worker.processJob(delivered(worker), "token")
        types = [attributes(span)["error.type"] for span in captured_spans]
        assert types == ["LookupError", "asyncio.exceptions.CancelledError"]

    @run
    async def test_a_job_that_stalled_too_often(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """No processor runs: one span that says so."""
        worker = worker_on(server, None)
        job = delivered(worker, deferredFailure="job stalled more than allowable limit")
        try:
            await worker.processJob(job, "token")
        except KeyError:
            assert not IS_3  # BullMQ 2 looks for the job among those that it works at
        [span] = captured_spans
        assert attributes(span)["error.type"].endswith("UnrecoverableError")
        assert span.status.description == "job stalled more than allowable limit"

    @pytest.mark.parametrize(
        "name", [it for it in ("DelayedError", "WaitingChildrenError") if hasattr(custom_errors, it)]
    )
    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    @run
    async def test_what_is_no_failure(
        self,
        captured_spans: CapturedSpans,
        server: Server,
        name: str,
        api: str,
        request: pytest.FixtureRequest,
    ) -> None:
        """A processor that says that its job is to come again: the status stays unset."""
        if api == "instrumentor":
            request.getfixturevalue("instrumented")

        async def process(job: Any, token: str) -> None:
            raise getattr(custom_errors, name)()

        worker = worker_on(server, adapter.traced_consumer(process))
        await worker.processJob(delivered(worker), "token")
        [span] = captured_spans
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes(span)

    @run
    async def test_workers_in_workers(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """A processor that processes another job by hand: each has its span and its error."""
        inner = worker_on(server, None)

        async def outer_process(job: Any, token: str) -> None:
            await inner.processJob(delivered(inner, id="8"), token)

        async def inner_process(job: Any, token: str) -> None:
            raise LookupError

        inner.processor = inner_process
        outer = worker_on(server, outer_process)
        await outer.processJob(delivered(outer), "token")
        statuses = {
            attributes(span)["messaging.message.id"]: span.status.status_code for span in captured_spans
        }
        assert statuses == {"7": StatusCode.UNSET, "8": StatusCode.ERROR}

    @pytest.mark.parametrize(
        "tm", [None, 7, False, True, "no json", "null", "[]", '"text"', "[" * 100_000, [1], {}], ids=repr
    )
    @run
    async def test_junk(
        self,
        captured_spans: CapturedSpans,
        server: Server,
        instrumented: Any,
        tm: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Whatever stands where the context should: a root, counted as malformed."""
        worker = worker_on(server, _nothing)
        job = delivered(worker, {"tm": tm})
        message = adapter.BULLMQ.message(job)
        assert message.headers == {"traceparent": None, "tracestate": None, "baggage": None}
        await worker.processJob(job, "token")
        [span] = captured_spans
        assert (span.parent, span.status.status_code) == (None, StatusCode.UNSET)

    @run
    async def test_where_a_context_may_lie(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """Also in the object that Node makes of it, which is written by hand; `tm` is the one that counts."""
        worker = worker_on(server, _nothing)
        carrier, other = json.dumps({"traceparent": TRACEPARENT}), json.dumps({"traceparent": "junk"})
        await worker.processJob(delivered(worker, {"telemetry": {"metadata": carrier}}), "token")
        await worker.processJob(delivered(worker, {"tm": carrier, "telemetry": {"metadata": other}}), "token")
        await worker.processJob(delivered(worker, {"telemetry": 7}), "token")
        traces = [span.parent and span.parent.trace_id for span in captured_spans]
        assert traces == [TRACE_ID, TRACE_ID, None]

    @run
    async def test_a_context_that_is_not_wanted_is_not_missing(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """The producer's wish: a root, linked to nothing."""
        worker = worker_on(server, _nothing)
        opts = {"omc": True, "tm": json.dumps({"traceparent": TRACEPARENT})}
        await worker.processJob(delivered(worker, opts), "token")
        [span] = captured_spans
        assert (span.parent, list(span.links)) == (None, [])

    @run
    async def test_odd_jobs(self, captured_spans: CapturedSpans, server: Server, instrumented: Any) -> None:
        """Without a time or a count, and with names that are none."""
        worker = worker_on(server, _nothing)
        job = delivered(worker, timestamp=0, attemptsStarted=None, id=None)
        job.name = 7
        await worker.processJob(job, "token")
        [span] = captured_spans
        found = attributes(span)
        assert found["queueprop.message.delivery_attempt"] == 1
        assert found.keys().isdisjoint(
            ("messaging.message.id", "bullmq.job.name", "queueprop.message.queue_time")
        )

    @run
    async def test_events_of_no_job_of_ours(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """A worker tells of stalled jobs by their ids, and of errors without a job: they reach its listeners."""
        worker = worker_on(server, None)
        heard: list[Any] = []
        for event in ("failed", "error", "stalled"):
            worker.on(event, lambda *args: heard.append(args))
        worker.emit("failed", "7", "stalled more than allowable limit")
        worker.emit("error", LookupError)
        worker.emit("stalled", "7")
        await delivered(worker).moveToFailed(err=LookupError("by hand"), token="token")
        assert len(heard) == 3
        assert len(captured_spans) == 0


async def _nothing(job: Any, token: str) -> None:
    pass


class TestTracedConsumer:
    @run
    async def test_a_worker_that_is_not_traced(self, captured_spans: CapturedSpans, server: Server) -> None:
        """The processor runs inside the job's span, bare or with settings; what it raised is the worker's, and told."""

        @adapter.traced_consumer
        async def process(job: Any, token: str) -> None:
            raise LookupError(f"{get_current_span().get_span_context().trace_id:x}")

        worker = worker_on(server, process)
        heard: list[Any] = []
        worker.on("failed", lambda job, error: heard.append(str(error)))
        carrier = json.dumps({"traceparent": TRACEPARENT})
        await worker.processJob(delivered(worker, {"tm": carrier}), "token")
        worker.processor = adapter.traced_consumer(settings=Settings(propagation="link"))(_nothing)
        await worker.processJob(delivered(worker, {"tm": carrier}), "token")
        first, second = captured_spans
        assert heard == [f"{TRACE_ID:x}"]
        assert first.status.status_code is StatusCode.ERROR
        assert second.parent is None

    @run
    async def test_with_the_instrumentor_it_is_one_span(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """The worker's; so is a decorated function inside a decorated one."""
        inner = adapter.traced_consumer(_nothing)

        @adapter.traced_consumer
        async def process(job: Any, token: str) -> None:
            await inner(job, token)

        worker = worker_on(server, process)
        await worker.processJob(delivered(worker), "token")
        assert len(captured_spans) == 1
        instrumented.uninstrument()
        await worker.processJob(delivered(worker), "token")
        assert len(captured_spans) == 2

    @pytest.mark.parametrize("signal", [False, True])
    def test_its_parameters_are_still_told(self, signal: bool) -> None:
        """BullMQ gives an AbortSignal to a processor that has a third one."""

        async def two(job: Any, token: str) -> None: ...
        async def three(job: Any, token: str, signal: Any) -> None: ...

        decorated = adapter.traced_consumer(three if signal else two)
        assert len(inspect.signature(decorated).parameters) == 2 + signal

    @run
    async def test_callables_of_every_kind(self, captured_spans: CapturedSpans, server: Server) -> None:
        """A partial, an object with `__call__`, and a plain function that gives a coroutine."""

        class Process:
            async def __call__(self, job: Any, token: str) -> int:
                return get_current_span().get_span_context().span_id

            async def partial(self, more: int, job: Any, token: str) -> int:
                return get_current_span().get_span_context().span_id

        process = Process()
        kinds: list[Any] = [
            process,
            functools.partial(process.partial, 1),
            lambda job, token: process(job, token),
        ]
        for kind in kinds:
            worker = worker_on(server, adapter.traced_consumer(kind))
            job = delivered(worker)
            await worker.processJob(job, "token")
            assert job.returnvalue == int(span_id(list(captured_spans)[-1]), 16)
        assert len(captured_spans) == len(kinds)
        assert not get_current_span().get_span_context().is_valid

    @run
    async def test_called_without_a_job(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It runs, without a span, and one line says so."""
        await adapter.traced_consumer(_nothing)(SimpleNamespace(), "token")
        assert len(captured_spans) == 0
        assert "job of BullMQ's" in caplog.text


class TestInstrumentor:
    @run
    async def test_every_call_that_publishes(
        self, captured_spans: CapturedSpans, server: Server, instrumented: Any
    ) -> None:
        """Also with the explicit API around it: one PRODUCER span a job."""
        queue, producer = Queue("orders", {"connection": server}), FlowProducer(server)
        await queue.add("mails.send", 1)
        await adapter.traced_publish(queue.add)("mails.send", 1)
        await queue.addBulk([{"name": "mails.send", "data": 1}])
        await producer.add({"name": "order", "queueName": "orders"})
        await producer.addBulk([{"name": "order", "queueName": "orders"}])
        creates = of_kind(captured_spans, SpanKind.PRODUCER)
        assert [carried(opts) for opts in server.opts] == [span_id(span) for span in creates]

    def test_uninstrumented_the_originals_are_back(self) -> None:
        """`emit`, too, which a worker inherits."""
        before = Worker.processJob, Job.moveToFailed
        instrumentor = adapter.BullMQInstrumentor()
        instrumentor.instrument()
        assert "emit" in vars(Worker)
        instrumentor.uninstrument()
        assert "emit" not in vars(Worker)
        assert (Worker.processJob, Job.moveToFailed) == before


class TestWrongObjects:
    @pytest.mark.parametrize("given", [7, "orders", Queue, Queue.add, Queue.pause, print, Worker.run])
    def test_what_publishes_nothing(self, given: Any) -> None:
        """A TypeError of one line that shows the right form."""
        with pytest.raises(TypeError, match=r"traced_publish\(queue\.add\)"):
            adapter.traced_publish(given)

    @pytest.mark.parametrize("given", [7, Worker])
    def test_what_processes_nothing(self, given: Any) -> None:
        """The same for a processor."""
        with pytest.raises(TypeError, match="as in @traced_consumer"):
            adapter.traced_consumer(given)
        with pytest.raises(TypeError, match="as in @traced_consumer"):
            adapter.traced_consumer()(given)

    def test_settings(self) -> None:
        """They are told where they are given."""
        settings: Any = 7
        words: list[Any] = [adapter.traced_publish, adapter.traced_consumer]
        for word in words:
            with pytest.raises(TypeError, match=r"queueprop\.Settings"):
                word(_nothing, settings=settings)


class TestFaults:
    @pytest.mark.parametrize("word", ["publication", "message", *OF_ITS_PUBLICATIONS])
    @run
    async def test_a_fault_of_ours_is_not_the_caller_s(
        self, server: Server, guarded: None, monkeypatch: pytest.MonkeyPatch, word: str, instrumented: Any
    ) -> None:
        """Whatever raises in the reading of a call or a job: it is published and processed all the same."""
        break_word(monkeypatch, adapter.BULLMQ, word)
        queue, producer = Queue("orders", {"connection": server}), FlowProducer(server)
        await queue.add("mails.send", 1)
        await queue.addBulk(iter([{"name": "mails.send", "data": 1}]))
        await producer.add({"name": "order", "queueName": "orders"})
        worker = worker_on(server, _nothing)
        job = delivered(worker)
        await worker.processJob(job, "token")
        assert job.attemptsMade == 1
        assert len(server.opts) == 3
        assert guard._logged

    def test_the_extra_is_named_when_bullmq_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line that says what to install; another module that is missing is not mistaken for it."""
        monkeypatch.delitem(sys.modules, "queueprop.adapters.bullmq")
        monkeypatch.setitem(sys.modules, "bullmq", None)
        with pytest.raises(MissingExtra, match=r'pip install "queueprop\[bullmq\]"'):
            importlib.import_module("queueprop.adapters.bullmq")

    def test_before_there_were_schedulers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """BullMQ 2 has none, and its other calls are patched."""
        monkeypatch.setattr(patching, "JobScheduler", None)
        instrumentor = adapter.BullMQInstrumentor()
        instrumentor.instrument()
        names = {patch.name for patch in instrumentor.patches()}
        instrumentor.uninstrument()
        assert names == {"add", "addBulk", "processJob", "emit", "moveToFailed"}

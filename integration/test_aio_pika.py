"""aio-pika on a live RabbitMQ: what the contract's verbs do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aio_pika")

import aio_pika
from aio_pika.patterns import RPC, JsonMaster
from opentelemetry import trace

from integration.brokers import Broker
from integration.contract.telemetry import DEADLINE, ambient_span, telemetry
from integration.live import Spans, current, unique
from queueprop.adapters.aio_pika import AioPikaInstrumentor


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    """With aio-pika instrumented."""
    with telemetry(tmp_path / "told.jsonl") as told:
        AioPikaInstrumentor().instrument()
        yield Spans(told)
        AioPikaInstrumentor().uninstrument()


@asynccontextmanager
async def channel_on(url: str) -> AsyncIterator[Any]:
    async with await aio_pika.connect_robust(url) as connection:
        yield await connection.channel()


async def _within(seconds: float, condition: Any) -> None:
    async def hold() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(hold(), seconds)


def _is_child(span: Any, parent: Any) -> bool:
    return bool((span.trace_id, span.parent_id) == parent.context)


def test_rpc_is_one_trace(spans: Spans, rabbitmq_url: str) -> None:
    """A call and its answer: two messages, each a PRODUCER and a CONSUMER span, all in the caller's trace. The name
    that the client made up for the queue of the answers names no span.
    """

    async def double(*, number: int) -> tuple[int, Any]:
        return 2 * number, current()

    async def call() -> Any:
        async with channel_on(rabbitmq_url) as channel:
            rpc = await RPC.create(channel)
            name = unique("double")
            await rpc.register(name, double, auto_delete=True)
            with ambient_span():
                result, seen = await rpc.call(name, {"number": 21})
            await _within(DEADLINE, lambda: len(spans.of("process")) == 2)
            await rpc.close()
            return name, result, seen

    name, result, seen = asyncio.run(call())
    asked, answered = spans.of("send")
    handled = next(span for span in spans.of("process") if _is_child(span, asked))
    arrived = next(span for span in spans.of("process") if _is_child(span, answered))
    assert result == 42
    assert seen == handled.context
    assert _is_child(answered, handled)
    assert {span.trace_id for span in spans.all} == {asked.trace_id}
    assert (asked.name, handled.name) == (f"publish {name}", f"process {name}")
    assert "amq_" not in answered.name + arrived.name


@pytest.mark.parametrize("outcome", ["is done", "fails"])
def test_a_task_of_master_is_in_the_trace(spans: Spans, rabbitmq_url: str, outcome: str) -> None:
    """A task is performed inside one CONSUMER span; what it raises is on that, and Master's own answer to it is as
    without us: it is rejected, and comes again where it is to.
    """
    performed: list[Any] = []

    async def work(*, item: str) -> None:
        performed.append(current())
        if outcome == "fails" and len(performed) == 1:
            raise LookupError("no stock")

    async def run() -> str:
        async with channel_on(rabbitmq_url) as channel:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda *_: None)  # aio-pika leaves the task's exception to the loop
            master, name = JsonMaster(channel, requeue=True), unique("tasks")
            await master.create_worker(name, work, auto_delete=True)
            await master.create_task(name, {"item": "tea"})
            deliveries = 1 if outcome == "is done" else 2
            await _within(DEADLINE, lambda: len(spans.of("process")) == deliveries)
            return name

    name = asyncio.run(run())
    [sent] = spans.of("send")
    processes = spans.of("process")
    assert [span.context for span in processes] == performed
    assert all(_is_child(span, sent) for span in processes)
    assert {span.name for span in processes} == {f"process {name}"}
    errors = [span.attributes.get("error.type") for span in processes]
    assert errors == ([None] if outcome == "is done" else ["LookupError", None])


def test_a_message_that_comes_back(spans: Spans, rabbitmq_url: str) -> None:
    """An unroutable one is returned instead of raised: its caller gets it, and its span is an ERROR."""

    async def publish() -> Any:
        async with channel_on(rabbitmq_url) as channel:
            return await channel.default_exchange.publish(aio_pika.Message(b"lost"), unique("nowhere"))

    result = asyncio.run(publish())
    [span] = spans.all
    assert result.body == b"lost"
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "NO_ROUTE")
    assert span.attributes["messaging.message.id"] == result.header.properties.message_id


@pytest.mark.parametrize("style", ["callback", "async for"])
def test_a_robust_consumer_goes_on_after_a_restart(
    spans: Spans, private_rabbitmq: Broker, style: str
) -> None:
    """The consumer that the library registers again by itself has one CONSUMER span a delivery, as before."""
    handled: list[bytes] = []

    async def handle(message: Any) -> None:
        async with message.process(ignore_processed=True):
            handled.append(message.body)
            assert trace.get_current_span().is_recording()

    async def loop(queue: Any) -> None:
        async for message in queue:
            await handle(message)

    async def run() -> None:
        async with channel_on(private_rabbitmq.url) as channel:
            queue = await channel.declare_queue(unique("orders"), durable=True)
            consuming: Any = None
            if style == "callback":
                await queue.consume(handle)
            else:
                consuming = asyncio.create_task(loop(queue))
            await channel.default_exchange.publish(aio_pika.Message(b"before", delivery_mode=2), queue.name)
            await _within(DEADLINE, lambda: handled == [b"before"])
            await asyncio.to_thread(private_rabbitmq.restart)
            await _publish_again(private_rabbitmq.url, queue.name)
            await _within(DEADLINE, lambda: handled == [b"before", b"after"])
            if consuming is not None:
                consuming.cancel()
                await asyncio.gather(consuming, return_exceptions=True)

    asyncio.run(run())
    processes = spans.of("process")
    assert len(processes) == len(spans.of("send")) == 2
    for sent, process in zip(spans.of("send"), processes, strict=True):
        assert _is_child(process, sent)


async def _publish_again(url: str, queue: str) -> None:
    """By a connection of its own: that of the consumer comes back when it does."""
    async with channel_on(url) as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"after", delivery_mode=2), queue)

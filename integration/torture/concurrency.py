"""Concurrency: each message's body tells the trace and the baggage that it belongs to, and its handler compares.

The ways are ``threads`` (16), ``tasks`` (500 of asyncio's), ``gevent`` and ``eventlet`` (greenlets), and ``pool``:
threads that publish through one pool of kombu's. What one publishes another may handle, and all of them pause in the
middle. Each is tried in a process of its own: ``concurrency_ways``.
"""

from __future__ import annotations

import asyncio
import platform
import queue
import random
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from integration.torture import children
from integration.torture.lines import AsyncLine, instrumented, line_class
from integration.torture.report import Row
from queueprop import Settings

MESSAGES = {
    ("threads", "core"): 150_000,
    ("threads", "pika"): 100_000,
    ("threads", "confluent-kafka"): 80_000,
    ("threads", "kombu"): 60_000,
    ("threads", "dramatiq"): 40_000,
    ("threads", "celery"): 20_000,
    ("threads", "rq"): 10_000,
    ("pool", "kombu"): 40_000,
    ("tasks", "core"): 100_000,
    ("tasks", "aio-pika"): 60_000,
    ("tasks", "faststream"): 60_000,
    ("tasks", "aiokafka"): 40_000,
    ("tasks", "bullmq"): 40_000,
    ("gevent", "core"): 50_000,
    ("gevent", "pika"): 30_000,
    ("gevent", "kombu"): 15_000,
    ("gevent", "celery"): 6_000,
    ("eventlet", "core"): 50_000,
    ("eventlet", "pika"): 30_000,
    ("eventlet", "kombu"): 15_000,
    ("eventlet", "celery"): 6_000,
}
"""A million in sum; each a multiple of the number of threads or tasks."""

OF_SHORT = (
    ("threads", "core"),
    ("threads", "celery"),
    ("pool", "kombu"),
    ("tasks", "aiokafka"),
    ("tasks", "aio-pika"),
    ("gevent", "core"),
    ("eventlet", "kombu"),
)

THREADS, TASKS, GREENLETS = 16, 500, 100


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    sizes = dict.fromkeys(OF_SHORT, 2000) if is_short else MESSAGES
    given = [(way, library, number) for (way, library), number in sizes.items()]
    wrong = handled = 0
    for (way, library, _), report in children.run_all("concurrency_ways", given, 3000, say):
        if isinstance(report, children.ChildFailed):
            yield Row("concurrency", str(library), str(way), False, {"failed": report})
            continue
        wrong, handled = wrong + report["wrong"], handled + report["handled"]
        holds = report["wrong"] == 0 and report["handled"] == report["published"] == report["CONSUMER spans"]
        yield Row("concurrency", str(library), str(way), holds, report)
    expected = sum(sizes.values())
    counts = {"handled": handled, "wrong": wrong, "Python": platform.python_version(), "GIL": _gil()}
    yield Row("concurrency", "all", "in sum", handled >= expected and not wrong, counts)


def _gil() -> str:
    return "none" if sysconfig.get_config_var("Py_GIL_DISABLED") else "one"


class Consumed(SpanProcessor):
    """Counts the spans of deliveries; a list, since appending to one is atomic in every kind of thread."""

    def __init__(self) -> None:
        self.ended: list[None] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.CONSUMER:
            self.ended.append(None)


class Verdict:
    """What the handlers found. ``body`` tells them what is to be current."""

    def __init__(self) -> None:
        self.handled: list[bool] = []

    def check(self, body: str) -> None:
        self.handled.append(current() == body)

    def report(self, published: int, consumed: Consumed) -> children.Report:
        return {
            "published": published,
            "handled": len(self.handled),
            "wrong": self.handled.count(False),
            "CONSUMER spans": len(consumed.ended),
        }


def current() -> str:
    trace_id = trace.get_current_span().get_span_context().trace_id
    return f"{trace_id:032x}-{baggage.get_baggage('number')}"


@contextmanager
def request(number: int) -> Iterator[str]:
    """A trace and baggage of its own, as a request has; gives what the body is to tell."""
    token = context.attach(baggage.set_baggage("number", str(number), context.Context()))
    try:
        with trace.get_tracer("torture").start_as_current_span("request"):
            yield current()
    finally:
        context.detach(token)


def in_threads(library: str, settings: Settings, messages: int, threads: int, verdict: Verdict) -> int:
    """Of whatever kind: gevent and eventlet have made them their own. Returns how many were published."""
    waiting: queue.Queue[tuple[Any, str]] = queue.Queue()
    each = messages // threads
    failed: list[BaseException] = []

    def work(part: int) -> None:
        try:
            line = line_class(library)(settings)
            chance = random.Random(part)

            def handler(body: str) -> None:
                verdict.check(body)
                time.sleep(0)
                if current() != body:
                    verdict.handled.append(False)

            for number in range(each):
                with request(part * each + number) as body:
                    headers = line.publish(None, body)
                    time.sleep(0)
                    waiting.put((headers, body))
                if chance.random() < 0.5:
                    time.sleep(0)
                headers, body = waiting.get()
                line.deliver(headers, handler, body)
                if context.get_current():
                    failed.append(AssertionError("a context is left behind a delivery"))
            line.close()
        except BaseException as error:
            failed.append(error)

    _join([threading.Thread(target=work, args=(part,)) for part in range(threads)], failed)
    return each * threads


def in_a_pool(settings: Settings, messages: int, threads: int, verdict: Verdict) -> int:
    """16 threads publish through four connections that they take turns with, and consume each by their own."""
    import kombu
    from kombu import pools

    broker = kombu.Connection("memory://", transport_options={"polling_interval": 0.001})
    pools.set_limit(4)
    orders: Any = kombu.Queue("orders", kombu.Exchange("shop", "direct"), "orders")
    orders(broker.default_channel).declare()
    each = messages // threads
    failed: list[BaseException] = []
    left = queue.Queue[None]()
    for _ in range(each * threads):
        left.put(None)

    def publish(part: int) -> None:
        try:
            for number in range(each):
                with request(part * each + number) as body, pools.producers[broker].acquire(block=True) as it:
                    it.publish(body, exchange=orders.exchange, routing_key="orders")
                if context.get_current():
                    failed.append(AssertionError("a context is left behind a publish"))
        except BaseException as error:
            failed.append(error)

    def consume() -> None:
        def on_message(body: str, message: Any) -> None:
            verdict.check(body)
            left.get_nowait()
            message.ack()

        try:
            mine = broker.clone()
            with kombu.Consumer(mine, [orders], callbacks=[on_message], prefetch_count=1):
                while not left.empty():
                    try:
                        mine.drain_events(timeout=0.05)
                    except TimeoutError:
                        continue
            mine.close()
        except BaseException as error:
            failed.append(error)

    made = [threading.Thread(target=publish, args=(part,)) for part in range(threads)]
    made += [threading.Thread(target=consume) for _ in range(threads)]
    _join(made, failed)
    return each * threads


def _join(threads: list[threading.Thread], failed: list[BaseException]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def in_tasks(library: str, settings: Settings, messages: int, verdict: Verdict) -> int:
    """500 at a time of one loop, which publish and handle through the same objects of the library."""
    line = line_class(library)(settings)
    each = messages // TASKS

    async def work(part: int) -> None:
        async def handler(body: str) -> None:
            verdict.check(body)
            await asyncio.sleep(0)
            if current() != body:
                verdict.handled.append(False)

        for number in range(each):
            with request(part * each + number) as body:
                if isinstance(line, AsyncLine):
                    headers = await line.publish_async(None, body)
                else:
                    headers = line.publish(None, body)
                await asyncio.sleep(0)
            if isinstance(line, AsyncLine):
                await line.deliver_async(headers, handler, body)
            else:
                await _deliver(headers, handler, body, settings)
            if context.get_current():
                raise AssertionError("a context is left behind a delivery")

    async def main() -> None:
        await asyncio.gather(*map(work, range(TASKS)))

    if isinstance(line, AsyncLine):
        line.loop.run_until_complete(main())
    else:
        asyncio.run(main())
    return each * TASKS


async def _deliver(headers: Any, handler: Callable[[str], Any], body: str, settings: Settings) -> None:
    """Of the core, around an await."""
    import queueprop

    with queueprop.process_span(
        queueprop.Destination("my-queue", "orders"), headers=headers, settings=settings
    ):
        await handler(body)


def tried(way: str, library: str, messages: int) -> children.Report:
    sys.setswitchinterval(1e-4)
    consumed = Consumed()
    provider = TracerProvider()
    provider.add_span_processor(consumed)
    trace.set_tracer_provider(provider)
    settings, verdict = Settings(), Verdict()
    with instrumented(library, settings):
        if way == "tasks":
            published = in_tasks(library, settings, messages, verdict)
        elif way == "pool":
            published = in_a_pool(settings, messages, THREADS, verdict)
        else:
            # An application of Celery's takes some time to make.
            of_greenlets = THREADS if library == "celery" else GREENLETS
            threads = THREADS if way == "threads" else of_greenlets
            published = in_threads(library, settings, messages, threads, verdict)
    return verdict.report(published, consumed)

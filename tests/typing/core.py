"""The core as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.trace import Span
from typing_extensions import assert_type

import queueprop
from queueprop import Destination, Message, Settings
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing
from queueprop.testing import assert_no_orphans, capture_spans


@dataclass
class Job:
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


ORDERS = Destination(system="my-queue", name="orders", server_address="localhost", server_port=4000)
STRICT = Settings(
    trust="none", baggage_allow=("tenant",), exclude=("tmp.*",), publish_hook=lambda span, message: None
)


def publish_with_a_dict(job: Job) -> None:
    with queueprop.send_span(ORDERS, headers=job.headers) as span:
        assert_type(span, Span)
        span.set_attribute("order.size", len(job.body))


def publish_with_pairs() -> list[tuple[str, bytes]]:
    headers: list[tuple[str, bytes]] = [("content-type", b"text/plain")]
    with queueprop.send_span(ORDERS, Message(headers=headers, id="7"), settings=STRICT):
        return headers


def by_hand(headers: dict[str, str], raw: dict[bytes, bytes]) -> Context:
    queueprop.inject(headers)
    queueprop.inject(raw, context=queueprop.extract(headers))
    return assert_type(queueprop.extract(raw), Context)


def process_by_hand(job: Job) -> int:
    message = Message(headers=job.headers, id="7", attempt=2, sent_at=1.5, native=job)
    with queueprop.process_span(ORDERS, message) as span:
        span.add_event("half way")
    with queueprop.settle_span(ORDERS, message):
        pass
    with queueprop.receive_span(ORDERS):
        return len(job.body)


@queueprop.traced_consumer(ORDERS, headers=lambda job: job.headers)
def handle(job: Job, retries: int = 0) -> str:
    return f"{job.body!r} {retries}"


@queueprop.traced_consumer(ORDERS, headers=lambda job: job.headers, settings=STRICT)
async def handle_later(job: Job) -> bool:
    return bool(job.body)


@queueprop.traced_consumer(ORDERS, headers=lambda job: job.headers)
def handle_in_steps(job: Job) -> Iterator[int]:
    yield len(job.body)


@queueprop.traced_consumer(ORDERS, headers=lambda job: job.headers)
async def handle_in_steps_later(job: Job) -> AsyncIterator[int]:
    yield len(job.body)


class Handler:
    @queueprop.traced_consumer(ORDERS, headers=lambda handler, job: job.headers)
    def handle(self, job: Job) -> int:
        return len(job.body)


async def decorated_functions_keep_their_types(job: Job) -> None:
    assert_type(handle(job, retries=1), str)
    assert_type(await handle_later(job), bool)
    assert_type(next(handle_in_steps(job)), int)
    assert_type([n async for n in handle_in_steps_later(job)], list[int])
    assert_type(Handler().handle(job), int)


def work_in_a_thread(pool: ThreadPoolExecutor, job: Job) -> Future[str]:
    return pool.submit(queueprop.carry_context(handle), job, retries=3)


def start_up() -> None:
    configure_tracing()
    queueprop.instrument()
    queueprop.instrument("rq")
    queueprop.uninstrument()
    logging.getLogger().addFilter(TraceContextFilter())


def test_orders_are_traced() -> None:
    with capture_spans() as spans:
        publish_with_a_dict(Job(b"1"))
    assert_no_orphans(spans)

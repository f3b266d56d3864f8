"""Orders through ``examples/orders``: its services as processes, a broker and a database between them, a Collector, and
Jaeger behind that.

What was made is told by the Collector as well: a second pipeline of it hands on everything that comes, unsampled.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from integration.aiokafka.programs import create_topic
from integration.brokers import KAFKA, RABBITMQ, REDIS, Service
from integration.example import Services, queue_environment
from queueprop.cli.demo.processes import Process, Processes
from queueprop.cli.watch.receiver import Receiver
from queueprop.cli.watch.store import Limits, Store
from queueprop.testing import render_tree
from queueprop.testing.tree import SpanRecord

from .collector import Collector
from .jaeger import JaegerSpan
from .sampling import FAILING, SLOW, Made, Outcome, Plan, wait_for

BROKERS: Mapping[str, Service] = {"rq": REDIS, "bullmq": REDIS, "rabbitmq": RABBITMQ, "kafka": KAFKA}
"""What each queue of the example runs on."""

_TWO_SECONDS = 2_000_000_000
_PATIENCE = 60.0
"""Seconds without any order going on, after which none is expected to."""


class Order(NamedTuple):
    """What is asked of order-service, what it has to answer, and what is to become of the order."""

    number: int
    outcome: Outcome
    content: Mapping[str, str]
    status: int

    @property
    def user(self) -> str:
        """Its trace is found by it."""
        return f"user-{self.number}"


class Lost(Exception):
    """The services have not made what the orders should have: the message says what."""


def orders_of(plan: Plan) -> Sequence[Order]:
    """One in ten of the ordinary orders is out of stock, or has a payment that is tried again: neither is an error."""
    chance = random.Random(f"{plan.seed} contents")
    return [
        Order(number, outcome, *_content(outcome, chance))
        for number, outcome in enumerate(plan.outcomes(), 1)
    ]


_EVERYTHING = Limits(traces=1 << 30, spans=1 << 30, size=1 << 40)


@contextmanager
def witness() -> Iterator[Witness]:
    """From its beginning to its end it keeps what a Collector hands to it."""
    with Receiver(store=Store(_EVERYTHING)) as receiver:
        yield Witness(receiver)


class Witness:
    """What a Collector was sent, unsampled."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.endpoint = receiver.endpoint
        exporter = {"endpoint": receiver.endpoint, "sending_queue": {"block_on_overflow": True}}
        pipeline = {"receivers": ["otlp"], "exporters": ["otlp_http/witness"]}
        laid_over = {
            "exporters": {"otlp_http/witness": exporter},
            "service": {"pipelines": {"traces/witness": pipeline}},
        }
        self.configuration = f"yaml:{json.dumps(laid_over)}"
        """What of a Collector's configuration makes it so, laid over the others."""

    def spans_of(self, gateway: Collector) -> Sequence[SpanRecord]:
        """Everything that the Collector has taken. Raises TimeoutError when less of it comes here."""
        accepted = gateway.counted("receiver_accepted_spans")
        wait_for("all spans at the witness", lambda: self._receiver.store.span_count >= accepted, _PATIENCE)
        return self._receiver.spans()


@contextmanager
def shop(environ: Mapping[str, str], workers: int, most: int) -> Iterator[Shop]:
    """The example's services, from when they are ready until they have ended, in order and with their last spans.

    ``most`` is how many orders may be on their way at once, each until a worker begins with its message. More of them
    would wait for each other, and be slow by that. Raises Died where a service ends by itself.
    """
    free = threading.Semaphore(most)

    def told(process: str, line: str) -> None:
        if '"notifying customer"' in line:
            free.release()

    with Processes(told) as processes:
        services = Services(processes, environ)
        services.prepare()
        running = [services.start_worker() for _ in range(workers)]
        order_service = services.start_order_service()
        services.ready()
        yield Shop(services, free, most)
        services.stop(order_service)
        _stop_all(services, running)


class Shop:
    """The example's services while they run."""

    def __init__(self, services: Services, free: threading.Semaphore, most: int) -> None:
        self._services = services
        self._free = free
        self._most = most

    def take(self, orders: Sequence[Order]) -> None:
        """Returns when all have been answered, and when a worker has begun with the last message.

        Raises Lost for another answer than the order's, and TimeoutError where nothing goes on.
        """
        with self._client() as client, ThreadPoolExecutor(self._most) as threads:
            answers = []
            for order in orders:
                self._await_one()
                answers.append(threads.submit(self._ask, client, order))
            for _ in range(self._most):
                self._await_one()
            for answer in answers:
                answer.result()
        for _ in range(self._most):
            self._free.release()

    def _client(self) -> httpx.Client:
        """A connection for each order, as of so many customers. (uvicorn closes one whose handler raises.)"""
        one_each = httpx.Limits(max_keepalive_connections=0)
        url = self._services.orders_url
        return httpx.Client(base_url=url, trust_env=False, timeout=_PATIENCE, limits=one_each)

    def _await_one(self) -> None:
        self._services.until("an order to go on", lambda: self._free.acquire(timeout=0.5), _PATIENCE)

    def _ask(self, client: httpx.Client, order: Order) -> None:
        headers = {"x-tenant-id": "acme", "x-user-id": order.user}
        content = {**_GOES_WELL, **order.content}
        status = 0
        try:
            status = client.post("/orders", json=content, headers=headers).status_code
        finally:
            if status != 202:
                self._free.release()  # there is no message
        if status != order.status:
            raise Lost(f"order {order.number} ({order.outcome}) was answered by {status}, not {order.status}")


def made_of(orders: Sequence[Order], spans: Sequence[SpanRecord]) -> Made:
    """The traces of the orders. Raises Lost when they are not what the orders have to make: one of each, whole."""
    awaited = {order.user: order for order in orders}
    traces = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    outcomes: dict[str, Outcome] = {}
    for trace_id, those in traces.items():
        user = str(next((span.attributes.get("user.id") for span in those if span.parent is None), None))
        if user not in awaited:
            raise Lost(f"a trace of no order, or its second one:\n{render_tree(those)}")
        outcomes[trace_id] = _outcome(awaited.pop(user), those)
    if awaited:
        raise Lost(f"{len(awaited)} orders have no trace: {sorted(awaited)[:5]}")
    return Made(outcomes, {trace: {span.span_id for span in those} for trace, those in traces.items()})


def told(spans: Sequence[JaegerSpan]) -> str:
    """One trace as Jaeger's API answers it: service, operation, references."""
    names = {span.span_id: span.operation for span in spans}
    rows = [
        (
            span.service,
            span.operation,
            span.span_id,
            ", ".join(f"{kind} {span_id} ({names.get(span_id)})" for kind, _, span_id in span.references),
        )
        for span in sorted(spans, key=lambda span: span.start)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows)


def queue_of(queue: str, url: str, workers: int) -> Mapping[str, str]:
    """How the services find a queue of the run's own, which is there."""
    environ = queue_environment(queue, url)
    if queue == "kafka":
        asyncio.run(create_topic(environ["KAFKA_SERVERS"], environ["TOPIC"], workers))
    return environ


_GOES_WELL = {"item": "coffee", "email": "ada@example.com"}
_CONTENTS: Mapping[Outcome, tuple[Mapping[str, str], int]] = {
    "failing at the API": ({"card": "fails"}, 502),
    "failing at the worker": ({"email": "nobody@example.com"}, 202),
    "slow at the API": ({"card": "slow"}, 202),
    "slow at the worker": ({"email": "slow@example.com"}, 202),
}


def _content(outcome: Outcome, chance: random.Random) -> tuple[Mapping[str, str], int]:
    if outcome != "ordinary":
        return _CONTENTS[outcome]
    drawn = chance.random()
    if drawn < 0.05:
        return {"item": "tea"}, 409  # out of stock
    return ({"card": "flaky"} if drawn < 0.1 else {}), 202


def _outcome(order: Order, spans: Sequence[SpanRecord]) -> Outcome:
    """What became of the order, by its spans. Raises Lost when they are not a whole trace, or not what was planned."""
    ids = {span.span_id: span.kind for span in spans}
    kinds = Counter(span.kind for span in spans)
    messages = int(order.status == 202)
    is_error = any(span.status == "ERROR" for span in spans)
    has_lasted = max(span.end_ns or 0 for span in spans) - min(span.start_ns for span in spans)
    is_slow = has_lasted >= _TWO_SECONDS
    if any(span.parent and span.parent.span_id not in ids for span in spans):
        raise Lost(f"a span without its parent:\n{render_tree(spans)}")
    if kinds["PRODUCER"] != messages or kinds["CONSUMER"] != messages:
        raise Lost(f"{order.outcome}: not {messages} messages and deliveries:\n{render_tree(spans)}")
    if is_error != (order.outcome in FAILING) or (order.outcome in SLOW and not is_slow):
        raise Lost(f"{order.outcome}: its spans say something else:\n{render_tree(spans)}")
    return "slow by waiting" if is_slow and order.outcome == "ordinary" else order.outcome


def _stop_all(services: Services, processes: Sequence[Process]) -> None:
    """At once: each takes a while to hand over its last spans."""
    with ThreadPoolExecutor(len(processes)) as threads:
        for stopping in [threads.submit(services.stop, process) for process in processes]:
            stopping.result()

"""A stand-in for the two services of ``examples/orders``: made in one process, in seconds and without a broker.

The queue between them is a dict of headers, and what is slow is so by its timestamps alone. It is for tests of what the
Collector does with traces; ``orders.py`` runs the services themselves.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id, use_span

from queueprop import Destination, Settings, process_span, send_span

from .collector import Collector
from .jaeger import Jaeger
from .sampling import CONSUMER, PRODUCER, Kept, Made, Outcome, Plan, kept_of

Headers = dict[str, str]

ORDERS = Destination(system="my-queue", name="orders")
SLOW = 2_500_000_000
"""Nanoseconds that a slow order takes, by the timestamps of its spans: nobody waits for it."""


class Shop:
    """Two services in one process, each with a tracer provider of its own; every trace is sampled by them."""

    def __init__(self, endpoint: str, seed: int = 15) -> None:
        """``endpoint`` takes OTLP over HTTP. What of 5 % is kept hangs on the trace ids, and these on the seed."""
        self._told = InMemorySpanExporter()
        self._providers = [
            self._provider(name, endpoint, random.Random(f"{seed} {name}")) for name in (PRODUCER, CONSUMER)
        ]
        self._api, self._worker = (Settings(tracer_provider=provider) for provider in self._providers)
        self._outcomes: dict[str, Outcome] = {}

    def order(self, outcome: Outcome) -> None:
        """One order, from the request to the mail; one that fails at the API has no message."""
        if outcome == "failing at the API":
            with suppress(_Failed), self._request(outcome):
                raise _Failed
        else:
            self.handle(self.publish(outcome), outcome)

    def publish(self, outcome: Outcome) -> Headers:
        """The request, and the headers of its message."""
        headers: Headers = {}
        with self._request(outcome), send_span(ORDERS, headers=headers, settings=self._api):
            pass
        return headers

    def handle(self, headers: Headers, outcome: Outcome, settings: Settings | None = None) -> None:
        """The delivery of a message, with other settings than usual where they are given."""
        tracer = self._providers[1].get_tracer("shop")
        with suppress(_Failed), process_span(ORDERS, headers=headers, settings=settings or self._worker):
            mail = tracer.start_span("send mail")
            mail.end(time.time_ns() + (SLOW if outcome == "slow at the worker" else 0))
            if outcome == "failing at the worker":
                raise _Failed

    def linking(self) -> Settings:
        """The worker's settings with which a delivery is a trace of its own, which links to the producer's."""
        return Settings(tracer_provider=self._providers[1], propagation="link")

    def flush(self) -> None:
        """Returns when the Collector has answered for every span."""
        for provider in self._providers:
            assert provider.force_flush()

    def close(self) -> None:
        for provider in self._providers:
            provider.shutdown()

    def made(self) -> Made:
        """What it has made so far."""
        spans = defaultdict(set)
        for span in self._told.get_finished_spans():
            context = span.get_span_context()
            assert context is not None
            spans[format_trace_id(context.trace_id)].add(format_span_id(context.span_id))
        return Made(self._outcomes, spans)

    @contextmanager
    def _request(self, outcome: Outcome) -> Iterator[None]:
        started_at = time.time_ns() - (SLOW if outcome == "slow at the API" else 0)
        tracer = self._providers[0].get_tracer("shop")
        request = tracer.start_span("POST /orders", kind=SpanKind.SERVER, start_time=started_at)
        self._outcomes[format_trace_id(request.get_span_context().trace_id)] = outcome
        with use_span(request, end_on_exit=True):
            yield

    def _provider(self, name: str, endpoint: str, ids: random.Random) -> TracerProvider:
        resource = Resource({"service.name": name})
        provider = TracerProvider(resource=resource, id_generator=_Ids(ids), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._told))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
        # Room for the whole run: it is made faster than orders come, and what found the queue full would be lost.
        batches = BatchSpanProcessor(exporter, max_queue_size=50_000, schedule_delay_millis=200)
        provider.add_span_processor(batches)
        return provider


def run(plan: Plan, endpoint: str, samplers: Sequence[Collector], jaeger: Jaeger) -> Kept:
    """Sends the orders to ``endpoint``, and says what was kept. Raises TimeoutError when the samplers do not decide."""
    shop = Shop(endpoint, plan.seed)
    try:
        for outcome in plan.outcomes():
            shop.order(outcome)  # one by one: what waited for the others would be slow
        shop.flush()
        return kept_of(shop.made(), samplers, jaeger)
    finally:
        shop.close()


class _Failed(Exception):
    """What a failing order fails with."""


class _Ids(RandomIdGenerator):
    """The same ids in every run of one seed."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

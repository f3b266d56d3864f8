"""What a message costs: send and process of the core, against a bare SDK span and against OpenTelemetry by hand.

    make bench                      or: python benchmarks/spans.py [--rounds N] [--profile send|process]

A bare span is ``start_span`` and ``end`` with the same attributes: no context, no headers. By hand is the pattern
that OpenTelemetry documents for messaging: ``start_as_current_span`` with ``inject`` or ``extract``, and a link.
All candidates of a table run interleaved, in random order, within each round, so that a slow moment of the
machine hits all of them; the figures are medians over the rounds, and the ratios are to the bare span.
Spans end in a processor that drops them: exporting costs everybody the same.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import statistics
import time
from collections.abc import Callable

from opentelemetry import metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Link, NoOpTracerProvider, SpanKind

import queueprop
from queueprop.engine import semconv

CALLS = 200  # a sample; short, so that candidates alternate often

ORDERS = queueprop.Destination(
    system="rabbitmq", name="orders", server_address="broker.example", server_port=5672
)
SEND = dict(ORDERS.labels(semconv.SEND, "publish").attributes)
PROCESS = dict(ORDERS.labels(semconv.PROCESS, "process").attributes)

Candidate = Callable[[], None]


def send_candidates(tracer: trace.Tracer, settings: queueprop.Settings) -> dict[str, Candidate]:
    """Everybody publishes one message with a fresh dict of headers."""

    def bare() -> None:
        tracer.start_span("publish orders", kind=SpanKind.PRODUCER, attributes=SEND).end()

    def by_hand() -> None:
        headers: dict[str, str] = {}
        with tracer.start_as_current_span("publish orders", kind=SpanKind.PRODUCER, attributes=SEND):
            propagate.inject(headers)

    def ours() -> None:
        headers: dict[str, str] = {}
        with queueprop.send_span(ORDERS, headers=headers, settings=settings):
            pass

    return {"bare SDK span": bare, "by hand": by_hand, "queueprop": ours}


def process_candidates(
    tracer: trace.Tracer, settings: queueprop.Settings, flags: str
) -> dict[str, Candidate]:
    """Everybody handles the same message, with its creation context as parent and as link."""
    headers = {"traceparent": f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"}

    def bare() -> None:
        tracer.start_span("process orders", kind=SpanKind.CONSUMER, attributes=PROCESS).end()

    def by_hand() -> None:
        context = propagate.extract(headers)
        link = Link(trace.get_current_span(context).get_span_context())
        with tracer.start_as_current_span(
            "process orders", context, kind=SpanKind.CONSUMER, attributes=PROCESS, links=[link]
        ):
            pass

    def ours() -> None:
        with queueprop.process_span(ORDERS, headers=headers, settings=settings):
            pass

    return {"bare SDK span": bare, "by hand": by_hand, "queueprop": ours}


def medians(candidates: dict[str, Candidate], rounds: int) -> dict[str, float]:
    """Microseconds a call, the median over the rounds."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for _ in range(rounds):
        random.shuffle(order)
        for name, call in order:
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            samples[name].append((time.perf_counter() - started) / CALLS * 1e6)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def row(title: str, measured: dict[str, float], bare: float, target: float | None) -> None:
    ours = measured["queueprop"]
    by_hand = (
        f"{measured['by hand']:7.2f} {measured['by hand'] / bare:5.2f}x"
        if "by hand" in measured
        else " " * 14
    )
    goal = "" if target is None else f"  at most {target:.1f}x: {'yes' if ours / bare <= target else 'NO'}"
    print(f"{title:<38}{bare:7.2f}   {by_hand}   {ours:7.2f} {ours / bare:5.2f}x{goal}")


def main() -> None:
    arguments = argparse.ArgumentParser(description="What a message costs.")
    arguments.add_argument("--rounds", type=int, default=300)
    arguments.add_argument("--profile", choices=("send", "process"))
    given = arguments.parse_args()

    recorded = TracerProvider(sampler=ALWAYS_ON)
    dropped = TracerProvider(sampler=ALWAYS_OFF)
    meters = MeterProvider(metric_readers=[InMemoryMetricReader()])
    nothing = NoOpTracerProvider()
    no_meters = metrics.NoOpMeterProvider()

    def settings(provider: trace.TracerProvider, meter_provider: metrics.MeterProvider) -> queueprop.Settings:
        return queueprop.Settings(tracer_provider=provider, meter_provider=meter_provider)

    tracer = recorded.get_tracer("bench")
    if given.profile:
        make = {
            "send": send_candidates(tracer, settings(recorded, no_meters)),
            "process": process_candidates(tracer, settings(recorded, no_meters), "01"),
        }[given.profile]
        profile(make["queueprop"])
        return

    print(f"{'microseconds a message (median)':<38}{'bare':>7}   {'by hand':>14}   {'queueprop':>14}")
    sent = medians(send_candidates(tracer, settings(recorded, no_meters)), given.rounds)
    row("send", sent, sent["bare SDK span"], 1.3)
    processed = medians(process_candidates(tracer, settings(recorded, no_meters), "01"), given.rounds)
    row("process, with its link", processed, processed["bare SDK span"], 1.5)

    off = dropped.get_tracer("bench")
    for title, candidates, bare in (
        ("send, sampled out", send_candidates(off, settings(dropped, no_meters)), tracer),
        ("process, sampled out", process_candidates(off, settings(dropped, no_meters), "00"), tracer),
    ):
        # The bare span of a row that is sampled out is a recorded one: what a message would cost otherwise.
        candidates["bare SDK span"] = send_candidates(bare, settings(recorded, no_meters))["bare SDK span"]
        measured = medians(candidates, given.rounds)
        row(title, measured, measured["bare SDK span"], 0.6)

    for title, candidates in (
        ("send, no SDK", send_candidates(nothing.get_tracer("bench"), settings(nothing, no_meters))),
        (
            "process, no SDK",
            process_candidates(nothing.get_tracer("bench"), settings(nothing, no_meters), "01"),
        ),
    ):
        candidates["bare SDK span"] = send_candidates(tracer, settings(recorded, no_meters))["bare SDK span"]
        measured = medians(candidates, given.rounds)
        row(title, measured, measured["bare SDK span"], None)

    for title, candidates in (
        ("send, with a MeterProvider", send_candidates(tracer, settings(recorded, meters))),
        ("process, with a MeterProvider", process_candidates(tracer, settings(recorded, meters), "01")),
    ):
        del candidates["by hand"]  # it measures nothing, so there is nothing to compare
        measured = medians(candidates, given.rounds)
        row(title, measured, measured["bare SDK span"], None)


def profile(call: Candidate) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(20_000):
        call()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()

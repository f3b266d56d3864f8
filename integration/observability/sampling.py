"""What a run sends, what of it was kept, and how that is judged: by the spans that were made, one by one."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .collector import Collector
from .jaeger import Jaeger, JaegerSpan

Outcome = Literal[
    "ordinary",
    "failing at the API",
    "failing at the worker",
    "slow at the API",
    "slow at the worker",
    "slow by waiting",
]
"""What became of an order. The last one is never planned: it was to be ordinary, and had to wait for two seconds."""

FAILING: Sequence[Outcome] = ("failing at the API", "failing at the worker")
SLOW: Sequence[Outcome] = ("slow at the API", "slow at the worker")
WAITED: Sequence[Outcome] = ("slow by waiting",)
ORDINARY: Sequence[Outcome] = ("ordinary",)

PRODUCER, CONSUMER = "order-service", "notification-service"


@dataclass(frozen=True)
class Plan:
    """So many orders, of which some fail and some take more than two seconds, in an order that the seed decides.

    Of the failing and of the slow ones, one half is so in the service that publishes, the other in the worker.
    """

    orders: int = 3000
    failing: int = 100
    slow: int = 50
    seed: int = 15

    def outcomes(self) -> Sequence[Outcome]:
        failing_at_worker, slow_at_worker = self.failing // 2, self.slow // 2
        parts: tuple[tuple[Outcome, int], ...] = (
            ("failing at the API", self.failing - failing_at_worker),
            ("failing at the worker", failing_at_worker),
            ("slow at the API", self.slow - slow_at_worker),
            ("slow at the worker", slow_at_worker),
            ("ordinary", self.orders - self.failing - self.slow),
        )
        outcomes = [outcome for outcome, count in parts for _ in range(count)]
        random.Random(self.seed).shuffle(outcomes)
        return outcomes


class Made(NamedTuple):
    """Everything that the services have made, whatever is kept of it; by trace id."""

    outcomes: Mapping[str, Outcome]
    spans: Mapping[str, set[str]]
    """Their ids."""


@dataclass(frozen=True)
class Kept:
    """What a run sent, and what of it is in Jaeger."""

    sent: Mapping[Outcome, int]
    whole: Mapping[Outcome, int]
    """Traces all of whose spans are there."""
    partial: int
    """Traces that lack some. Those of which there is nothing are dropped, as they should be."""
    absent: int
    """Traces of which there is nothing."""
    orphans: int
    """Spans of the worker that are no CHILD_OF a span of the producer's that is there."""
    consumers: int
    """The worker's spans that were looked at for that."""

    def of(self, outcomes: Sequence[Outcome]) -> tuple[int, int]:
        """How many were kept whole, of how many."""
        return sum(self.whole[one] for one in outcomes), sum(self.sent[one] for one in outcomes)

    @property
    def rest(self) -> float:
        """The part of the ordinary ones that was kept, in per cent."""
        return 100 * self.whole["ordinary"] / self.sent["ordinary"]

    def __str__(self) -> str:
        errors, slow, waited, rest = (
            "{} of {}".format(*self.of(them)) for them in (FAILING, SLOW, WAITED, ORDINARY)
        )
        rows = (
            ("traces sent", f"{sum(self.sent.values())}"),
            ("kept whole", f"{sum(self.whole.values())}"),
            ("errors kept", errors),
            ("slow kept", slow if not self.sent["slow by waiting"] else f"{slow}, and by waiting {waited}"),
            ("rest kept", f"{rest}: {self.rest:.1f} %"),
            ("kept in part", f"{self.partial}"),
            ("wholly absent", f"{self.absent}"),
            ("orphans", f"{self.orphans} of {self.consumers} process spans"),
        )
        return "\n".join(f"{name:<15}{value}" for name, value in rows)


def kept_of(made: Made, samplers: Sequence[Collector], jaeger: Jaeger) -> Kept:
    """Returns when the samplers have decided on all that was made, and Jaeger has what they kept.

    Raises TimeoutError when they do not decide.
    """
    wait_for("decisions", lambda: decided(samplers) >= len(made.outcomes))
    kept = decided(samplers, sampled="true")
    with suppress(TimeoutError):  # what is not there is in the result
        wait_for("spans in Jaeger", lambda: _has_all(jaeger, made, kept), patience=30)
    return judged(made, traces_in(jaeger))


def decided(samplers: Sequence[Collector], **labels: str) -> int:
    """On how many traces the samplers have decided: in all, or with ``sampled="true"``."""
    metric = "processor_tail_sampling_global_count_traces_sampled"
    return sum(sampler.counted(metric, **labels) for sampler in samplers)


def traces_in(jaeger: Jaeger) -> Mapping[str, Sequence[JaegerSpan]]:
    """Every trace that Jaeger has, by its id."""
    found = defaultdict(list)
    for span in jaeger.spans(PRODUCER, CONSUMER):
        found[span.trace_id].append(span)
    return found


def judged(made: Made, found: Mapping[str, Sequence[JaegerSpan]]) -> Kept:
    """Compares what was made with what was found, span by span."""
    whole = {trace for trace, ids in made.spans.items() if _ids(found.get(trace, ())) == ids}
    consumers = [span for spans in found.values() for span in spans if span.kind == "consumer"]
    producers = {
        (span.trace_id, span.span_id)
        for spans in found.values()
        for span in spans
        if span.kind == "producer" and span.service == PRODUCER
    }
    return Kept(
        sent=Counter(made.outcomes.values()),
        whole=Counter(outcome for trace, outcome in made.outcomes.items() if trace in whole),
        partial=len(found.keys() - whole),
        absent=len(made.outcomes.keys() - found.keys()),
        orphans=sum(span.parent not in producers for span in consumers),
        consumers=len(consumers),
    )


def wait_for(what: str, condition: Callable[[], bool], patience: float = 120) -> None:
    """Returns when the condition holds. Raises TimeoutError when it does not within so many seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no {what} within {patience:g} s")
        time.sleep(0.2)


def _has_all(jaeger: Jaeger, made: Made, kept: int) -> bool:
    found = traces_in(jaeger)
    return len(found) >= kept and all(
        len(spans) >= len(made.spans.get(trace, ())) for trace, spans in found.items()
    )


def _ids(spans: Iterable[JaegerSpan]) -> set[str]:
    return {span.span_id for span in spans}

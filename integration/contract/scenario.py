"""The 37 behaviours that every adapter must show, and the mark that ties a test to one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from integration.contract.driver import Need

TITLES = {
    1: "One publish makes one PRODUCER span",
    2: "One delivery makes one CONSUMER span in the producer's trace",
    3: "The handler runs inside it",
    4: "Baggage and tracestate come through",
    5: "Sampled out: nothing exported, the context goes on",
    6: "Without an SDK the context goes on",
    7: "No context: a new root, counted as missing",
    8: "Broken context: delivered, a root, counted as malformed",
    9: "The handler raises: told on the span, handled as without us",
    10: "The publish fails: told on the span, the same exception",
    11: "Every attempt has its own span in the first trace",
    12: "Delayed messages stay in the trace, their wait is told",
    13: "What is forwarded carries one context, the new one",
    14: "The caller's headers are not altered",
    15: "Nothing stays current behind a handler or a loop",
    16: "Threads and tasks do not mix traces",
    17: "Batches: a context a message, a link a message",
    18: "instrument() and uninstrument()",
    19: "Another instrumentation of the library keeps it",
    20: "suppress_instrumentation()",
    21: "Another propagator is obeyed",
    22: "Worker processes lose no span and repeat no id",
    23: "A killed worker: redelivered into the same trace",
    24: "carry_context into threads and executors",
    25: "Metrics agree with messages and spans",
    26: "Untrusted sources and baggage_allow",
    27: "After a restart of the broker, traced as before",
    28: "On the wire: one of each, in the right types",
    29: "What no handler gets has a span that says so",
    30: "What the library publishes for a message is in its trace",
    31: "A periodic firing is a trace of its own",
    32: "A killed process: one span, with ERROR, from who is left",
    33: "Another language's official place, both ways",
    34: "Retries are siblings, however many",
    35: "Connected inside a span: it is in no handler",
    36: "Handled twice: never outside, no second span",
    37: "A context that the caller wrote goes on",
}


@dataclass(frozen=True)
class Scenario:
    """Which behaviour a test holds, and what a column must have for it to apply."""

    number: int
    needs: Sequence[Need] = ()

    def __str__(self) -> str:
        return f"{self.number} {TITLES[self.number]}"


_Test = TypeVar("_Test", bound=Callable[..., Any])


def scenario(number: int, *needs: Need) -> Callable[[_Test], _Test]:
    """Marks a test as holding a part of behaviour ``number``; it runs where the column lacks none of
    ``needs``.
    """

    def mark(test: _Test) -> _Test:
        test.scenario = Scenario(number, needs)  # type: ignore[attr-defined]
        return test

    return mark

"""Random odd inputs, many of them: what was not thought of when the tests were written.

    python -m tests.wire.fuzz --inputs 1000000 [--seed N]

Each input is a container with odd names and values, a second one that is written into, and odd baggage. The test of
the same name runs a few of them.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from queueprop import guard
from queueprop.wire.propagation import BAGGAGE_KEY, Extraction, extract, inject, read, write
from queueprop.wire.w3c import BaggageValue

from .odd import Chooser

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN_CONTEXT = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, False, TraceFlags(1))
CONTEXT = trace.set_span_in_context(NonRecordingSpan(SPAN_CONTEXT), Context())

HEADERS = [
    ("traceparent", TRACEPARENT),
    ("TraceParent", TRACEPARENT),
    ("tracestate", "a=1,9b=2"),
    ("Tracestate", "a=1,a=2"),
    ("baggage", "user=42,plan=gold;p=1"),
    ("BAGGAGE", "k=%FF%C3,v=a+b=c"),
    ("baggage", "junk"),
    ("other", "1"),
    ("x-another", TRACEPARENT),
]
MEMBERS = [("user", "42"), ("k", "\u00e9 +=%"), ("plan", "gold"), ("no token", "1"), ("surrogate", "\ud800")]


def run(inputs: int, seed: int) -> Counter[str]:
    """What became of so many inputs. Raises where something does that must not."""
    chooser, seen = Chooser(seed), Counter[str]()
    for _ in range(inputs):
        seen[f"read: {check_read(chooser.container(chooser.pairs(HEADERS)))}"] += 1
        seen[f"written: {check_written(chooser.container(chooser.pairs(HEADERS)))}"] += 1
        seen[f"baggage: {check_baggage(chooser)}"] += 1
    return seen


def check_read(container: Any) -> str:
    """Never raises; plain texts come out, and are the same after each further hop."""
    extraction = read(container)
    assert extraction.span_context.is_valid == (extraction.reason is None)
    assert_plain(extraction.context)
    one: dict[str, str] = {}
    inject(one, context=extraction.context)
    assert_sent(one)
    two: dict[str, str] = {}
    inject(two, context=extract(one))
    assert one == two
    return extraction.reason or "found"


def check_written(container: Any) -> str:
    """It raises the TypeError that is documented, or has written."""
    try:
        inject(container, context=CONTEXT)
    except TypeError as error:
        if not str(error).startswith("headers are written in place"):
            raise
        return "refused"
    return "found" if read(container).reason is None else "not found"


def check_baggage(chooser: Chooser) -> str:
    """A member that cannot be written is left out alone."""
    members: dict[Any, Any] = {"first": "1"}
    for key, text in chooser.random.choices(MEMBERS, k=chooser.random.randrange(4)):
        try:
            members[chooser.value(key) if chooser.random.random() < 0.4 else key] = chooser.value(text)
        except Exception:
            continue  # no key of a dict
    members["last"] = BaggageValue("2", "p=1")
    context = Context({BAGGAGE_KEY: members})
    for allow in (None, ("first", "last", "user")):
        carrier: dict[str, str] = {}
        write(carrier, context, allow)
        assert_sent(carrier)
        assert carrier["baggage"].startswith("first=1")
        assert carrier["baggage"].endswith("last=2;p=1" if allow is None else "last=2")
        found: Extraction = read(carrier)
        assert_plain(found.context)
        again: dict[str, str] = {}
        inject(again, context=found.context)
        assert again == carrier, (again, carrier)
    return f"{min(len(baggage.get_all(found.context)), 3)} members"


def assert_plain(context: Context) -> None:
    assert type(context) is Context
    span_context = trace.get_current_span(context).get_span_context()
    assert type(span_context) is SpanContext
    assert {type(text) for pair in span_context.trace_state.items() for text in pair} <= {str}
    for key, value in baggage.get_all(context).items():
        assert type(key) is str
        assert type(value) is str or (type(value) is BaggageValue and type(value.properties) is str), value


def assert_sent(carrier: dict[str, str]) -> None:
    for name, value in carrier.items():
        assert type(name) is type(value) is str
        assert value.isascii()
        # W3C's optional whitespace, which goes on as it came between a member's properties, may be a tab.
        assert value.replace("\t", " ").isprintable(), value


def main() -> None:
    arguments = argparse.ArgumentParser(description="Reads and writes odd containers, values and baggage.")
    arguments.add_argument("--inputs", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    logging.getLogger("queueprop").setLevel(logging.CRITICAL)
    guard.raise_faults = False
    started = time.monotonic()
    seen = run(given.inputs, given.seed)
    print(f"{given.inputs} inputs, seed {given.seed}, {time.monotonic() - started:.0f} s, nothing raised")
    for what, times in sorted(seen.items()):
        print(f"{times:9} {what}")


if __name__ == "__main__":
    main()

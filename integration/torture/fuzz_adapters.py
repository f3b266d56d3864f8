"""One library, many inputs: once plain, once traced, the same ones; and a legal context, which must come through.

    python -m integration.torture.fuzz_adapters same LIBRARY plain|traced SEED INPUTS
    python -m integration.torture.fuzz_adapters trip LIBRARY SEED INPUTS
    python -m integration.torture.fuzz_adapters cost LIBRARY

Each prints a report as JSON.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from integration.torture import children
from integration.torture.inputs import Inputs, legal_baggage, legal_tracestate
from integration.torture.lines import Line, instrumented, line_class
from queueprop import Settings, guard

CONTEXT_NAMES = ("traceparent", "tracestate", "baggage")


# The same, plain and traced


def same(library: str, is_traced: bool, seed: int, inputs: int) -> children.Report:
    """What became of each input, as numbers in a table: what was raised, handled, altered, sent."""
    faults = _counted_faults()
    settings = _settings() if is_traced else None
    table: dict[str, int] = {}
    found: list[int] = []
    with instrumented(library, settings):
        line = line_class(library)(settings)
        chance = random.Random()
        given = Inputs(chance, line.carrier)
        for number in range(inputs):
            chance.seed(f"{seed}-{number}")  # of each anew: one can be looked at alone
            became = f"{_published(line, given)}; {_delivered(line, given)}"
            found.append(table.setdefault(became, len(table)))
            if context.get_current():
                raise AssertionError(f"input {number} has left a context behind")
        line.close()
    return {"became": list(table), "found": found, "faults": faults}


def _published(line: Line, given: Inputs) -> str:
    headers, name = given.headers(), given.name()
    before = snapshot(headers)
    sent: Any = None
    raised = ""
    try:
        sent = line.publish(headers, "hello", name)
    except Exception as error:
        raised = type(error).__name__
    return f"publish {raised or 'sent'} {_others(line, sent)}{_altered(line, headers, before)}"


def _delivered(line: Line, given: Inputs) -> str:
    headers = given.headers()
    before = snapshot(headers)
    handled: list[str] = []
    try:
        line.deliver(headers, handled.append, "hello")
        raised = ""
    except Exception as error:
        raised = type(error).__name__
    return f"deliver {raised} handled {len(handled)}{_altered(line, headers, before)}"


def _altered(line: Line, headers: Any, before: object) -> str:
    # The core's word is documented to write in place.
    return "" if line.library == "core" or snapshot(headers) == before else " altered"


def _others(line: Line, sent: Any) -> str:
    """The headers that are not a context's: they go out as they are."""
    if line.library in ("core", "celery", "dramatiq", "rq", "bullmq"):
        return ""  # what goes out there has an id in it, or is the place of the context alone
    try:
        pairs = list(sent.items() if isinstance(sent, Mapping) else sent or ())
    except Exception:
        return "unreadable"
    return ",".join(sorted(filter(None, map(_other, pairs))))


def _other(pair: Any) -> str | None:
    try:
        name, value = _content(pair)
        if type(name) is bytes:
            name = name.decode()
        if type(name) is not str:
            return None  # it may be a context's, by what it holds
        return None if name.lower() in CONTEXT_NAMES else f"{name}={type(value).__name__}"
    except Exception:
        return "odd"


def _content(pair: Any) -> Any:
    """As C reads it: a class of somebody's may hide from Python what a client in C sends all the same."""
    for kind in (tuple, list):
        if issubclass(type(pair), kind):
            return kind.__iter__(pair)
    return pair


def snapshot(headers: Any) -> object:
    """What is in a container, by identity, whatever its class says of itself."""
    kind = type(headers)
    try:
        if issubclass(kind, dict):
            return [(id(key), id(value)) for key, value in dict.items(headers)]
        if issubclass(kind, list):
            return [(id(one), _inside(one)) for one in list.__iter__(headers)]
    except Exception:
        return None
    return None


def _inside(pair: Any) -> object:
    return [id(one) for one in list.__iter__(pair)] if issubclass(type(pair), list) else None


def _counted_faults() -> Counter[str]:
    """Those that are nobody's but ours."""
    faults: Counter[str] = Counter()
    guard.raise_faults = False
    logging.getLogger("queueprop").setLevel(logging.CRITICAL)
    told = guard.fault

    def fault(where: str, error: Exception, about: object = "") -> None:
        if guard._whose(error).startswith("Please"):
            faults[f"{where}: {type(error).__name__}"] += 1
        told(where, error, about)

    guard.fault = fault
    return faults


def _settings() -> Settings:
    return Settings(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        capture_headers=("other", "baggage"),
        body_size=True,
    )


# There and back


def trip(library: str, seed: int, inputs: int) -> children.Report:
    """Every legal baggage and tracestate that a publish finds current is current in the handler of what it sent."""
    _counted_faults()
    settings = _settings()
    wrong: list[str] = []
    chance = random.Random(seed)
    with instrumented(library, settings):
        line = line_class(library)(settings)
        for number in range(inputs):
            members = legal_baggage(chance, chance.randint(0, 64))
            states = legal_tracestate(chance, chance.randint(0, 32))
            current = _context(chance, members, states)
            found: list[tuple[Any, ...]] = []
            token = context.attach(current)
            try:
                sent = line.publish(None, "hello")
            finally:
                context.detach(token)
            line.deliver(sent, lambda body, found=found: found.append(_current()), "hello")  # type: ignore[misc]
            expected = (trace.get_current_span(current).get_span_context().trace_id, members, states)
            if found != [expected]:
                wrong.append(f"input {number}: {found} instead of {expected}"[:600])
        line.close()
    return {"wrong": wrong, "inputs": inputs}


def _context(chance: random.Random, members: dict[str, str], states: list[tuple[str, str]]) -> Context:
    # Level-2 keys are refused by OpenTelemetry's own: it is made as queueprop's codec makes one.
    state = TraceState()
    state._dict.update(states)
    span = SpanContext(chance.getrandbits(128) | 1, chance.getrandbits(64) | 1, True, TraceFlags(1), state)
    found = trace.set_span_in_context(NonRecordingSpan(span), Context())
    for key, value in members.items():
        found = baggage.set_baggage(key, value, found)
    return found


def _current() -> tuple[Any, ...]:
    span = trace.get_current_span().get_span_context()
    return span.trace_id, dict(baggage.get_all()), list(span.trace_state.items())


# What the size costs

SMALL, LARGE = 10_000, 1_000_000
"""Bytes."""

_VALID = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

SHAPES: dict[str, Callable[[int], list[tuple[str, str]]]] = {
    "long baggage member": lambda size: [("baggage", "k=" + "v" * size)],
    "baggage members": lambda size: [("baggage", ",".join(f"k{n}=v" for n in range(size // 8)))],
    "baggage commas": lambda size: [("baggage", "," * size)],
    "baggage percents": lambda size: [("baggage", "k=" + "%FF" * (size // 3))],
    "baggage properties": lambda size: [("baggage", "k=v" + ";p=1" * (size // 4))],
    "baggage spaces": lambda size: [("baggage", "k" + " " * size + "=v")],
    "tracestate members": lambda size: [
        _VALID,
        ("tracestate", ",".join(f"k{n}=v" for n in range(size // 8))),
    ],
    "tracestate commas": lambda size: [_VALID, ("tracestate", "," * size)],
    "long tracestate member": lambda size: [_VALID, ("tracestate", "k=" + "v" * size)],
    "tracestate spaces": lambda size: [_VALID, ("tracestate", "k=" + " " * size)],
    "long traceparent": lambda size: [("traceparent", "00-" + "0" * size)],
    "traceparent spaces": lambda size: [("traceparent", " " * size)],
    "long other header": lambda size: [_VALID, ("other", "x" * size)],
    "many headers": lambda size: [_VALID, *((f"header-{n}", "v" * 6) for n in range(size // 20))],
    "many headers of its length": lambda size: [_VALID, *((f"{n:011}", "v" * 9) for n in range(size // 20))],
}


def cost(library: str) -> children.Report:
    """Milliseconds of the thread's CPU time that a publish and a delivery take, by shape, small and large."""
    _counted_faults()
    settings = _settings()
    times: dict[str, list[float]] = {}
    with instrumented(library, settings):
        line = line_class(library)(settings)
        for shape, make in SHAPES.items():
            for what in ("publish", "deliver"):
                times[f"{what}, {shape}"] = [_time(line, what, make(size)) for size in (SMALL, LARGE)]
        times["publish, current baggage"] = [_time_inside(line, size) for size in (SMALL, LARGE)]
        line.close()
    return times


def _time(line: Line, what: str, pairs: list[tuple[str, str]], times: int = 5) -> float:
    made: Any = dict(pairs) if line.carrier == "dict" else [(name, value.encode()) for name, value in pairs]
    act: Callable[[], object] = (
        (lambda: line.publish(made, "hello"))
        if what == "publish"
        else (lambda: line.deliver(made, lambda body: None, "hello"))
    )
    return min(_once(act) for _ in range(times))


def _once(act: Callable[[], object]) -> float:
    """Without the garbage collector, which looks at all that there is, the more often the more is made."""
    gc.collect()
    gc.disable()
    began = time.thread_time()
    try:
        with suppress(Exception):  # the library may refuse what is so large; that takes its time, too
            act()
        return (time.thread_time() - began) * 1000
    finally:
        gc.enable()


def _time_inside(line: Line, size: int) -> float:
    members = {f"k{number}": "v" * 12 for number in range(size // 20)}
    from queueprop.wire.propagation import BAGGAGE_KEY

    token = context.attach(Context({BAGGAGE_KEY: members}))
    try:
        return _time(line, "publish", [])
    finally:
        context.detach(token)


if __name__ == "__main__":
    what, library, *rest = sys.argv[1:]
    if what == "same":
        print(json.dumps(same(library, rest[0] == "traced", int(rest[1]), int(rest[2]))))
    elif what == "trip":
        print(json.dumps(trip(library, int(rest[0]), int(rest[1]))))
    else:
        print(json.dumps(cost(library)))

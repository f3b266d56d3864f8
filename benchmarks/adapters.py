"""One library in one way, over a stub or live: ``python -m benchmarks.adapters LIBRARY WAY WHERE ROUNDS`` prints a
report as JSON. ``WHERE`` is ``stubs``, or ``live`` for the broker that the environment names (see ``live``).

The ways are the library alone, instrumented by queueprop, and by another instrumentation of it that is installed; of
the libraries of ``stubs.BY_HAND`` also by hand, as OpenTelemetry documents it, with a link. An instrumentation patches
globally, so each has a process of its own. Providers are as in the core's mode "recorded".
"""

from __future__ import annotations

import cProfile
import importlib
import json
import pstats
import sys
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import queueprop
from benchmarks import complete, measure
from benchmarks.core import BY_HAND, OPERATIONS, SPAN_ID, TRACE_ID, nothing
from benchmarks.live import client_of
from benchmarks.stubs import Stub, stub_of
from queueprop.kit.libraries import ADAPTERS

WAYS = ("alone", "queueprop", "other")
FINDS = {"stubs": stub_of, "live": client_of}
Report = dict[str, Any]


class CannotRun(Exception):
    """What a row says instead of figures."""


def report(library: str, way: str, where: str, rounds: int) -> Report:
    """Microseconds and retained objects of each operation; or ``cannot``, the reason why it is not measured.

    Raises AssertionError when a span that was timed is not complete.
    """
    trace.set_tracer_provider(TracerProvider())
    if way != "other":
        if way == "queueprop":
            queueprop.instrument(library)  # by hand patches nothing
        return measured(FINDS[where](library), way, rounds)
    try:
        with_other(library)
        return measured(FINDS[where](library), way, rounds)
    except CannotRun as error:
        return {"cannot": str(error)}
    except Exception as error:  # it is not ours, and it is not to end the run
        return {"cannot": f"it raises {type(error).__name__}: {error}"}


def with_other(library: str) -> None:
    """Instruments by the other instrumentation that our adapter names. Raises CannotRun."""
    module, _, instrumentor = ADAPTERS[library].partition(":")
    adapter = getattr(importlib.import_module(module), instrumentor)
    if not adapter.rivals.known:
        raise CannotRun("OpenTelemetry has none")
    rival = adapter.rivals.known[0]
    name, _, instrumentor = rival.instrumentor.partition(":")
    try:
        made = getattr(importlib.import_module(name), instrumentor)()
    except ImportError:
        raise CannotRun(f"{rival.distribution} is not installed") from None
    made.instrument()
    if not made.is_instrumented_by_opentelemetry:
        raise CannotRun(f"{rival.distribution} does not know this version of {library}")


def measured(stub: Stub, way: str, rounds: int) -> Report:
    batches = batches_of(stub, way)
    found: Report = {
        operation: {"microseconds": time} for operation, time in measure.medians(batches, rounds).items()
    }
    found["cut"] = stub.cut
    if way == "queueprop" and stub.cut:
        for operation, batch in batches.items():
            found[operation]["retained"] = measure.retained(batch)
    look(stub, way, found)
    return found


def batches_of(stub: Stub, way: str) -> Mapping[str, measure.Batch]:
    publishes, deliveries = calls_of(stub, way)
    return {"send": publishes, "process": lambda count: deliveries(count, nothing)}


def calls_of(stub: Stub, way: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if way == BY_HAND:
        return stub.publishes_by_hand, stub.deliveries_by_hand
    return stub.publishes, stub.deliveries


# What was timed


def look(stub: Stub, way: str, found: Report) -> None:
    """Publishes and delivers one message each: queueprop's spans are checked, of another's it is told what they are."""
    spans = complete.exported()
    publishes, deliveries = calls_of(stub, way)
    for operation in OPERATIONS:
        inside: list[complete.Current] = []
        prepare: Callable[[], object] = (
            publishes(1)
            if operation == "send"
            else deliveries(1, lambda inside=inside: inside.append(complete.current()))
        )
        prepare()
        headers = stub.written() if operation == "send" else {}
        check = {"alone": _check_nothing, "queueprop": _check_ours, BY_HAND: _check_ours, "other": _tell}[way]
        check(stub, operation, spans(), inside, headers, found)


def _check_nothing(stub: Stub, operation: str, spans: complete.Spans, *_: Any) -> None:
    assert not spans, "a library that is not instrumented makes spans"


def _check_ours(
    stub: Stub, operation: str, spans: complete.Spans, inside: Any, headers: Mapping[str, str], found: Report
) -> None:
    [span] = spans
    is_send = operation == "send"
    attributes = {
        "messaging.system": stub.system,
        "messaging.operation.name": complete.NAMES[operation],
        "messaging.operation.type": operation,
        "messaging.destination.name": stub.published_to if is_send else stub.consumed_from,
    }
    context = span.get_span_context()
    assert context is not None
    if is_send:
        assert (span.kind, span.parent) == (complete.KINDS[operation], None)
        assert dict(span.attributes or {}).items() >= attributes.items(), span.attributes
        assert headers["traceparent"] == complete.traceparent(context), headers
        return
    wanted = complete.Wanted(operation, attributes, (TRACE_ID, SPAN_ID), is_linked=True)
    wanted.check(spans, inside[0], headers)


def _tell(
    stub: Stub, operation: str, spans: complete.Spans, inside: Any, headers: Mapping[str, str], found: Report
) -> None:
    """What another's spans lack, in words."""
    lacks = []
    if len(spans) != 1:
        lacks.append(f"{len(spans)} spans a message")
    if operation == "send":
        contexts = [complete.traceparent(one.context) for one in spans if one.context is not None]
        if headers.get("traceparent") not in contexts:
            lacks.append("its context is not in the headers")
    else:
        if not any(one.parent is not None and complete.ids(one.parent)[0] == TRACE_ID for one in spans):
            lacks.append("outside the message's trace")
        if not any(complete.ids(one.context) == complete.ids(inside[0].span) for one in spans):
            lacks.append("the handler runs outside its span")
        if not any(one.links for one in spans):
            lacks.append("no link")
    found[operation]["lacks"] = lacks


def profile(library: str, operation: str) -> None:
    """cProfile of queueprop's way, on stderr."""
    trace.set_tracer_provider(TracerProvider())
    queueprop.instrument(library)
    run = batches_of(stub_of(library), "queueprop")[operation](5000)
    profiler = cProfile.Profile()
    profiler.runcall(run)
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))

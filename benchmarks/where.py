"""Where a message's cost lies: the instructions of the interpreter that it takes, by whose code they are.

    make bench-where     or: python -m benchmarks --where [--json FILE]

Counted, and so the same on a busy machine: each library alone, by hand (with a link), with queueprop, and with
OpenTelemetry's own instrumentation, where it has one. What C does is not seen, and an instruction is no fixed time; the
figures say whose code it is that a message runs through, and what is left when one of them is taken away. The
SDK looks at each attribute of a span, and of its links: how many there are is counted, too.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

import queueprop
from benchmarks import complete
from benchmarks.adapters import CannotRun, calls_of, with_other
from benchmarks.core import nothing
from benchmarks.stubs import stub_of

MESSAGES = 200
OTHER = "other"

SDK, CONTRIB, LIBRARY = "OpenTelemetry's API and SDK", "its instrumentation", "the library and Python"
CORE, KIT, ADAPTER = "queueprop's core", "its kit", "its adapter"
PARTS = (LIBRARY, SDK, CONTRIB, CORE, KIT, ADAPTER)
ATTRIBUTES = "attributes"

Prepare = Callable[[int], Callable[[], object]]

_QUEUEPROP = Path(queueprop.__file__).parent


def report(library: str, way: str) -> dict[str, dict[str, float]]:
    """Of each operation, instructions a message by whose they are, and attributes; empty where that way cannot be
    gone.
    """
    trace.set_tracer_provider(TracerProvider())
    try:
        if way == OTHER:
            with_other(library)
        elif way == "queueprop":
            queueprop.instrument(library)
        stub = stub_of(library)
        publishes, deliveries = calls_of(stub, way)
    except CannotRun:
        return {}
    ways: dict[str, Prepare] = {"send": publishes, "process": lambda count: deliveries(count, nothing)}
    found = {operation: counted(prepare) for operation, prepare in ways.items()}
    spans = complete.exported()
    for operation, prepare in ways.items():
        run = prepare(1)
        spans()
        run()
        found[operation][ATTRIBUTES] = sum(map(attributes_of, spans()))
    return found


def attributes_of(span: ReadableSpan) -> int:
    bags = [
        span.attributes,
        *(link.attributes for link in span.links),
        *(one.attributes for one in span.events),
    ]
    return sum(len(bag or {}) for bag in bags)


def counted(prepare: Prepare) -> dict[str, float]:
    """After a first run, in which what is made once is made."""
    prepare(MESSAGES)()
    run = prepare(MESSAGES)
    counts: Counter[str] = Counter()

    def count(code: CodeType, offset: int) -> None:
        counts[code.co_filename] += 1

    monitoring: Any = vars(sys)["monitoring"]  # since Python 3.12
    monitoring.use_tool_id(monitoring.PROFILER_ID, "benchmarks.where")
    monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, count)
    monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION)
    try:
        run()
    finally:
        monitoring.set_events(monitoring.PROFILER_ID, 0)
        monitoring.free_tool_id(monitoring.PROFILER_ID)
    found = dict.fromkeys(PARTS, 0.0)
    for file, number in counts.items():
        if Path(file) != Path(__file__):
            found[part_of(file)] += number / MESSAGES
    return found


def part_of(file: str) -> str:
    """Whose code a file has. By hand, that of the user counts as the library's."""
    path = Path(file)
    if _QUEUEPROP in path.parents:
        return {"adapters": ADAPTER, "kit": KIT}.get(path.relative_to(_QUEUEPROP).parts[0], CORE)
    if "opentelemetry" not in path.parts:
        return LIBRARY
    return CONTRIB if "instrumentation" in path.parts else SDK


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1], sys.argv[2])))

"""Soak: one process, very many messages, default settings: nothing grows, nothing is left, a span for each delivery.

    python -m integration.torture.soak LIBRARY VARIANT MOST FEW [plain]      prints a report as JSON

``VARIANT`` is ``default``, ``settle`` (spans for settlements) or ``names`` (another destination for each message).
A library that publishes and delivers at least 5,000 messages a second handles ``MOST`` of them, others ``FEW``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from integration.torture import children
from integration.torture.lines import LIBRARIES, Line, instrumented, line_class
from integration.torture.report import Row
from queueprop import Settings

FAST = 5_000
"""Messages a second, each published and delivered, from which on a library gets the larger number."""

GROWTH = 2 * 1024 * 1024
"""Bytes that a process may grow by after the first tenth."""

VARIANTS = ("default", "settle", "names")
SETTLING = ("core", "pika", "aio-pika", "aiokafka", "kombu")
"""Whose deliveries are acknowledged one by one by a call that these stand-ins have."""

SIZES = {"default": (1_000_000, 50_000), "settle": (100_000, 20_000), "names": (100_000, 20_000)}
SHORT = (2_000, 1_000)


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    given = [
        (library, variant, *(SHORT if is_short else SIZES[variant]))
        for variant in VARIANTS
        for library in LIBRARIES
        if variant != "settle" or library in SETTLING
    ]
    if is_short:
        given = [one for one in given if one[1] == "default"]
    for (library, variant, *_), report in children.run_all("soak", given, 3000, say):
        what = {"default": "default settings", "settle": "settle spans", "names": "a name for each"}[
            str(variant)
        ]
        if isinstance(report, children.ChildFailed):
            yield Row("soak", str(library), what, False, {"failed": report})
            continue
        if not is_short and report["grown KiB"] * 1024 >= GROWTH:
            report["grown plain KiB"] = _plain_growth(library, variant, report["messages"])
        yield Row("soak", str(library), what, _holds(report, is_short), report)


def _plain_growth(library: object, variant: object, messages: int) -> int:
    """What the library alone keeps of so many messages: librdkafka has each topic that it was ever told."""
    try:
        report = children.run("soak", library, variant, messages, messages, "plain", timeout=3000)
    except children.ChildFailed:
        return 0
    return int(report["grown KiB"])


def _holds(report: children.Report, is_short: bool) -> bool:
    """Memory of a short run says nothing: what grows once, to some size, is larger than what so few messages leave."""
    return bool(
        report["CONSUMER spans"] == report["messages"]
        and report["PRODUCER spans"] == report["messages"]
        and report["settle spans"] in (0, report["messages"])
        and report["threads left"] == report["descriptors left"] == report["contexts left"] == 0
        and (is_short or (report["grown KiB"] - report.get("grown plain KiB", 0)) * 1024 < GROWTH)
    )


class Counting(SpanProcessor):
    """Counts what ended, and keeps nothing of it."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    def on_start(self, span: Any, parent_context: Context | None = None) -> None: ...

    def on_end(self, span: ReadableSpan) -> None:
        self.ended[span.kind.name] += 1


def soaked(library: str, variant: str, most: int, few: int, is_plain: bool = False) -> children.Report:
    counting = Counting()
    provider = TracerProvider()
    provider.add_span_processor(counting)
    trace.set_tracer_provider(provider)
    settings = None if is_plain else Settings(settle_spans=True) if variant == "settle" else Settings()
    with instrumented(library, settings):
        line = line_class(library)(settings, settle=variant == "settle")
        number = _numbered(line, variant, most, few)
        counting.ended.clear()
        return _measured(line, variant, number, counting)


def _numbered(line: Line, variant: str, most: int, few: int) -> int:
    """By how many messages it handles in a second of CPU time, once it is warm: the machine may be busy otherwise."""
    _handle(line, variant, range(-1500, -1000))
    began = time.process_time()
    _handle(line, variant, range(-1000, 0))
    return most if 1000 / (time.process_time() - began) >= FAST else few


def _measured(line: Line, variant: str, number: int, counting: Counting) -> children.Report:
    # What a library keeps of its own start is not ours: a tenth of the messages comes first.
    began, tenth = time.process_time(), number // 10
    _handle(line, variant, range(tenth))
    before = _resident(), threading.active_count(), _descriptors()
    context = get_current()
    _handle(line, variant, range(tenth, number))
    seconds = time.process_time() - began
    after = _resident(), threading.active_count(), _descriptors()
    is_left = get_current() != context or trace.get_current_span().get_span_context().is_valid
    line.close()
    settled = counting.ended["CLIENT"]
    return {
        "messages": number,
        "a second of CPU": round(number / seconds),
        "PRODUCER spans": counting.ended["PRODUCER"],
        "CONSUMER spans": counting.ended["CONSUMER"],
        "settle spans": settled,
        "MiB at a tenth": round(before[0] / 1024 / 1024, 1),
        "grown KiB": round((after[0] - before[0]) / 1024),
        "threads left": after[1] - before[1],
        "descriptors left": after[2] - before[2],
        "contexts left": int(is_left),
    }


def _handle(line: Line, variant: str, numbers: range) -> None:
    """Each message is published, and what went out is delivered."""
    handled = 0

    def handler(body: str) -> None:
        nonlocal handled
        handled += 1

    for number in numbers:
        name = f"orders-{number}" if variant == "names" else "orders"
        headers = line.publish(_OWN[line.carrier](), "hello", name)
        line.deliver(headers, handler, "hello", name)
    if handled != len(numbers):
        raise AssertionError(f"{handled} of {len(numbers)} handled")


_OWN: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"tenant": "acme"},
    "pairs": lambda: [("tenant", b"acme")],
}


def _resident() -> int:
    """Bytes of memory that the process has, once what it does not need is given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    print(
        json.dumps(soaked(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "plain" in sys.argv))
    )

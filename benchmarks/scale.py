"""What a message costs as there are more of them: ``python -m benchmarks.scale MESSAGES`` prints series as JSON.

A send and a process of the core each, recorded, by global providers: of 1 to MESSAGES messages, on 1 to 64
destinations, in batches of 1 to 10,000, in 1 to 16 threads at once. Figures are microseconds of CPU a message.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial

import queueprop
from benchmarks import measure
from benchmarks.core import ORDERS, Mode, nothing

Series = dict[int, float]
"""Microseconds a message, by how many there are of what is varied."""

AT_LEAST = 4_000
"""Messages behind each figure: few are measured repeatedly."""

DESTINATIONS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (1, 10, 100, 1_000, 10_000)
THREADS = (1, 2, 4, 8, 16)
HEADERS = Mode("recorded").headers()


def report(messages: int) -> dict[str, Series]:
    Mode("recorded").set_up()
    found: dict[str, Series] = {}
    for operation, one in {"send": send_one, "process": process_one}.items():
        varied: dict[str, Series] = {
            "messages": series(_decades(messages), _always(each(one))),
            "destinations": series(DESTINATIONS, _DESTINATIONS[operation], AT_LEAST),
            "messages in a batch": series(BATCHES, _always(_BATCHES[operation])),
            "threads": series(THREADS, partial(in_threads, one), AT_LEAST),
        }
        found.update({f"{operation}: {name}": figures for name, figures in varied.items()})
    return found


def series(sizes: Iterable[int], batch: Callable[[int], measure.Batch], messages: int = 0) -> Series:
    """One figure a size: of so many messages at a time, or of as many as the size says."""
    found = {}
    for size in sizes:
        made, count = batch(size), messages or size
        measure.cpu_time(made, min(count, 1000))
        repeated = max(3, min(1000, AT_LEAST // count)) if count <= AT_LEAST else 1
        found[size] = statistics.median(measure.cpu_time(made, count) for _ in range(repeated))
    return found


def _always(batch: measure.Batch) -> Callable[[int], measure.Batch]:
    return lambda size: batch


def _decades(last: int) -> list[int]:
    found = [1]
    while found[-1] * 10 <= last:
        found.append(found[-1] * 10)
    return found


# One message


def send_one() -> None:
    with queueprop.send_span(ORDERS, headers={}):
        nothing()


def process_one() -> None:
    with queueprop.process_span(ORDERS, headers=HEADERS):
        nothing()


# Many


def each(one: Callable[[], None]) -> measure.Batch:
    """One after the other."""

    def prepare(count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                one()

        return run

    return prepare


def in_threads(one: Callable[[], None], threads: int) -> measure.Batch:
    """Shared out among threads that run at once."""

    def prepare(count: int) -> Callable[[], None]:
        run = each(one)(count // threads)

        def run_all() -> None:
            started = [threading.Thread(target=run) for _ in range(threads)]
            for thread in started:
                thread.start()
            for thread in started:
                thread.join()

        return run_all

    return prepare


def _destinations(count: int) -> list[queueprop.Destination]:
    return [queueprop.Destination(system="rabbitmq", name=f"orders-{number}") for number in range(count)]


def to_destinations(number: int) -> measure.Batch:
    destinations = _destinations(number)

    def prepare(count: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(count):
                with queueprop.send_span(destinations[turn % number], headers={}):
                    nothing()

        return run

    return prepare


def from_destinations(number: int) -> measure.Batch:
    destinations = _destinations(number)

    def prepare(count: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(count):
                with queueprop.process_span(destinations[turn % number], headers=HEADERS):
                    nothing()

        return run

    return prepare


def sent_at_once(count: int) -> Callable[[], None]:
    """One call with so many messages, each with a create span of its own."""
    messages = [queueprop.Message({}) for _ in range(count)]

    def run() -> None:
        with queueprop.send_span(ORDERS, messages):
            nothing()

    return run


def processed_at_once(count: int) -> Callable[[], None]:
    """One span for so many messages, with a link for each."""
    messages = [queueprop.Message(HEADERS) for _ in range(count)]

    def run() -> None:
        with queueprop.process_span(ORDERS, messages):
            nothing()

    return run


_DESTINATIONS = {"send": to_destinations, "process": from_destinations}
_BATCHES = {"send": sent_at_once, "process": processed_at_once}


if __name__ == "__main__":
    print(json.dumps(report(int(sys.argv[1]))))

"""A hostile SDK and hostile user code around each library: as many messages come through as without queueprop.

    python -m integration.torture.hostile LIBRARY MESSAGES BEHAVIOURS      prints a report as JSON

Each place of ``hostilities`` does each thing there, while messages are published and delivered. Where it blocks, four
threads do that at once: each call blocks its own thread, none waits for another's, and there are no more calls than
spans and messages.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context

from integration.torture import children, hostile_live
from integration.torture.hostilities import (
    BEHAVIOURS,
    BLOCK,
    CALLED_ONCE,
    HOSTILITIES,
    SIDE_BY_SIDE,
    Behaviour,
)
from integration.torture.lines import LIBRARIES, instrumented, line_class
from integration.torture.report import Row
from queueprop import Settings

THREADS = 4

LONELY = 2.0
"""Seconds for which a thread that is blocked waits for another to be so, too."""

OF_SHORT = ("pika", "rq", "aiokafka", "celery")
BEHAVIOURS_OF_SHORT = ("raises", "gives None", "blocks")


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    behaviours = BEHAVIOURS_OF_SHORT if is_short else tuple(BEHAVIOURS)
    libraries = OF_SHORT if is_short else LIBRARIES
    given = [(library, 3 if is_short else 10, ",".join(behaviours)) for library in libraries]
    for (library, *_), report in children.run_all("hostile", given, 1200, say):
        if isinstance(report, children.ChildFailed):
            yield Row("hostile", str(library), "stand-in", False, {"failed": report})
            continue
        differing = report.pop("differing")
        for text in differing:
            say(f"{library}: {text}")
        yield Row("hostile", str(library), "stand-in", not differing, {**report, "differing": len(differing)})
    yield from hostile_live.run(is_short, say)


class Tally:
    """What became of the messages."""

    def __init__(self) -> None:
        self.became: Counter[str] = Counter()

    def message(self, line: Any, number: int) -> None:
        """Publishes one, and delivers what a producer elsewhere has sent; every third handler raises."""

        def handler(body: str) -> None:
            self.became["handled"] += 1
            if number % 3 == 2:
                raise _Theirs(body)

        headers: Any = {"tenant": "acme"} if line.carrier == "dict" else [("tenant", b"acme")]
        self._do("published", lambda: line.publish(headers, "hello"))
        arrived: Any = {"tenant": "acme", "traceparent": TRACEPARENT, "baggage": "k=v"}
        if line.carrier != "dict":
            arrived = [(name, value.encode()) for name, value in arrived.items()]
        self._do("delivered", lambda: line.deliver(arrived, handler, "hello"))

    def _do(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self.became[f"{what}: {type(error).__qualname__}"] += 1
        else:
            self.became[what] += 1


class _Theirs(Exception):
    """What a handler raises."""


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def tried(library: str, messages: int, behaviours: list[str]) -> children.Report:
    logging.disable(logging.NOTSET)
    logging.raiseExceptions = False  # as programs in production have it
    plain = _tallied(library, None, messages)
    of_threads = _tallied_in_threads(library, None, 2)
    report: dict[str, Any] = {
        "plain": "",
        "hostilities": 0,
        f"places called of {len(HOSTILITIES)}": 0,
        "calls": 0,
    }
    differing: list[str] = []
    for name, hostility in HOSTILITIES.items():
        before = report["calls"]
        for behaves in behaviours:
            meets = behaves == "blocks" and name in SIDE_BY_SIDE
            behaviour = meeting() if meets else BEHAVIOURS[behaves]()
            with _restored(), hostility(behaviour, {}) as settings:
                if behaves == "blocks":
                    found = _tallied_in_threads(library, settings, 2)
                    wrong = [] if found == of_threads else [f"{dict(found)} instead of {dict(of_threads)}"]
                    wrong += _held_up(name, behaviour)
                else:
                    # Libraries log, too: what a broken stream does to a plain run it may do.
                    wanted = _tallied(library, None, messages) if name == "stderr" else plain
                    found = _tallied(library, settings, messages)
                    wrong = [] if found == wanted else [f"{dict(found)} instead of {dict(wanted)}"]
            report["hostilities"] += 1
            report["calls"] += behaviour.calls
            differing += [f"{name} {behaves}: {it}" for it in wrong]
        report[f"places called of {len(HOSTILITIES)}"] += report["calls"] > before
    report["plain"] = ", ".join(f"{what} {times}" for what, times in plain.items())
    return {**report, "differing": differing}


def meeting() -> Behaviour:
    """Blocks; and as long as no two threads were there at once, until another one is: that may have to wait for a
    processor first, and would come when the moment is over.
    """

    def block() -> None:
        time.sleep(BLOCK)
        end = time.monotonic() + LONELY
        while behaviour.at_once < 2 and time.monotonic() < end:
            time.sleep(BLOCK / 10)

    behaviour = Behaviour("blocks", block, passes_on=True)
    return behaviour


def _held_up(name: str, behaviour: Behaviour) -> list[str]:
    """Whether ours has added a lock around what blocks, or calls of it."""
    messages = THREADS * 2
    wrong = []
    if name in SIDE_BY_SIDE and behaviour.calls >= THREADS and behaviour.at_once < 2:
        wrong.append(f"{behaviour.calls} calls, one after another")
    # One publish, one delivery and a settlement; Celery's stand-in has published one in each thread before.
    most = THREADS + messages * (1 if name in ("publish_hook", "consume_hook") else 3)
    if name in CALLED_ONCE and behaviour.calls > most:
        wrong.append(f"{behaviour.calls} calls for {messages} messages")
    return wrong


def _tallied(library: str, settings: Settings | None, messages: int) -> Counter[str]:
    tally = Tally()
    with instrumented(library, settings):
        line = line_class(library)(settings, settle=True)
        for number in range(messages):
            tally.message(line, number)
        line.close()
    return tally.became


def _tallied_in_threads(library: str, settings: Settings | None, each: int) -> Counter[str]:
    tally = Tally()

    def work() -> None:
        line = line_class(library)(settings, settle=True)
        for number in range(each):
            tally.message(line, number)
        line.close()

    with instrumented(library, settings):
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return tally.became


@contextmanager
def _restored() -> Iterator[None]:
    """A hook may leave a context behind."""
    before = context.get_current()
    try:
        yield
    finally:
        context.attach(before)


if __name__ == "__main__":
    print(json.dumps(tried(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","))))

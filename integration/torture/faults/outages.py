"""Brokers that go away under load, connections that are cut, and RabbitMQ's memory alarm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from integration.torture.report import Row

from .comparing import EVERYTHING, SETTLED, compared
from .proxy import Proxy, cut_connections
from .trial import NeverMet, Trial

GONE = 1.0
"""Seconds that a broker is away, at least."""

_WARM = 0.1
"""Of the messages, with which the worker is waited for."""

IN_HAND = 2 * 20
"""Messages that a worker has at most, over both outages."""


def broker_goes_away(library: str, broker: Any, messages: int) -> Row:
    """It is killed under load and started, and later stopped in order and started. The load is there when the worker
    is: else one that starts late has all that was published in hand, and gets all of it again.
    """

    def break_it(trial: Trial) -> None:
        trial.wait_until_delivered(_WARM)
        trial.go_on()
        for share, end in ((0.3, broker.kill), (0.6, broker.stop)):
            trial.wait_until_published(share)
            trial.wait_until_delivered(share / 2)
            end()
            time.sleep(GONE)
            broker.start()

    # RQ's intermediate queue, and Dramatiq's set of what a worker that lives has fetched: an answer that is lost.
    may_hang = library == "rq" or (library == "dramatiq" and broker.url.startswith("redis"))
    return compared(
        library,
        "broker killed, later stopped, and started again",
        broker.url,
        break_it,
        equal=("published", "left") if may_hang else SETTLED,
        most_redelivered=IN_HAND + 2,
        messages=messages,
        may_hang=may_hang,
        may_lose=2 if library in ("kombu", "celery") and broker.url.startswith("redis") else 0,
        again=0,
        hold=int(messages * _WARM),
    )


def connection_is_cut(library: str, broker: Any, messages: int) -> Row:
    """In the middle of a publish, before its confirm, and in the middle of a publish again."""
    proxy = Proxy(broker.url)

    def break_it(trial: Trial) -> None:
        for share, cut in ((0.2, proxy.cut_upstream), (0.5, proxy.cut_downstream), (0.8, proxy.cut_upstream)):
            trial.wait_until_published(share)
            cuts = proxy.cuts
            cut()
            trial.wait(lambda cuts=cuts: proxy.cuts > cuts, "a cut")  # type: ignore[misc]

    try:
        return compared(
            library,
            "connection cut in the middle of a publish with confirms",
            broker.url,
            break_it,
            equal=SETTLED,
            most_redelivered=3,  # a retry of the library's own after each cut
            messages=messages,
            again=0,
            publish_to=proxy.url,
        )
    finally:
        proxy.close()


def clients_are_cut(library: str, broker: Any, messages: int) -> Row:
    """Every connection of the producer's and the worker's, twice."""

    def break_it(trial: Trial) -> None:
        for share in (0.3, 0.6):
            trial.wait_until_published(share)
            trial.wait_until_delivered(share / 2)
            if cut_connections((trial.producer_pid, *trial.worker_pids), broker.url) < 2:
                raise NeverMet("a connection of each, to be cut")

    return compared(
        library,
        "every connection cut, twice",
        broker.url,
        break_it,
        equal=SETTLED,
        most_redelivered=IN_HAND,
        messages=messages,
        again=0,
    )


def memory_alarm(library: str, broker: Any, messages: int) -> Row:
    """RabbitMQ blocks who publishes, until there is memory again."""

    def break_it(trial: Trial) -> None:
        trial.wait(lambda: bool(trial.told("holds")), "a third of the messages")
        with _alarm(broker):
            trial.go_on()
            _await_standstill(trial)

    return compared(
        library,
        "memory alarm",
        broker.url,
        break_it,
        equal=EVERYTHING,
        messages=messages,
        again=0,
        hold=messages // 3,
    )


@contextmanager
def _alarm(broker: Any) -> Iterator[None]:
    broker.control("set_vm_memory_high_watermark", "0.0001")
    try:
        yield
    finally:
        broker.control("set_vm_memory_high_watermark", "0.4")


def _await_standstill(trial: Trial) -> None:
    """Nothing is published for a second; so there is an alarm."""
    seen: list[tuple[float, int]] = []

    def stands_still() -> bool:
        number, now = len(trial.told("published")), time.monotonic()
        if not seen or seen[-1][1] != number:
            seen.append((now, number))
        return now - seen[-1][0] > 1.0

    trial.wait(stands_still, "publishers to be blocked")
    if len(trial.told("published")) == trial.messages:
        raise NeverMet("the alarm blocked nobody")

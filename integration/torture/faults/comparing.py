"""A fault, once on the plain program and once on the instrumented one, and the row that comes of both."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from integration.torture.report import Row

from .trial import NeverMet, Outcome, Trial

PART = "faults"
BY_SIGNAL = frozenset({"rq", "dramatiq", "celery", "faststream", "bullmq"})
"""Frameworks, whose workers end in order by SIGTERM. The other programs look whether they are to end."""

EVERYTHING = ("published", "failed", "delivered", "redelivered", "left", "unacked", "dead", "restarts")
SETTLED = ("published", "left", "unacked", "dead")
"""Where who was in what step is a race of nature: what becomes of the messages is none."""


def compared(
    library: str,
    what: str,
    url: str,
    break_it: Callable[[Trial], Any],
    *,
    equal: Collection[str] = EVERYTHING,
    most_redelivered: int | None = None,
    may_lose: int = 0,
    label: str | None = None,
    **options: Any,
) -> Row:
    """``equal`` are the counts that both runs must share. ``most_redelivered`` is how many more deliveries there may be
    than in the plain run, since as many are in hand at most, and how many of them a broker may still hold, or a worker
    not have begun; what a failed publish had sent comes besides.
    ``may_lose`` is what the library itself may lose.
    """
    outcomes: list[Outcome] = []
    label = label or f"{library}, {url.partition(':')[0]}"
    for is_traced in (False, True):
        trial = Trial(
            library, url, is_traced, ends_by_signal=library in BY_SIGNAL, may_lose=may_lose, **options
        )
        try:
            with trial.running():
                break_it(trial)
            outcomes.append(trial.outcome())
        except NeverMet as error:
            return Row(PART, label, what, False, {"traced" if is_traced else "plain": error})
        finally:
            with suppress(OSError):
                trial.close()
    plain, traced = outcomes
    return row(label, what, plain, traced, equal, most_redelivered, may_lose)


def row(
    label: str,
    what: str,
    plain: Outcome,
    traced: Outcome,
    equal: Collection[str],
    most: int | None = None,
    may_lose: int = 0,
) -> Row:
    holds = all(getattr(plain, name) == getattr(traced, name) for name in equal)
    holds = holds and max(plain.lost, traced.lost) <= may_lose
    if most is not None:
        holds = holds and traced.redelivered <= plain.redelivered + most + traced.failed
        held = max(traced.unacked - plain.unacked, traced.dead - plain.dead, traced.unhandled)
        holds = holds and held <= most
    holds = holds and traced.producers == traced.attempts
    holds = holds and not (traced.without_span or traced.orphans or traced.doubles)
    names = ("published", "failed", "delivered", "redelivered", "left", "unacked", "dead", "lost", "restarts")
    counts: dict[str, object] = {}
    for name in names:
        of_plain, of_traced = getattr(plain, name), getattr(traced, name)
        if of_plain or of_traced or name in ("lost", "redelivered"):
            counts[name] = f"{of_plain}" if of_plain == of_traced else f"{of_plain} plain, {of_traced} traced"
    counts["spans"] = f"{traced.producers} of {traced.attempts} PRODUCER, {traced.consumers} CONSUMER"
    counts["in killed batches"] = traced.in_killed_batches
    if traced.cut_off:
        counts["cut off"] = traced.cut_off
    if traced.unhandled:
        counts["not begun, as the broker had gone"] = traced.unhandled
    counts["missing"] = traced.without_span
    counts["orphans"] = traced.orphans
    counts["doubles"] = traced.doubles
    return Row(PART, label, what, holds, counts)


def nothing(trial: Trial) -> None:
    """What befalls it stands in its messages."""

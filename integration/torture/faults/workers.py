"""Workers that are killed, terminated and left with messages in flight; jobs that fork and close descriptors."""

from __future__ import annotations

from collections.abc import Mapping

from integration.torture.programs.ledger import AT_ONCE
from integration.torture.programs.rq import POOL
from integration.torture.report import Row

from .comparing import EVERYTHING, SETTLED, compared, nothing

_CLIENT = {10: "kill", 20: "terminate", 30: "exit", 40: "fork", 50: "fork and close", 60: "kill"}
"""Of programs that are one process with a loop: a child that left it by SystemExit would go on with its connection."""

_DRAMATIQ = {
    10: "kill",
    20: "terminate",
    30: "exit",
    40: "fork",
    50: "fork and close",
    60: "terminate parent",
}
_CELERY = {**_DRAMATIQ, 70: "kill parent"}
_RQ = {
    10: "kill",
    20: "terminate parent",
    30: "exit",
    40: "fork",
    45: "fork and leave",
    50: "fork and close",
    55: "fork, close and leave",
    60: "close",
    70: "kill parent",
}

_REDELIVERING = {"kill", "kill parent", "terminate", "exit"}


def broken(
    library: str, url: str, messages: int, *, pool: bool = False, fates: Mapping[int, str] | None = None
) -> Row:
    """Each thing befalls one process, at one message, the first time that it is handled."""
    given = fates or {"dramatiq": _DRAMATIQ, "celery": _CELERY, "rq": _RQ}.get(library, _CLIENT)
    given = {number: fate for number, fate in given.items() if number < messages}
    environment = {AT_ONCE: "1"} | ({POOL: "1"} if pool else {})
    return compared(
        library,
        "at work: " + ", ".join(dict.fromkeys(given.values())),
        url,
        nothing,
        label=f"{library}, {url.partition(':')[0]}" + (", a pool" if pool else ""),
        equal=SETTLED if library in _RACING else EVERYTHING,
        most_redelivered=2 * len(given) if library in _RACING else None,
        messages=messages,
        fates=given,
        environment=environment,
        again=_again(library, given),
    )


_RACING = frozenset({"celery", "dramatiq"})
"""Several processes: which of them has which message when one is killed, and the others end, is chance."""


def _again(library: str, fates: Mapping[int, str]) -> int:
    """How many deliveries more there are: RQ gives up a job whose process is gone."""
    if library == "rq":
        return 0
    gone = _REDELIVERING - (
        {"terminate"} if library in ("dramatiq", "celery", "bullmq", "faststream") else set()
    )
    return sum(fate in gone for fate in fates.values())

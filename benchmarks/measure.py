"""Timing: CPU time a message, of candidates that alternate, in child processes that alternate as well."""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

CALLS = 200
"""Messages of one sample: few, so that candidates alternate often."""

RETAINED_OVER = 10_000
"""Messages after which what is still there is counted."""

Batch = Callable[[int], Callable[[], object]]
"""Prepares a number of messages, and gives what handles them: only the latter is timed."""

T = TypeVar("T")


def cpu_time(batch: Batch, count: int = CALLS) -> float:
    """Microseconds of CPU a message, of all threads of the process."""
    run = batch(count)
    started = time.process_time_ns()
    run()
    return (time.process_time_ns() - started) / count / 1000


def samples(candidates: Mapping[str, Batch], rounds: int) -> dict[str, list[float]]:
    """A sample a round of each candidate, in random order within the round: a slow moment hits any of them."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for batch in candidates.values():
        cpu_time(batch)  # caches fill, the interpreter specializes
    for _ in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            taken[name].append(cpu_time(candidates[name]))
    return taken


def medians(candidates: Mapping[str, Batch], rounds: int) -> dict[str, float]:
    """Microseconds of CPU a message, the median over the rounds."""
    return {name: statistics.median(taken) for name, taken in samples(candidates, rounds).items()}


def retained(batch: Batch) -> int:
    """Objects that the garbage collector knows after 10,000 messages more than before them."""
    counts = []
    for messages in (1000, 1000, RETAINED_OVER):  # a collection settles what is made once: two, to begin with
        for _ in range(messages // CALLS):
            batch(CALLS)()
        counts.append(_objects())
    return counts[-1] - counts[-2]


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())


# Child processes: what is global (providers, patches) is set once in each


def in_children(
    module: str, modes: Sequence[tuple[str, ...]], rounds: int, processes: int, say: Callable[[str], None]
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """What ``python -m module mode... rounds`` reports as JSON, several times for each mode, in random order.

    Raises SystemExit when a child fails.
    """
    reports: dict[tuple[str, ...], list[dict[str, Any]]] = {mode: [] for mode in modes}
    for number in range(1, processes + 1):
        for mode in random.sample(list(modes), len(modes)):
            say(f"{', '.join(mode)} ({number} of {processes})")
            reports[mode].append(run_child(module, *mode, str(rounds)))
    return reports


def run_child(module: str, *arguments: str) -> dict[str, Any]:
    """Raises SystemExit, with what it said, when the child fails."""
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{child.stderr}")
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return report


def _environment() -> dict[str, str]:
    """That of this process, without what configures OpenTelemetry or queueprop: the defaults are measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUEUEPROP_"))}


def middle(reports: Sequence[Mapping[str, Any]], *path: str) -> float:
    """The median over the processes of the number that their reports have at ``path``."""
    return statistics.median(_at(report, path) for report in reports)


def _at(report: Any, path: Sequence[str]) -> float:
    for name in path:
        report = report[name]
    return float(report)

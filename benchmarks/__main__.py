"""What a message costs: of the core, and of each library over a stub.

    make bench      or: python -m benchmarks [--rounds N] [--processes N] [--only core|adapters]
                        [--json FILE] [--svg FILE]
    python -m benchmarks --scale [--messages N]
    python -m benchmarks --profile send|process

A figure is the CPU time of a message in microseconds: the median over rounds within a process, and then over several
processes. Candidates of a process alternate in random order, and so do the processes, so that a slow moment of the
machine hits any of them. After the timing every candidate runs once more, and its spans are checked: what lacks
anything fails.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import adapters, core, measure, report
from benchmarks.stubs import LIBRARIES

FOLDER = Path(__file__).resolve().parent
Rows = list[dict[str, Any]]


def main() -> None:
    given = _arguments()
    console = Console()
    if given.profile:
        profile(given.profile)
    elif given.scale:
        measure_scale(given, console)
    else:
        measure_messages(given, console)


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description="What a message costs.")
    arguments.add_argument("--rounds", type=int, default=20, help="in each process")
    arguments.add_argument("--processes", type=int, default=3, help="for each mode")
    arguments.add_argument("--only", choices=("core", "adapters"))
    arguments.add_argument("--json", type=Path, help="default: benchmarks/results.json, or scale.json")
    arguments.add_argument("--svg", type=Path, help="default: benchmarks/results.svg, or scale.svg")
    arguments.add_argument("--profile", choices=core.OPERATIONS, help="of the core")
    arguments.add_argument("--scale", action="store_true", help="as there are more messages")
    arguments.add_argument("--messages", type=int, default=1_000_000, help="the most that --scale goes to")
    return arguments.parse_args()


def measure_messages(given: argparse.Namespace, console: Console) -> None:
    """Files are written by default where everything was measured, and else where they are asked for."""
    found: dict[str, Any] = {
        "conditions": report.conditions(),
        "rounds": given.rounds,
        "processes": given.processes,
    }
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)

        if given.only != "adapters":
            modes = [(mode,) for mode in core.MODES]
            found["core"] = core_rows(
                measure.in_children("benchmarks.core", modes, given.rounds, given.processes, say)
            )
        if given.only != "core":
            ways = [(library, way) for library in LIBRARIES for way in adapters.WAYS]
            found["adapters"] = adapter_rows(
                measure.in_children("benchmarks.adapters", ways, given.rounds, given.processes, say)
            )
    report.print_tables(found, console)
    if path := _path(given, given.json, "results.json"):
        report.write_json(found, path)
    if path := _path(given, given.svg, "results.svg"):
        report.draw(found, path)


def _path(given: argparse.Namespace, asked: Path | None, default: str) -> Path | None:
    return asked or (None if given.only else FOLDER / default)


Reports = dict[tuple[str, ...], list[dict[str, Any]]]


def core_rows(reports: Reports) -> Rows:
    """Without an SDK there is no SDK span: the bare one is that of the mode "recorded"."""
    rows = []
    for operation in core.OPERATIONS:
        for mode in core.MODES:
            of_bare = reports["recorded" if mode == "no SDK" else mode,]
            rows.append(
                {
                    "operation": operation,
                    "mode": mode,
                    core.BARE: measure.middle(of_bare, operation, core.BARE),
                    core.BY_HAND: measure.middle(reports[mode,], operation, core.BY_HAND),
                    core.OURS: measure.middle(reports[mode,], operation, core.OURS),
                    "retained": _retained(reports[mode,], operation),
                }
            )
    return rows


def adapter_rows(reports: Reports) -> Rows:
    rows = []
    for library in LIBRARIES:
        alone, ours, other = (reports[library, way] for way in adapters.WAYS)
        cannot = next((one["cannot"] for one in other if "cannot" in one), None)
        for operation in core.OPERATIONS:
            rows.append(
                {
                    "library": library,
                    "operation": operation,
                    "alone": measure.middle(alone, operation, "microseconds"),
                    "queueprop": measure.middle(ours, operation, "microseconds"),
                    "other": None if cannot else measure.middle(other, operation, "microseconds"),
                    "retained": _retained(ours, operation),
                    "cut": alone[0]["cut"],
                    "remarks": cannot or "; ".join(other[0][operation]["lacks"]),
                }
            )
    return rows


def _retained(reports: Sequence[dict[str, Any]], operation: str) -> int:
    """Objects after 10,000 messages, of the process where they were most; fewer than before is none."""
    return max(0, *(int(one[operation]["retained"]) for one in reports))


def measure_scale(given: argparse.Namespace, console: Console) -> None:
    with console.status("as there are more messages"):
        series = measure.run_child("benchmarks.scale", str(given.messages))
    found = {"conditions": report.conditions(), "series": series}
    report.print_scale(found, console)
    report.write_json(found, given.json or FOLDER / "scale.json")
    report.draw_scale(found, given.svg or FOLDER / "scale.svg")


def profile(operation: str) -> None:
    """queueprop's send or process, recorded, by cProfile."""
    mode = core.Mode("recorded")
    mode.set_up()
    run = core.batch_of(mode.candidates(operation)[core.OURS], operation, mode)(20_000)
    profiler = cProfile.Profile()
    profiler.runcall(run)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()

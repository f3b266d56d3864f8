"""What a message costs: of the core, of each library over a stub, and on real brokers.

    make bench          or: python -m benchmarks [--rounds N] [--processes N] [--only core|adapters|imports]
                            [--json FILE] [--svg FILE]
    make bench-live     or: python -m benchmarks --live [--rounds N] [--processes N] [--json FILE]
    python -m benchmarks --scale [--messages N]
    make bench-where    or: python -m benchmarks --where [--json FILE]
    make bench-parts    or: python -m benchmarks --parts [--rounds N] [--processes N] [--json FILE]
    python -m benchmarks --profile send|process

A figure is the CPU time of a message in microseconds: the median over rounds within a process, and then over several
processes. Candidates of a process alternate in random order, and so do the processes, so that a slow moment of the
machine hits any of them. After the timing every candidate runs once more, and its spans are checked: what lacks
anything fails.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import adapters, core, imports, measure, parts, report
from benchmarks.live import URL
from benchmarks.stubs import BY_HAND, LIBRARIES
from integration.brokers import KAFKA, RABBITMQ, find

FOLDER = Path(__file__).resolve().parent
Rows = list[dict[str, Any]]


def main() -> None:
    given = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 180)  # a file has no edge to fold at
    if given.profile:
        profile(given.profile)
    elif given.where:
        measure_where(given, console)
    elif given.parts:
        measure_parts(given, console)
    elif given.scale:
        measure_scale(given, console)
    elif given.live:
        measure_live(given, console)
    else:
        measure_messages(given, console)


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description="What a message costs.")
    arguments.add_argument("--rounds", type=int, default=20, help="in each process")
    arguments.add_argument("--processes", type=int, default=3, help="for each mode")
    arguments.add_argument("--only", choices=("core", "adapters", "imports"))
    arguments.add_argument(
        "--json", type=Path, help="default: benchmarks/results.json, live.json or scale.json"
    )
    arguments.add_argument("--svg", type=Path, help="default: benchmarks/results.svg, or scale.svg")
    arguments.add_argument("--profile", choices=core.OPERATIONS, help="of the core")
    arguments.add_argument("--live", action="store_true", help="on real brokers, those of the tests")
    arguments.add_argument("--scale", action="store_true", help="as there are more messages")
    arguments.add_argument("--where", action="store_true", help="whose instructions, of each library")
    arguments.add_argument("--parts", action="store_true", help="of the core, beside what nothing is below")
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

        if given.only in (None, "core"):
            modes = [(mode,) for mode in core.MODES]
            found["core"] = core_rows(
                measure.in_children("benchmarks.core", modes, given.rounds, given.processes, say)
            )
        if given.only in (None, "adapters"):
            ways = [(library, way, "stubs") for library in LIBRARIES for way in adapters.WAYS]
            ways += [(library, core.BY_HAND, "stubs") for library in BY_HAND]
            found["adapters"] = adapter_rows(
                LIBRARIES,
                measure.in_children("benchmarks.adapters", ways, given.rounds, given.processes, say),
            )
        if given.only in (None, "imports"):
            say("imports")
            found["imports"] = imports.measured(given.rounds)
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


def adapter_rows(libraries: Sequence[str], reports: Reports) -> Rows:
    of = {(library, way): found for (library, way, _), found in reports.items()}
    rows = []
    for library in libraries:
        alone, ours, other = (of[library, way] for way in adapters.WAYS)
        by_hand = of.get((library, core.BY_HAND))
        cannot = next((one["cannot"] for one in other if "cannot" in one), None)
        for operation in core.OPERATIONS:
            rows.append(
                {
                    "library": library,
                    "operation": operation,
                    "alone": measure.middle(alone, operation, "microseconds"),
                    "queueprop": measure.middle(ours, operation, "microseconds"),
                    "other": None if cannot else measure.middle(other, operation, "microseconds"),
                    core.BY_HAND: measure.middle(by_hand, operation, "microseconds") if by_hand else None,
                    "retained": _retained(ours, operation),
                    "cut": alone[0]["cut"],
                    "remarks": cannot or "; ".join(other[0][operation]["lacks"]),
                }
            )
    return rows


def _retained(reports: Sequence[dict[str, Any]], operation: str) -> int:
    """Objects after 10,000 messages, of the process where they were most; fewer than before is none, and so is what
    was not counted: a client's own buffers.
    """
    return max(0, *(int(one[operation].get("retained", 0)) for one in reports))


def measure_live(given: argparse.Namespace, console: Console) -> None:
    """One library after the other, on a broker of the tests' own that is started for it."""
    found: dict[str, Any] = {
        "conditions": report.conditions(),
        "rounds": given.rounds,
        "processes": given.processes,
        "live": [],
        "brokers": [],
    }
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)

        for library, service in BROKERS.items():
            ways = [(library, way, "live") for way in adapters.WAYS]
            with ExitStack() as stack:
                broker = find(service)
                stack.callback(broker.close)
                broker.start()
                found["brokers"].append(f"{library}: {broker.what}")
                os.environ[URL] = broker.url
                reports = measure.in_children("benchmarks.adapters", ways, given.rounds, given.processes, say)
            found["live"] += adapter_rows([library], reports)
    report.print_tables(found, console)
    report.write_json(found, given.json or FOLDER / "live.json")


BROKERS = {"pika": RABBITMQ, "aio-pika": RABBITMQ, "aiokafka": KAFKA}


def measure_scale(given: argparse.Namespace, console: Console) -> None:
    with console.status("as there are more messages"):
        series = measure.run_child("benchmarks.scale", str(given.messages))
    found = {"conditions": report.conditions(), "series": series}
    report.print_scale(found, console)
    report.write_json(found, given.json or FOLDER / "scale.json")
    report.draw_scale(found, given.svg or FOLDER / "scale.svg")


def measure_where(given: argparse.Namespace, console: Console) -> None:
    """Counted once: it is the same each time."""
    rows: Rows = []
    with console.status("") as status:
        for library in BY_HAND:
            for way in (*adapters.WAYS, core.BY_HAND):
                status.update(f"{library}, {way}")
                counts = measure.run_child("benchmarks.where", library, way)
                rows += [
                    {"library": library, "way": way, "operation": of, **row} for of, row in counts.items()
                ]
    report.print_where(rows, console)
    report.write_json({"conditions": report.conditions(), "where": rows}, given.json or FOLDER / "where.json")


def measure_parts(given: argparse.Namespace, console: Console) -> None:
    with console.status("by its parts"):
        reports = measure.in_children(
            "benchmarks.parts",
            [(mode,) for mode in parts.MODES],
            given.rounds,
            given.processes,
            lambda _: None,
        )
    rows: Rows = []
    for operation in core.OPERATIONS:
        for mode in parts.MODES:
            of_mode = reports[mode,]
            took = {name: measure.middle(of_mode, operation, name) for name in of_mode[0][operation]}
            report.print_parts(f"{operation}, {mode}", took, console)
            rows.append({"operation": operation, "mode": mode, **took})
    report.write_json({"conditions": report.conditions(), "parts": rows}, given.json or FOLDER / "parts.json")


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

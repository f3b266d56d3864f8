"""The tables of what a message costs, in docs/cost.md: ``python -m benchmarks.readme`` writes them from the JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.core import BY_HAND, OURS
from benchmarks.parts import CURRENT, ON_THE_WIRE, SECOND_COPY
from benchmarks.where import ADAPTER, ATTRIBUTES, CONTRIB, CORE, KIT, PARTS, SDK

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "cost.md"
BEGIN, END = "<!-- {} -->\n", "<!-- end of {} -->\n"

Row = Mapping[str, Any]

NAMES = {
    "bullmq": "BullMQ",
    "celery": "Celery",
    "rq": "RQ",
    "dramatiq": "Dramatiq",
    "faststream": "FastStream",
}
ACTS = {"send": "publish", "process": "delivery"}


def main(arguments: Sequence[str]) -> int:
    """With ``--check`` nothing is written, and a page that has other figures is a failure."""
    text = PAGE.read_text(encoding="utf-8")
    found = measured()
    wanted = with_table(text, "benchmarks", table(found))
    wanted = with_table(wanted, "parts", parts_table(found["parts"]))
    wanted = with_table(wanted, "whose instructions", where_table(found["where"]))
    if "--check" not in arguments:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        print("docs/cost.md has other figures than benchmarks/*.json: run python -m benchmarks.readme")
        return 1
    return 0


def measured() -> dict[str, Any]:
    """What ``make bench``, ``make bench-live``, ``make bench-where`` and ``make bench-parts`` have written."""
    return {
        **_read("results.json"),
        "live": _read("live.json")["live"],
        "where": _read("where.json")["where"],
        "parts": _read("parts.json")["parts"],
    }


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def with_table(page: str, name: str, lines: str) -> str:
    """The page with that table. Raises ValueError where it has no place for it."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no lines {begin.strip()} and {end.strip()}")
    return before + begin + lines + end + after


def table(found: Mapping[str, Any]) -> str:
    live = {row["library"] for row in found["live"]}
    rows = [*found["live"], *(row for row in found["adapters"] if row["library"] not in live)]
    lines = [
        _cells(
            "microseconds of CPU a message", "the library itself", "queueprop adds", "OpenTelemetry's adds"
        ),
        "|---|---:|---:|---:|",
        *map(_line, rows),
        *_core_lines(found["core"]),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    alone, other = row["alone"], row["other"]
    beside = "" if other is None else f"{other - alone:.0f}"
    if beside and row["remarks"]:
        beside += f" ({row['remarks']})"
    return _cells(
        _name(row["library"], row["operation"]), f"{alone:.0f}", f"{row['queueprop'] - alone:.0f}", beside
    )


def _core_lines(rows: Sequence[Row]) -> Iterable[str]:
    """Of the library itself there is nothing here; beside ours stands what OpenTelemetry documents to do by hand."""
    for row in rows:
        if row["mode"] in ("recorded", "sampled out", "no SDK"):
            word = f"`{row['operation']}_span`"
            mode = "" if row["mode"] == "recorded" else f", {row['mode']}"
            yield _cells(f"{word}{mode}", "", f"{row['queueprop']:.0f}", f"{row['by hand']:.0f} (by hand)")


# By its parts


def parts_table(rows: Sequence[Row]) -> str:
    """Of the floors the last: all parts together."""
    lines = [
        _cells("microseconds of CPU a message", "the floor", SECOND_COPY, "queueprop", "by hand"),
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        floor = row[ON_THE_WIRE if row["operation"] == "send" else CURRENT]
        name = f"`{row['operation']}_span`" + ("" if row["mode"] == "recorded" else f", {row['mode']}")
        lines.append(
            _cells(name, *(f"{it:.1f}" for it in (floor, row[SECOND_COPY], row[OURS], row[BY_HAND])))
        )
    return "\n".join(lines) + "\n"


# Whose instructions


def where_table(rows: Sequence[Row]) -> str:
    of = {(row["library"], row["operation"], row["way"]): row for row in rows}
    lines = [
        _cells(
            "instructions added a message", "queueprop", *_HEADINGS, "OpenTelemetry's", *_HEADINGS, "by hand"
        ),
        "|---" + 9 * "|---:" + "|",
    ]
    for library, operation in dict.fromkeys((row["library"], row["operation"]) for row in rows):
        alone = of[library, operation, "alone"]
        ours, other = (_added(of[library, operation, way], alone) for way in ("queueprop", "other"))
        by_hand, *_ = _added(of[library, operation, BY_HAND], alone)
        lines.append(_cells(_name(library, operation), *ours, *other, by_hand))
    return "\n".join(lines) + "\n"


_HEADINGS = ("its own", "the SDK's", "attributes")


def _added(row: Row, alone: Row) -> tuple[str, ...]:
    own = sum(row[part] for part in (CONTRIB, CORE, KIT, ADAPTER))
    in_all = sum(row[part] - alone[part] for part in PARTS)
    return f"{in_all:,.0f}", f"{own:,.0f}", f"{row[SDK]:,.0f}", str(row[ATTRIBUTES])


def _name(library: str, operation: str) -> str:
    return f"{NAMES.get(library, library)}, {ACTS[operation]}"


def _cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

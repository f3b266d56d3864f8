"""What was measured: as tables in the terminal, as JSON, and as charts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import CleanStyle
from rich.console import Console
from rich.table import Table

from benchmarks.core import BARE, BY_HAND, OURS
from benchmarks.where import ATTRIBUTES, PARTS

Row = Mapping[str, Any]

PACKAGES = (
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation", "wrapt"),
    *(
        "pika",
        "aio-pika",
        "aiokafka",
        "confluent-kafka",
        "faststream",
        "bullmq",
        "celery",
        "kombu",
        "dramatiq",
        "rq",
        "redis",
    ),
    *("opentelemetry-instrumentation-pika", "opentelemetry-instrumentation-aio-pika"),
    *("opentelemetry-instrumentation-aiokafka", "opentelemetry-instrumentation-celery"),
    "opentelemetry-instrumentation-confluent-kafka",
)


def conditions() -> dict[str, Any]:
    """What figures depend on, and nothing that tells whose machine it was."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": os.cpu_count(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(found: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


# Tables


def print_tables(found: Mapping[str, Any], console: Console) -> None:
    if "core" in found:
        console.print(_core_table(found["core"]))
    if "adapters" in found:
        console.print(_adapters_table("over stubs", found["adapters"]))
    if "live" in found:
        console.print(_adapters_table("on real brokers", found["live"]))
    if "imports" in found:
        console.print(_imports_table(found["imports"]))
    given = found["conditions"]
    console.print(
        f"Medians of {found['rounds']} rounds in {found['processes']} processes; {given['python']}, "
        f"{given['cpus']} CPUs, OpenTelemetry {given['versions']['opentelemetry-sdk']}"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "remarks") else "right")
    return table


def _imports_table(rows: Sequence[Row]) -> Table:
    table = _table("Milliseconds of CPU an import", "", "beyond", "ms")
    for row in rows:
        table.add_row(f"import {row['import']}", row["beyond"], f"{row['ms']:.0f}")
    return table


def _core_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "Microseconds of CPU a message: send_span and process_span",
        *("", BARE, BY_HAND, "of bare", OURS, "of bare", "of by hand", "retained"),
    )
    for row in rows:
        bare, by_hand, ours = row[BARE], row[BY_HAND], row[OURS]
        table.add_row(
            f"{row['operation']}, {row['mode']}",
            *(f"{bare:.1f}", f"{by_hand:.1f}", _times(by_hand, bare)),
            *(f"{ours:.1f}", _times(ours, bare), _times(ours, by_hand), str(row["retained"])),
        )
    return table


def _beside_ours(other: float, ours: float, alone: float) -> tuple[str, str, str]:
    """What another instrumentation adds, in the columns of the table."""
    return f"{other:.1f}", _times(alone + other, alone), _times(ours, other)


def _beside_by_hand(by_hand: float | None, ours: float, alone: float) -> tuple[str, str]:
    """What is added by hand, where that is measured."""
    return ("", "") if by_hand is None else (f"{by_hand - alone:.1f}", _times(ours - alone, by_hand - alone))


def _adapters_table(where: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"Microseconds of CPU a message: the libraries, {where}",
        *(
            "",
            "alone",
            _QUEUEPROP,
            "of alone",
            "OpenTelemetry's adds",
            "of alone",
            "ours of its",
            "by hand adds",
            "ours of it",
            "retained",
            "remarks",
        ),
    )
    for row in rows:
        alone, ours, other = row["alone"], row["queueprop"], row["other"]
        table.add_row(
            f"{row['library']} {row['operation']}",
            *(f"{alone:.1f}", f"{ours - alone:.1f}", _times(ours, alone)),
            *(("", "", "") if other is None else _beside_ours(other - alone, ours - alone, alone)),
            *_beside_by_hand(row.get(BY_HAND), ours, alone),
            *(str(row["retained"]), row["remarks"]),
        )
    return table


def _times(value: float, of: float) -> str:
    return f"{value / of:.2f}x"


def print_scale(found: Mapping[str, Any], console: Console) -> None:
    for name, series in found["series"].items():
        table = _table(f"Microseconds of CPU a message, {name}", *(f"{int(size):,}" for size in series))
        table.add_row(*(f"{value:.1f}" for value in series.values()))
        console.print(table)


def print_where(rows: Sequence[Row], console: Console) -> None:
    table = _table("Instructions a message, by whose they are", "", *PARTS, "in all", ATTRIBUTES)
    for row in sorted(rows, key=lambda row: (row["operation"], row["library"]), reverse=True):
        counts = [row[part] for part in PARTS]
        table.add_row(
            f"{row['library']} {row['operation']}, {row['way']}",
            *(f"{count:.0f}" for count in (*counts, sum(counts), row[ATTRIBUTES])),
        )
    console.print(table)


def print_parts(what: str, microseconds: Mapping[str, float], console: Console) -> None:
    table = _table(f"Microseconds of CPU a message, {what}: part upon part", *microseconds)
    table.add_row(*(f"{value:.1f}" for value in microseconds.values()))
    console.print(table)


# Charts


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Horizontal bars: what is added to a message, beside what the library itself takes."""
    rows = [*_core_bars(found.get("core", ())), *_adapter_bars(found.get("adapters", ()))]
    rows.reverse()  # drawn from the bottom up
    chart = pygal.HorizontalBar(
        **_look("Microseconds of CPU a message"), height=160 + 52 * len(rows), width=1000, print_values=True
    )
    chart.x_labels = [name for name, _ in rows]
    for series in (
        _ALONE,
        _OPENTELEMETRY,
        _QUEUEPROP,
    ):
        chart.add(series, [bars.get(series) for _, bars in rows])
    _render(chart, path)


_ALONE, _OPENTELEMETRY, _QUEUEPROP = (
    "the library alone",
    "OpenTelemetry adds, by hand or by its instrumentation",
    "queueprop adds",
)


def _core_bars(rows: Sequence[Row]) -> list[tuple[str, dict[str, float | None]]]:
    return [
        (
            f"{row['operation']}, {row['mode']}",
            {
                _OPENTELEMETRY: round(row[BY_HAND], 1),
                _QUEUEPROP: round(row[OURS], 1),
            },
        )
        for row in rows
    ]


def _adapter_bars(rows: Sequence[Row]) -> list[tuple[str, dict[str, float | None]]]:
    return [
        (
            f"{row['library']} {row['operation']}",
            {
                _ALONE: round(row["alone"], 1),
                _OPENTELEMETRY: None if row["other"] is None else round(row["other"] - row["alone"], 1),
                _QUEUEPROP: round(row["queueprop"] - row["alone"], 1),
            },
        )
        for row in rows
    ]


def draw_scale(found: Mapping[str, Any], path: Path) -> None:
    """A line for each series; sizes stand at equal distances, whatever their ratio."""
    sizes = sorted({int(size) for series in found["series"].values() for size in series})
    chart = pygal.Line(**_look("Microseconds of CPU a message, by how many there are"), width=900, height=520)
    chart.x_labels = [f"{size:,}" for size in sizes]
    for name, series in found["series"].items():
        values = {int(size): round(value, 1) for size, value in series.items()}
        chart.add(name, [values.get(size) for size in sizes])
    _render(chart, path)


def _look(title: str) -> dict[str, Any]:
    return {
        "title": title,
        "style": CleanStyle(background="white", plot_background="white"),
        "legend_at_bottom": True,
        "js": [],  # no script, and nothing that is fetched
        "no_prefix": True,
        "truncate_legend": -1,
        "truncate_label": -1,
        "x_label_rotation": 30,
    }


def _render(chart: Any, path: Path) -> None:
    svg = chart.render(is_unicode=True)
    path.write_text(_SCRIPT.sub("", svg) + "\n", encoding="utf-8")


_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
"""pygal's configuration, for the script that it would fetch to show values under the mouse."""

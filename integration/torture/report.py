"""What a part of the torture prints: a row for each thing that was tried, with its counts, and whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One thing that was tried on one library. ``counts`` are printed as they are, in their order."""

    part: str
    library: str
    what: str
    holds: bool
    counts: Mapping[str, object] = field(default_factory=dict)


Run = Callable[[bool, Callable[[str], None]], Iterable[Row]]
"""A part: given whether the short form is asked for, and whom to tell what is being done, its rows as they come."""


def printed(rows: Iterable[Row], console: Console) -> bool:
    """Prints the rows as a table once all of them are there; whether all hold."""
    table = Table("part", "library", "what", "counts", "", title="torture", title_justify="left")
    all_hold = True
    for row in rows:
        counts = ", ".join(f"{name} {value}" for name, value in row.counts.items())
        table.add_row(row.part, row.library, row.what, counts, "holds" if row.holds else "[bold red]FAILS[/]")
        all_hold = all_hold and row.holds
    console.print(table)
    return all_hold

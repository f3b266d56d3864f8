"""The traces as they come, in the terminal; below them, as long as it runs, what every destination has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from queueprop.cli.drawing import ORPHAN, Painter, fitted, width_of
from queueprop.cli.watch import views
from queueprop.cli.watch.receiver import Receiver
from queueprop.cli.watch.store import Trace

QUIET = 1.0
"""Seconds without a span after which a trace is shown; one that gets others later is shown again."""

MOST_TRACES = 10
"""That are shown at once: more would be read by nobody. Those with orphans come first."""

MOST_SPANS = 200
"""Of one trace. The drawing calls itself from level to level, so that it is a bound of depth, too."""

_MOST_READ = 10 * MOST_SPANS
_MOST_DESTINATIONS = 12


class Screen:
    """All output goes through here. A context manager: below what it writes stands the table, on a terminal."""

    def __init__(self, console: Console, receiver: Receiver, page: str | None = None) -> None:
        self._console = console
        self._receiver = receiver
        self._page = page
        self._painter = Painter()
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._table, transient=True)

    def __enter__(self) -> Screen:
        self.say(f"listening on {self._receiver.endpoint} (OTLP/HTTP; protobuf and JSON)", "bold")
        if self._page is not None:
            self.say(f"the same as a page: {self._page}", "bold")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        self.update(quiet=0)
        self._console.print(self._table())

    def say(self, text: str, style: str = "") -> None:
        self._print(Text(text, style))

    def update(self, quiet: float = QUIET) -> None:
        """Shows the traces that are complete, as far as can be told."""
        store = self._receiver.store
        store.settle()
        # Sorting keeps the order of their coming, among the broken ones and among the others.
        settled = sorted(store.take_settled(quiet), key=lambda trace: not trace.orphaned)
        for trace in settled[:MOST_TRACES]:
            self._show(trace)
        if len(settled) > MOST_TRACES:
            self._say_left_out(settled[MOST_TRACES:])
        if self._live.is_started:
            self._live.refresh()

    def _show(self, trace: Trace) -> None:
        store = self._receiver.store
        ordered = views.in_order(store.records(trace, _MOST_READ))
        records = [record for record, _ in islice(ordered, MOST_SPANS)]
        with store.lock:
            notes = {key: f"{ORPHAN}{reason}" for key, reason in trace.orphans.items()}
            count = len(trace.spans)
        self._print(Text())
        for line in fitted(records, width_of(self._console), notes):
            self._print(self._painter.styled(line))
        if count > len(records):
            self.say(f"… {count - len(records)} more spans of this trace", "dim")

    def _say_left_out(self, traces: Sequence[Trace]) -> None:
        orphans = sum(trace.orphaned for trace in traces)
        what = f"with {_count(orphans, 'orphan')}" if orphans else "without an orphan"
        self.say(f"\n… {_count(len(traces), 'more trace')}, {what}, came at the same time", "dim")

    def _table(self) -> Group:
        store, forwarder = self._receiver.store, self._receiver.forwarder
        with store.lock:
            rows = views.destinations(store)
            line = [_count(store.received, "span"), _count(len(store.traces), "trace")]
            line += _told(store.evicted, "older trace", " no longer kept")
            line += _told(store.unshown, "trace", " of them never shown here")
            line += _told(store.refused, "request", " refused") + _told(store.rejected, "span", " rejected")
            orphaned = store.orphaned
        status = Text.assemble(
            ", ".join(line), ", ", (_count(orphaned, "orphan"), "bold red" if orphaned else "bold green")
        )
        parts: list[Table | Text] = [_destinations(rows)] if rows else []
        parts.append(status)
        if forwarder is not None:
            dropped = _told(forwarder.dropped, "span", " dropped")
            parts.append(Text(", ".join([f"{_count(forwarder.sent, 'span')} handed on", *dropped])))
            if forwarder.failure is not None:
                parts.append(Text(forwarder.failure, "red"))
        return Group(Text(), *parts)

    def _print(self, text: Text) -> None:
        # A line that is too long is the terminal's to wrap: rich would cut it at words, and add spaces.
        self._console.print(text, soft_wrap=True)


def _destinations(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("destination", title_justify="left")
    for title in ("published", "deliveries"):
        table.add_column(title, justify="right")
    table.add_column("orphans")
    for row in rows[:_MOST_DESTINATIONS]:
        name = " ".join(filter(None, (str(row["name"]), f"({row['system']})" * bool(row["system"]))))
        table.add_row(
            Text(_printable(name)), f"{row['published']:,}", f"{row['deliveries']:,}", _orphans(row)
        )
    if len(rows) > _MOST_DESTINATIONS:
        table.add_row(f"… {len(rows) - _MOST_DESTINATIONS} more", "", "", "")
    return table


def _orphans(row: dict[str, Any]) -> Text:
    orphans = row["orphans"]
    text = Text(_reasons(orphans) or "0", "bold red" if orphans else "green")
    # The metric counts what was not sampled, too; what the spans tell as well is not said twice.
    counted = {reason: count for reason, count in row["counted"].items() if count != orphans.get(reason)}
    if counted:
        text.append(f"  (by its metric: {_reasons(counted)})", "dim")
    return text


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {_printable(reason)}" for reason, count in counts.items())


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _told(number: int, what: str, became: str) -> list[str]:
    return [f"{_count(number, what)}{became}"] if number else []


def _count(number: int, one: str) -> str:
    return f"{number:,} {one if number == 1 else one + 's'}"

"""What the demo writes: in colours on a terminal, else the same as plain text."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from queueprop.cli.demo.brokers import READY
from queueprop.cli.demo.verdict import Verdict
from queueprop.cli.drawing import ORPHAN, Painter, cut, fitted, width_of
from queueprop.testing.tree import SpanRecord

_LOG_LINE = re.compile(r"[A-Z]+ trace_id=([0-9a-f]{32})? ")

STYLES = (
    (r"order-service( \(pid \d+\))?", "cyan"),
    (r"notification-service( \(pid \d+\))?", "magenta"),
)


class Screen:
    """All output goes through here; log lines come from the threads that read the processes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._painter = Painter(STYLES)

    def headline(self, text: str) -> None:
        self._print(Text(f"\n{text}", "bold"))

    def step(self, text: str) -> None:
        """Progress, with the seconds since the beginning."""
        self._print(Text(f"{time.monotonic() - self._began:5.1f} s  {text}", "dim"))

    def log(self, service: str, line: str) -> None:
        """A line that a process printed; log lines are shown (others, such as tracebacks, go into Died)."""
        if _LOG_LINE.match(line) and not line.endswith(READY):
            self._print(self._painter.styled(cut(f"  {service:20}  {line}", self._log_width)))

    def traces(self, spans: Sequence[SpanRecord], orphans: Mapping[tuple[str, str], str]) -> None:
        """Every trace, as a tree over time; with the reasons of those that are orphaned, by their keys."""
        notes = {key: f"{ORPHAN}{reason}" for key, reason in orphans.items()}
        for line in fitted(spans, self._width, notes):
            if line.startswith("trace "):
                self._print(Text())
            self._print(self._painter.styled(line))
        self._print(Text())

    def verdict(self, verdict: Verdict, explanation: str) -> None:
        self._print(
            Text.assemble((str(verdict), "bold green" if verdict.is_whole else "bold red"), explanation)
        )

    def error(self, text: str) -> None:
        self._print(Text(text, "red"))

    def comparison(self, verdicts: Sequence[Verdict]) -> None:
        """The runs beside one another: with queueprop, without."""
        table = Table("", "with queueprop", "without", title_justify="left")
        rows = ("messages", "deliveries", "traces", "orphans")
        for row in rows:
            table.add_row(row, *(str(getattr(verdict, row)) for verdict in verdicts))
        self._console.print(table)

    @property
    def _width(self) -> int | None:
        """None: as wide as it takes."""
        return width_of(self._console)

    @property
    def _log_width(self) -> int | None:
        """One row of a terminal, two of a narrow one."""
        return self._width and self._width * (1 if self._width >= 110 else 2)

    def _print(self, text: Text) -> None:
        # A line that is too long is the terminal's to wrap: rich would cut it at words, and add spaces.
        self._console.print(text, soft_wrap=True)

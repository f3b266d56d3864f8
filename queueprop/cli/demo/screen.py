"""What the demo writes: in colours on a terminal, else the same as plain text."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from queueprop.cli.demo.brokers import READY
from queueprop.cli.demo.verdict import Verdict
from queueprop.testing.tree import SpanRecord, render_tree

_TRACE_ID = re.compile(r"(?:^trace |trace_id=)([0-9a-f]{32})\b")
_LOG_LINE = re.compile(r"[A-Z]+ trace_id=([0-9a-f]{32})? ")

_STYLES = (
    (r"\b(SERVER|CLIENT|INTERNAL)\b(?= )", "blue"),
    (r"\bPRODUCER\b", "bold cyan"),
    (r"\bCONSUMER\b", "bold magenta"),
    (r"order-service( \(pid \d+\))?", "cyan"),
    (r"notification-service( \(pid \d+\))?", "magenta"),
    (r"█+", "green"),
    (r"↳ link to .*", "dim"),
    (r"\bERROR\b.*", "red"),
    (r"\(remote parent .*", "red"),
)

# One for each trace, so that its log lines are found again.
_TRACE_COLOURS = ("green", "yellow", "bright_blue", "bright_magenta", "bright_cyan", "bright_red")


class Screen:
    """All output goes through here; log lines come from the threads that read the processes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._colours: dict[str, str] = {}

    def headline(self, text: str) -> None:
        self._print(Text(f"\n{text}", "bold"))

    def step(self, text: str) -> None:
        """Progress, with the seconds since the beginning."""
        self._print(Text(f"{time.monotonic() - self._began:5.1f} s  {text}", "dim"))

    def log(self, service: str, line: str) -> None:
        """A line that a process printed; log lines are shown (others, such as tracebacks, go into Died)."""
        if _LOG_LINE.match(line) and not line.endswith(READY):
            self._print(self._styled(_cut(f"  {service:20}  {line}", self._log_width)))

    def traces(self, spans: Sequence[SpanRecord]) -> None:
        """Every trace, as a tree over time."""
        for line in fitted(spans, self._width):
            if line.startswith("trace "):
                self._print(Text())
            self._print(self._styled(line))
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
        return self._console.width if self._console.is_terminal else None

    @property
    def _log_width(self) -> int | None:
        """One row of a terminal, two of a narrow one."""
        return self._width and self._width * (1 if self._width >= 110 else 2)

    def _styled(self, line: str) -> Text:
        text = Text(line)
        for pattern, style in _STYLES:
            text.highlight_regex(pattern, style)
        for found in _TRACE_ID.finditer(line):
            colour = _TRACE_COLOURS[len(self._colours) % len(_TRACE_COLOURS)]
            text.stylize(self._colours.setdefault(found[1], colour), *found.span(1))
        return text

    def _print(self, text: Text) -> None:
        # A line that is too long is the terminal's to wrap: rich would cut it at words, and add spaces.
        self._console.print(text, soft_wrap=True)


def fitted(spans: Sequence[SpanRecord], width: int | None) -> list[str]:
    """The lines of ``render_tree``, with as much beside the names as the width takes: first the process ids go,
    then the timeline. The ends of long error messages are cut. None is as wide as it takes; where nothing fits,
    the lines are left to wrap.
    """
    # What has to be seen of a status is its first word.
    short = [dataclasses.replace(record, status_description="", attributes={}) for record in spans]
    for with_pid, timeline in _LAYOUTS:
        drawing = _drawing(spans, with_pid, timeline)
        if width is None:
            return drawing
        if max(map(len, _drawing(short, with_pid, timeline))) < width:
            return [_cut(line, width) for line in drawing]
    return _drawing(spans, *_LAYOUTS[-1])


_LAYOUTS = ((True, 30), (True, 20), (False, 20), (False, 10), (False, 0))


def _drawing(spans: Sequence[SpanRecord], with_pid: bool, timeline: int) -> list[str]:
    records = spans if with_pid else [_without_pid(record) for record in spans]
    return render_tree(records, timeline=timeline).splitlines()


def _without_pid(record: SpanRecord) -> SpanRecord:
    resource = {name: value for name, value in record.resource.items() if name != "process.pid"}
    return dataclasses.replace(record, resource=resource)


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"

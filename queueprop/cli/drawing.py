"""Traces in a terminal: as wide as it is, in colours. Without one, the plain text of ``render_tree``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from queueprop.testing.tree import SpanRecord, render_tree

_TRACE_ID = re.compile(r"(?:^trace |trace_id=)([0-9a-f]{32})\b")

ORPHAN = "✗ orphan: "
"""How the note below an orphan begins."""

_STYLES = (
    (r"\b(SERVER|CLIENT|INTERNAL)\b(?= )", "blue"),
    (r"\bPRODUCER\b", "bold cyan"),
    (r"\bCONSUMER\b", "bold magenta"),
    (r"█+", "green"),
    (r"↳ link to .*", "dim"),
    (r"\bERROR\b.*", "red"),
    (r"\(remote parent .*", "red"),
    (r"✗ orphan: .*", "bold red"),
)

# One for each trace, so that its log lines are found again.
_TRACE_COLOURS = ("green", "yellow", "bright_blue", "bright_magenta", "bright_cyan", "bright_red")


Styles = Sequence[tuple[str, str]]


class Painter:
    """Gives lines their colours; a trace id has the same wherever it stands. ``further`` are styles of one's own."""

    def __init__(self, further: Styles = ()) -> None:
        self._styles = (*_STYLES, *further)
        self._colours: dict[str, str] = {}

    def styled(self, line: str) -> Text:
        text = Text(line)
        for pattern, style in self._styles:
            text.highlight_regex(pattern, style)
        for found in _TRACE_ID.finditer(line):
            text.stylize(self._colour_of(found[1]), *found.span(1))
        return text

    def _colour_of(self, trace_id: str) -> str:
        known = self._colours.get(trace_id)
        if known is None:
            if len(self._colours) >= _MOST_COLOURED:
                self._colours.clear()
            known = _TRACE_COLOURS[len(self._colours) % len(_TRACE_COLOURS)]
            self._colours[trace_id] = known
        return known


_MOST_COLOURED = 10_000


def width_of(console: Console) -> int | None:
    """None: as wide as it takes."""
    return console.width if console.is_terminal else None


def fitted(
    spans: Sequence[SpanRecord], width: int | None, notes: Mapping[tuple[str, str], str] | None = None
) -> list[str]:
    """The lines of ``render_tree``, with as much beside the names as the width takes: first the process ids go,
    then the timeline. The ends of long error messages are cut. None is as wide as it takes; where nothing fits,
    the lines are left to wrap.
    """
    # What has to be seen of a status is its first word.
    short = [dataclasses.replace(record, status_description="", attributes={}) for record in spans]
    for with_pid, timeline in _LAYOUTS:
        drawing = _drawing(spans, with_pid, timeline, notes)
        if width is None:
            return drawing
        if max(map(len, _drawing(short, with_pid, timeline))) < width:
            return [cut(line, width) for line in drawing]
    return _drawing(spans, *_LAYOUTS[-1], notes)


_LAYOUTS = ((True, 30), (True, 20), (False, 20), (False, 10), (False, 0))


def _drawing(
    spans: Sequence[SpanRecord],
    with_pid: bool,
    timeline: int,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> list[str]:
    records = spans if with_pid else [_without_pid(record) for record in spans]
    return render_tree(records, timeline=timeline, notes=notes).splitlines()


def _without_pid(record: SpanRecord) -> SpanRecord:
    resource = {name: value for name, value in record.resource.items() if name != "process.pid"}
    return dataclasses.replace(record, resource=resource)


def cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"

"""What the doctor writes: in colours on a terminal, else the same as plain text; or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.console import Console
from rich.text import Text

from queueprop import guard
from queueprop.cli.doctor.findings import Finding, Report

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}
_WIDTH = max(len(mark) for mark, _ in _MARKS.values())
_LONGEST = 600


class Screen:
    """Lines of findings. A line that is too long is the terminal's to wrap."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def report(self, report: Report) -> None:
        self._print(Text(guard.one_line(report.about, _LONGEST), "bold"))
        for section, findings in groupby(report.findings, lambda finding: finding.section):
            self._print(Text(f"\n  {section}", "bold"))
            for finding in findings:
                self._finding(finding)
        self._print(Text())

    def verdict(self, reports: Iterable[Report]) -> None:
        problems = sum(report.problems for report in reports)
        if problems:
            many = "1 problem" if problems == 1 else f"{problems} problems"
            self._print(Text(f"{many}.", "bold red"))
        else:
            self._print(Text("No problem.", "bold green"))

    def _finding(self, finding: Finding) -> None:
        mark, style = _MARKS[finding.level]
        line = Text.assemble(
            "  ",
            (mark.ljust(_WIDTH), style),
            "  ",
            (guard.one_line(finding.subject, _LONGEST), "cyan"),
            ": ",
            guard.one_line(finding.text, _LONGEST),
        )
        if finding.source:
            line.append(f"  ({guard.one_line(finding.source, _LONGEST)})", "dim")
        self._print(line)
        indent = " " * (_WIDTH + 4)
        if finding.remedy:
            self._print(Text(f"{indent}{guard.one_line(finding.remedy, _LONGEST)}", style))
        for each in finding.lines:
            self._print(Text(f"{indent}{guard.one_line(each, _LONGEST)}"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

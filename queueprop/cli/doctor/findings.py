"""What the doctor says: findings, each about one thing, and whether it is well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "problem"]
"""``note`` is something to know. ``problem`` is something to mend, and the exit status is 1."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    section: str
    subject: str
    level: Level
    text: str
    remedy: str = ""
    """What to do, where something is to be done."""
    source: str = ""
    """Where it comes from: a variable, a default, the program's own code."""
    lines: tuple[str, ...] = ()
    """What belongs below it: a trace as a tree."""

    def as_json(self) -> dict[str, Any]:
        given = {
            "section": self.section,
            "subject": self.subject,
            "level": self.level,
            "text": self.text,
            "remedy": self.remedy,
            "source": self.source,
            "lines": list(self.lines),
        }
        return {name: value for name, value in given.items() if value not in ("", [])}


@dataclass
class Report:
    """What the doctor found, about this environment or about a program's processes."""

    about: str
    findings: list[Finding] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        return count(self.findings, "problem")

    def as_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "problems": self.problems,
            "findings": [finding.as_json() for finding in self.findings],
        }


def count(findings: Iterable[Finding], level: Level) -> int:
    return sum(finding.level == level for finding in findings)

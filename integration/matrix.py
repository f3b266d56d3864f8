"""The pytest plugin of the contract: binds its scenarios to the drivers' columns, and prints who shows what.

Rows are the 28 behaviours, columns the styles of each library through each API. A cell is ``pass`` or
``FAIL``; one that is empty because the behaviour does not apply says why, and so does a ``pass`` of which
some part does not apply. What does not apply is never started: such tests count as deselected, not as skipped
or passed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.contract.driver import Column, Driver
from integration.contract.run import Rig
from integration.contract.scenario import TITLES, Scenario
from queueprop import guard

_PROPERTY = "contract"


def add_option(parser: pytest.Parser) -> None:
    parser.getgroup("queueprop").addoption(
        "--matrix",
        metavar="FILE.md",
        type=Path,
        help="also write the contract's matrix to this file, as Markdown",
    )


@pytest.fixture
def rig(column: Column, request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """What a scenario acts with: this column's driver, on the session's broker."""
    driver = _driver_of(request.cls)
    broker = request.getfixturevalue(f"{driver.broker}_broker") if driver.broker else None
    if broker is not None:
        _matrix(request.config).rungs[driver.library] = str(broker)
    return Rig(
        driver,
        column,
        broker.url if broker is not None else None,
        tmp_path,
        lambda: request.getfixturevalue(f"private_{driver.broker}"),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "column" in metafunc.fixturenames:
        columns = _driver_of(metafunc.cls).columns()
        _matrix(metafunc.config).order.update(dict.fromkeys(columns))
        metafunc.parametrize("column", columns, ids=str)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    matrix = _matrix(config)
    absent = []
    for item in items:
        found = _scenario(item)
        if found is None:
            continue
        scenario, column, driver = found
        cell = matrix.cell(scenario.number, column)
        lacks = driver.lacks(column)
        reason = driver.absent(column) or next(
            (lacks[need] for need in scenario.needs if need in lacks), None
        )
        if reason is None:
            item.user_properties.append((_PROPERTY, (scenario.number, column)))
            cell.remark = driver.remarks(column).get(scenario.number)
        else:
            cell.add_reason(reason)
            absent.append(item)
    if absent:
        config.hook.pytest_deselected(items=absent)
        gone = set(map(id, absent))
        items[:] = [item for item in items if id(item) not in gone]


class Reporter:
    """Collects the outcomes and prints the table. Made once a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._matrix = _matrix(config)
        self._file: Path | None = config.getoption("--matrix", None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        place: Any = dict(report.user_properties).get(_PROPERTY)
        if place is None:
            return
        cell = self._matrix.cell(*place)
        if report.failed:
            cell.failed += 1
        elif report.skipped:
            cell.add_reason(_skip_reason(report))
        elif report.when == "call":
            cell.passed += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not any(cell.passed or cell.failed for cell in self._matrix.cells.values()):
            return
        terminalreporter.section("contract")
        for line in self._matrix.text():
            terminalreporter.write_line(line)
        if self._file is not None:
            self._file.write_text(self._matrix.markdown(), encoding="utf-8")
            terminalreporter.write_line(f"matrix written to {self._file}")


@dataclass
class Cell:
    passed: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)
    remark: str | None = None

    def add_reason(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)

    @property
    def texts(self) -> list[str]:
        return [*self.reasons, self.remark] if self.remark and self.word else self.reasons

    @property
    def word(self) -> str:
        return "FAIL" if self.failed else "pass" if self.passed else ""


@dataclass
class Matrix:
    cells: dict[tuple[int, Column], Cell] = field(default_factory=dict)
    rungs: dict[str, str] = field(default_factory=dict)
    order: dict[Column, None] = field(default_factory=dict)

    def cell(self, number: int, column: Column) -> Cell:
        return self.cells.setdefault((number, column), Cell())

    @property
    def columns_by_library(self) -> dict[str, list[Column]]:
        used = {column for _, column in self.cells}
        found: dict[str, list[Column]] = {}
        for column in filter(used.__contains__, self.order):
            found.setdefault(column.library, []).append(column)
        return found

    @property
    def rows(self) -> list[int]:
        return sorted({number for number, _ in self.cells})

    def text(self) -> Iterator[str]:
        """A table a library, with its reasons as footnotes below."""
        for library, columns in self.columns_by_library.items():
            notes: dict[str, str] = {}
            heads = [(column.style, column.api) for column in columns]
            rows = [
                [self._short(self.cells.get((row, column)), notes) for column in columns] for row in self.rows
            ]
            widths = [
                max(len(word) for word in (*head, *(row[index] for row in rows)))
                for index, head in enumerate(heads)
            ]
            title = max(len(f"{number:2} {TITLES[number]}") for number in self.rows)
            yield ""
            yield f"{library}, {self._where(library)}"
            for part in (0, 1):
                yield (
                    " " * title
                    + "  "
                    + "  ".join(head[part].ljust(width) for head, width in zip(heads, widths, strict=True))
                )
            for number, row in zip(self.rows, rows, strict=True):
                cells = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
                yield f"{f'{number:2} {TITLES[number]}':{title}}  {cells}".rstrip()
            for reason, mark in notes.items():
                yield f"   {mark} {reason}"

    def markdown(self) -> str:
        lines = ["# Contract matrix", ""]
        for library, columns in self.columns_by_library.items():
            lines += [f"## {library}, {self._where(library)}", ""]
            lines.append("| | " + " | ".join(f"{column.style}<br>{column.api}" for column in columns) + " |")
            lines.append("|---" * (len(columns) + 1) + "|")
            for number in self.rows:
                cells = [_long(self.cells.get((number, column))) for column in columns]
                lines.append(f"| {number}. {TITLES[number]} | " + " | ".join(cells) + " |")
            lines.append("")
        return "\n".join(lines)

    def _where(self, library: str) -> str:
        return f"on {self.rungs[library]}" if library in self.rungs else "in this process"

    @staticmethod
    def _short(cell: Cell | None, notes: dict[str, str]) -> str:
        if cell is None:
            return "not run"
        marks = [notes.setdefault(text, f"[{_letter(len(notes))}]") for text in cell.texts]
        return " ".join(filter(None, [cell.word, "".join(marks)])) or "not run"


def _long(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    texts = "; ".join(cell.texts)
    if not cell.word:
        return texts or "not run"
    return f"{cell.word} ({texts})" if texts else cell.word


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else _letter(number // 26 - 1) + _letter(number % 26)


_STASH = pytest.StashKey[Matrix]()


def _matrix(config: pytest.Config) -> Matrix:
    return config.stash.setdefault(_STASH, Matrix())


def pytest_configure(config: pytest.Config) -> None:
    # A fault of ours fails a scenario, in workers too, instead of hiding in a log.
    guard.raise_faults = True
    os.environ["_QUEUEPROP_RAISE_FAULTS"] = "1"
    config.pluginmanager.register(Reporter(config), "queueprop-contract-matrix")


def _scenario(item: pytest.Item) -> tuple[Scenario, Column, type[Driver]] | None:
    scenario = getattr(getattr(item, "function", None), "scenario", None)
    call = getattr(item, "callspec", None)
    if scenario is None or call is None:
        return None
    return scenario, call.params["column"], _driver_of(getattr(item, "cls", None))


def _driver_of(contract: Any) -> type[Driver]:
    driver: type[Driver] = contract.driver
    return driver


def _skip_reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)

"""The pytest plugin of the contract: binds its scenarios to the drivers' columns, and prints who shows what.

Rows are the 37 behaviours, columns the styles of each library through each API. A cell is ``pass`` or
``FAIL``; one that is empty because the behaviour does not apply says why, and so does a ``pass`` of which
some part does not apply. What does not apply is never started: such tests count as deselected, not as skipped
or passed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.contract.driver import Column, Driver
from integration.contract.run import Rig
from integration.contract.scenario import TITLES, Scenario
from queueprop import guard

_PROPERTY = "contract"

# Ten thousand messages are for where time does not count; each library's other API is shown with a thousand.
_MANY_MESSAGES = 15
_FEW = 1_000
# And so are a second restart of a library's broker and a second hundred of retries, through its other API.
_LONG = (27, 34)

COLUMNS = {
    "all": "every style of a library through both APIs",
    "styles": "every style through the instrumentor, and the first one through the explicit API, too",
    "first": "the first style of a library through both APIs",
    "quick": "the contract alone: the first style of a library through both APIs, and others that cost little; what is "
    "long (15, 27, 34) through one API",
    "rest": "what quick leaves out, and all that is not the contract",
}


def add_option(parser: pytest.Parser) -> None:
    group = parser.getgroup("queueprop")
    group.addoption(
        "--matrix",
        metavar="FILE.md",
        type=Path,
        help="also write the contract's matrix to this file, as Markdown (and beside it as JSON: with --columns=rest, "
        "what the quick ones have shown is in it)",
    )
    group.addoption(
        "--columns",
        choices=tuple(COLUMNS),
        default="all",
        help="; ".join(f"{name}: {what}" for name, what in COLUMNS.items()),
    )


@pytest.fixture
def rig(column: Column, request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """What a scenario acts with: this column's driver, on the session's broker."""
    return _rig(column, request, tmp_path)


@pytest.fixture
def rigs(api: str, request: pytest.FixtureRequest, tmp_path: Path) -> list[Rig]:
    """A rig for every style of the library through this API, for what is too dear to be done for each alone."""
    places = dict(request.node.user_properties)[_PROPERTY]
    return [
        _rig(Column(*column), request, tmp_path / str(number)) for number, (_, column) in enumerate(places)
    ]


def _rig(column: Column, request: pytest.FixtureRequest, folder: Path) -> Rig:
    driver = _driver_of(request.cls)
    broker = request.getfixturevalue(f"{driver.broker}_broker") if driver.broker else None
    if broker is not None:
        _matrix(request.config).add_rung(column.library, str(broker))
    folder.mkdir(exist_ok=True)
    return Rig(
        driver,
        column,
        broker.url if broker is not None else None,
        folder,
        lambda: request.getfixturevalue(f"private_{driver.broker}"),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"column", "api"} & set(metafunc.fixturenames):
        return
    scenario: Scenario | None = getattr(metafunc.function, "scenario", None)
    columns = _columns(metafunc.config, _driver_of(metafunc.cls), scenario)
    _matrix(metafunc.config).order.update(dict.fromkeys(columns))
    if "column" in metafunc.fixturenames:
        metafunc.parametrize("column", columns, ids=str)
    else:
        metafunc.parametrize("api", list(dict.fromkeys(column.api for column in columns)))


def _columns(config: pytest.Config, driver: type[Driver], scenario: Scenario | None) -> Sequence[Column]:
    """Those of the driver's columns that were asked for."""

    def is_dear(column: Column) -> bool:
        if scenario is None:
            return False
        many = scenario.number == _MANY_MESSAGES and driver.many(column) > _FEW
        return many or (scenario.number in _LONG and column.api == "explicit")

    columns, asked = driver.columns(), config.getoption("--columns")
    if asked == "all":
        return columns
    first = columns[0].style
    others = asked == "styles" or (asked in ("quick", "rest") and driver.is_quick)
    chosen = [it for it in columns if it.style == first or (others and it.api == "instrumentor")]
    quick = [it for it in chosen if not is_dear(it)] or chosen[:1]
    if asked == "quick":
        return quick
    if asked == "rest":
        return [it for it in columns if it not in quick]
    return chosen


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_contract_alone = config.getoption("--columns") == "quick"
    absent = []
    for item in items:
        if getattr(getattr(item, "function", None), "scenario", None) is None:
            if is_contract_alone:
                absent.append(item)
            continue
        found = _scenario(item)
        if found is None or not _applies(item, *found, _matrix(config)):
            absent.append(item)
    if absent:
        config.hook.pytest_deselected(items=absent)
        gone = set(map(id, absent))
        items[:] = [item for item in items if id(item) not in gone]


def _applies(
    item: pytest.Item, scenario: Scenario, columns: Sequence[Column], driver: type[Driver], matrix: Matrix
) -> bool:
    """Whether the test shows anything of one of its columns. It is told which, in words that may travel."""
    places = []
    for column in columns:
        cell = matrix.cell(scenario.number, column)
        lacks = driver.lacks(column)
        reason = driver.absent(column) or next(
            (lacks[need] for need in scenario.needs if need in lacks), None
        )
        if reason is None:
            places.append((scenario.number, tuple(column)))
            cell.remark = driver.remarks(column).get(scenario.number)
        else:
            cell.add_reason(reason)
    item.user_properties.append((_PROPERTY, places))
    return bool(places)


class Reporter:
    """Collects the outcomes and prints the table. Made once a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._matrix = _matrix(config)
        self._file: Path | None = config.getoption("--matrix", None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        places: Any = dict(report.user_properties).get(_PROPERTY, ())
        for number, column in places:
            cell = self._matrix.cell(number, Column(*column))
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
        asked = terminalreporter.config.getoption("--columns")
        if asked != "all":
            terminalreporter.write_line(f"only {COLUMNS[asked]} (--columns={asked})")
        for line in self._matrix.text():
            terminalreporter.write_line(line)
        if self._file is not None:
            self._write(self._file, with_earlier=asked == "rest")
            terminalreporter.write_line(f"matrix written to {self._file}")

    def _write(self, file: Path, *, with_earlier: bool) -> None:
        dumped = file.with_suffix(".json")
        whole = Matrix()
        if with_earlier and dumped.exists():
            whole.merge(dumped.read_text(encoding="utf-8"))
        whole.merge(self._matrix.dump(outcomes=True))
        dumped.write_text(whole.dump(outcomes=True), encoding="utf-8")
        file.write_text(whole.markdown(), encoding="utf-8")


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
    rungs: dict[str, list[str]] = field(default_factory=dict)
    order: dict[Column, None] = field(default_factory=dict)

    def cell(self, number: int, column: Column) -> Cell:
        return self.cells.setdefault((number, column), Cell())

    def add_rung(self, library: str, broker: str) -> None:
        brokers = self.rungs.setdefault(library, [])
        if broker not in brokers:
            brokers.append(broker)

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

    def dump(self, *, outcomes: bool) -> str:
        """In words that may travel: into a file; and without outcomes, which pytest-xdist reports by itself, to the
        process that its workers report to."""
        cells = [
            (
                number,
                tuple(column),
                cell.reasons,
                cell.remark,
                *((cell.passed, cell.failed) if outcomes else (0, 0)),
            )
            for (number, column), cell in self.cells.items()
        ]
        return json.dumps({"order": list(map(tuple, self.order)), "rungs": self.rungs, "cells": cells})

    def merge(self, dump: str) -> None:
        found = json.loads(dump)
        self.order.update(dict.fromkeys(Column(*column) for column in found["order"]))
        for library, brokers in found["rungs"].items():
            for broker in brokers:
                self.add_rung(library, broker)
        for number, column, reasons, remark, passed, failed in found["cells"]:
            cell = self.cell(number, Column(*column))
            cell.remark = remark or cell.remark
            cell.passed += passed
            cell.failed += failed
            for reason in reasons:
                cell.add_reason(reason)

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
        return (
            f"on {' and '.join(sorted(self.rungs[library]))}" if library in self.rungs else "in this process"
        )

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


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_PROPERTY] = _matrix(session.config).dump(outcomes=False)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    dump = getattr(node, "workeroutput", {}).get(_PROPERTY)
    if dump is not None:
        _matrix(node.config).merge(dump)


def _scenario(item: pytest.Item) -> tuple[Scenario, Sequence[Column], type[Driver]] | None:
    """What a test of the contract shows, and of which columns; None where no column was asked for."""
    scenario, parameters = item.function.scenario, item.callspec.params  # type: ignore[attr-defined]
    driver = _driver_of(getattr(item, "cls", None))
    columns = _columns(item.config, driver, scenario)
    if not columns:
        return None
    if "column" in parameters:
        return scenario, [parameters["column"]], driver
    return scenario, [it for it in columns if it.api == parameters["api"]], driver


def _driver_of(contract: Any) -> type[Driver]:
    driver: type[Driver] = contract.driver
    return driver


def _skip_reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)

"""``queueprop doctor``: looks, writes what it found, and returns the exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from queueprop.cli import urls
from queueprop.cli.doctor import endings, libraries, probe, program, telemetry, trial, variables
from queueprop.cli.doctor.facts import Facts
from queueprop.cli.doctor.findings import Finding, Report
from queueprop.cli.doctor.screen import Screen
from queueprop.cli.refusal import STATUS, Refused
from queueprop.version import __version__


def main(arguments: Sequence[str], seconds: float, as_json: bool) -> int:
    """Looks at this environment, at brokers, and into a program.

    Args:
        arguments: URLs of brokers, and then a program with its arguments.
        seconds: how long the program is let be before it is looked into.
        as_json: writes one JSON object instead of lines.

    Returns 0, or 1 where something is to be mended, or 2 where what was asked for cannot be looked at.
    """
    console, errors = Console(), Console(stderr=True)
    try:
        brokers, command = _split(arguments)
        for broker in brokers:
            urls.connect_once(broker)
        if command:
            program.path_of(command)
            errors.print(
                f"{' '.join(command)} is started, looked into after {seconds:g} s, and ended by SIGTERM",
                style="dim",
                markup=False,
                soft_wrap=True,
            )
        reports = _of_program(command, seconds) if command else [_of_environment()]
        for broker in brokers:
            reports.append(Report(f"a message through {broker.shown}", list(trial.findings(broker))))
    except Refused as refused:
        errors.print(f"queueprop doctor: {refused}", markup=False, highlight=False, soft_wrap=True)
        return STATUS
    _write(reports, console, as_json)
    return 1 if any(report.problems for report in reports) else 0


def _split(arguments: Sequence[str]) -> tuple[list[urls.BrokerURL], list[str]]:
    """URLs stand first: no program has ``://`` in its name."""
    rest = list(arguments)
    brokers = []
    while rest and urls.is_url(rest[0]):
        brokers.append(urls.parse(rest.pop(0)))
    return brokers, rest


def _of_environment() -> Report:
    facts = Facts(probe.facts())
    found = [
        *libraries.findings(facts, is_program=False),
        *variables.findings(facts),
        *telemetry.findings_of_variables(facts),
    ]
    return Report(f"queueprop {__version__}, this environment", found)


def _of_program(command: Sequence[str], seconds: float) -> list[Report]:
    look = program.look_into(command, seconds)
    reports = []
    for found in look.processes:
        facts = Facts(found)
        findings = [
            *libraries.findings(facts, is_program=True),
            *variables.findings(facts),
            *telemetry.findings_of_program(facts),
            *endings.findings(facts),
        ]
        reports.append(Report(f"queueprop {__version__}, inside {facts.title}", findings))
    if look.status is not None:
        reports[0].findings.append(_ended(look.status))
    return reports


def _ended(status: int) -> Finding:
    text = f"ended by itself with status {status}; what is told of it is from its end"
    return Finding(endings.SECTION, "the program", "problem" if status else "note", text)


def _write(reports: Sequence[Report], console: Console, as_json: bool) -> None:
    if as_json:
        problems = sum(report.problems for report in reports)
        given = {
            "queueprop": __version__,
            "problems": problems,
            "reports": [report.as_json() for report in reports],
        }
        print(json.dumps(given, indent=2))
        return
    screen = Screen(console)
    for report in reports:
        screen.report(report)
    screen.verdict(reports)

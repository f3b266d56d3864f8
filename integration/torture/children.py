"""Processes of their own: what is global (providers, patches, the guard's memory) is fresh in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent

Report = dict[str, Any]
Arguments = Sequence[object]


class ChildFailed(Exception):
    """A child ended otherwise than with a report; the text has the end of what it said."""


def run(part: str, *arguments: object, timeout: float, environment: dict[str, str] | None = None) -> Report:
    """What ``python -m integration.torture.PART arguments...`` prints as its last line, as JSON.

    Raises ChildFailed where it prints none, ends with an error, or takes longer than ``timeout`` seconds.
    """
    command = [sys.executable, "-m", f"{__package__}.{part}", *map(str, arguments)]
    try:
        child = subprocess.run(
            command,
            cwd=CHECKOUT,
            env={**_environment(), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"{' '.join(command[2:])}: not over after {timeout:.0f} s") from None
    if child.returncode or not child.stdout.strip():
        said = child.stderr.strip() or child.stdout.strip()
        raise ChildFailed(f"{' '.join(command[2:])} ended with {child.returncode}: {said[-1500:]}")
    report: Report = json.loads(child.stdout.splitlines()[-1])
    return report


def run_all(
    part: str,
    given: Sequence[Arguments],
    timeout: float,
    say: Callable[[str], None],
    at_once: int = 2,
) -> Iterator[tuple[Arguments, Report | ChildFailed]]:
    """The same for several, two at a time, in their order."""
    with ThreadPoolExecutor(at_once) as executor:

        def one(arguments: Arguments) -> Report | ChildFailed:
            say(" ".join(map(str, arguments)))
            try:
                return run(part, *arguments, timeout=timeout)
            except ChildFailed as failed:
                return failed

        yield from zip(given, executor.map(one, given), strict=True)


def _environment() -> dict[str, str]:
    """That of this process, without what configures OpenTelemetry or queueprop: the defaults are tried."""
    found = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUEUEPROP_"))
    }
    found.pop("_QUEUEPROP_RAISE_FAULTS", None)
    return found

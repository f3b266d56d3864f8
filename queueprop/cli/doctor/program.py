"""A program, looked into as it starts: it is run with the probe on its path, told of, and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from queueprop.cli.doctor import probe
from queueprop.cli.refusal import Refused, reason

LONGEST_END = 10.0
"""Seconds that a program has to end after SIGTERM."""

_MODULE = "_queueprop_doctor"

# Python imports the first ``sitecustomize`` of the path. OpenTelemetry's launcher puts its own before ours, and asks
# entry points before it instruments: the folder is a distribution, too.
_SITECUSTOMIZE = f"import os, {_MODULE} as it\nit.begin()\nit.leave_the_path(os.path.dirname(__file__))\n"
_METADATA = "Metadata-Version: 2.1\nName: queueprop-doctor\nVersion: 0\n"
_ENTRY_POINTS = f"[opentelemetry_pre_instrument]\nqueueprop_doctor = {_MODULE}:begin\n"


class Look(NamedTuple):
    """What was seen of a program."""

    processes: list[dict[str, Any]]
    """The facts of each process that has reported, the program's own first."""
    status: int | None
    """Its exit status, where it ended by itself; negative for a signal."""


def look_into(command: Sequence[str], seconds: float) -> Look:
    """Runs a program, lets it be for so many seconds, and ends it by SIGTERM. What it prints goes to stderr.

    Raises Refused where there is no such program, and where nothing of it has reported: it is not Python, or a Python
    that reads no PYTHONPATH (``-I``, ``-E``).
    """
    path = path_of(command)
    with _folder() as (place, reports):
        try:
            process = subprocess.Popen(
                [path, *command[1:]],
                env=_environment(os.environ, place, reports, seconds),
                stdout=2,
                start_new_session=True,
            )
        except OSError as error:
            raise Refused(f"{command[0]} cannot be started: {reason(error)}") from None
        try:
            _wait_for_reports(process, reports, seconds)
            if any(facts.get("at_exit") is True for facts in _read(reports, process.pid)):
                _wait(process, LONGEST_END)
            status = process.poll()
        finally:
            _end(process)
        found = _read(reports, process.pid)
    if not found:
        ending = " (it has not reported)" if status is None else f" (it ended with status {status})"
        raise Refused(
            f"{command[0]} could not be looked into{ending}: it is no Python program, or one that reads no "
            "PYTHONPATH (python -I, -E, -S)"
        )
    return Look(found, status)


def path_of(command: Sequence[str]) -> str:
    """Where a program is. Raises Refused where there is none of its name."""
    path = shutil.which(command[0])
    if path is None:
        raise Refused(f"there is no program {command[0]!r}: queueprop doctor -- python worker.py")
    return path


@contextmanager
def _folder() -> Iterator[tuple[Path, Path]]:
    """The folder that goes onto the program's path, and the one for its reports; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="queueprop-doctor-", ignore_cleanup_errors=True) as name:
        place, reports = Path(name, "path"), Path(name, "reports")
        reports.mkdir()
        described = place / f"{_MODULE}-0.dist-info"
        described.mkdir(parents=True)
        source = Path(probe.__file__).read_text(encoding="utf-8")
        (place / f"{_MODULE}.py").write_text(source, encoding="utf-8")
        (place / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
        (described / "METADATA").write_text(_METADATA, encoding="utf-8")
        (described / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
        yield place, reports


def _environment(given: Mapping[str, str], place: Path, reports: Path, seconds: float) -> dict[str, str]:
    paths = [str(place), *filter(None, [given.get("PYTHONPATH")])]
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(paths),
        probe.FOLDER: str(reports),
        probe.SECONDS: repr(seconds),
    }


def _wait_for_reports(process: subprocess.Popen[bytes], reports: Path, seconds: float) -> None:
    """Until the program itself has reported or ended, or what it started has, and the program has had a while more."""
    deadline = time.monotonic() + seconds + probe.LONGEST_IMPORT + _LONGEST_LOOK
    own = reports / f"{process.pid}.json"
    while time.monotonic() < deadline and process.poll() is None and not own.exists():
        time.sleep(_PAUSE)
        if _read(reports, process.pid):
            deadline = min(deadline, time.monotonic() + _MARGIN)  # a shell, say, whose worker has reported


_PAUSE = 0.05
_MARGIN = 2.0
_LONGEST_LOOK = 20.0  # of a busy machine, whose programs take long to start and to be looked into


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the program, as a supervisor does it; then to whatever of it is left, and then SIGKILL."""
    if process.poll() is None:
        process.terminate()
        _wait(process, LONGEST_END)
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 1.0)):
        if not _is_left(process.pid):
            break
        _signal_group(process.pid, number)
        _wait(process, patience)
        deadline = time.monotonic() + patience
        while _is_left(process.pid) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
    process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _is_left(group: int) -> bool:
    return _signal_group(group, 0)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read(reports: Path, first: int) -> list[dict[str, Any]]:
    found = [facts for path in sorted(reports.glob("*.json")) for facts in _facts(path)]
    return sorted(found, key=lambda facts: facts.get("pid") != first)[: probe.MOST_REPORTS]


def _facts(path: Path) -> Iterator[dict[str, Any]]:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(facts, dict):
        yield facts

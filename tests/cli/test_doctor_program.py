"""A program that is looked into: it runs as it always does, and is ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from queueprop.cli.doctor import probe, program
from queueprop.cli.refusal import Refused

SET_UP = 3.0
"""Seconds in which a program has got to its last line, on a busy machine, too."""


def _script(folder: Path, text: str) -> list[str]:
    path = folder / "worker.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def test_a_program_is_looked_into_and_ended(tmp_path: Path) -> None:
    """It is told of by itself, its own handler of SIGTERM runs, and what it prints is on stderr alone."""
    told = tmp_path / "told"
    command = _script(
        tmp_path,
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *given: (open({str(told)!r}, 'w').write('ended'), sys.exit(0)))\n"
        "import logging.config\n"
        "time.sleep(60)\n",
    )
    look = program.look_into(command, SET_UP)
    (facts,) = look.processes
    assert facts["program"]["argv"] == command
    assert facts["troubles"] == []
    assert look.status is None
    assert told.read_text() == "ended"


def test_a_program_that_ends_early(tmp_path: Path) -> None:
    """It reports as it exits, and its status is told."""
    look = program.look_into(_script(tmp_path, "import sys; sys.exit(3)"), 30)
    assert look.status == 3
    assert len(look.processes) == 1


def test_its_path_is_its_own(tmp_path: Path) -> None:
    """Nothing of the doctor's is on the program's path, its arguments and its working directory are as given."""
    told = tmp_path / "told"
    script = f"import json, os, sys; json.dump([sys.path, sys.argv, os.getcwd()], open({str(told)!r}, 'w'))"
    command = [*_script(tmp_path, script), "--flag", "x y"]
    program.look_into(command, 30)
    path, argv, folder = json.loads(told.read_text())
    plain = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path))"],
        capture_output=True,
        check=True,
    )
    assert path[1:] == json.loads(plain.stdout)[1:]
    assert argv == command[1:]
    assert folder == os.getcwd()


def test_programs_that_it_starts(tmp_path: Path) -> None:
    """A shell's worker is told of, though the shell itself has nothing to tell, and both are ended."""
    worker = _script(tmp_path, "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    look = program.look_into(["sh", "-c", f"cd {tmp_path}; {' '.join(worker)}; true"], SET_UP)
    (facts,) = look.processes
    assert facts["program"]["argv"] == worker
    assert not _is_alive(int((tmp_path / "pid").read_text()))


def test_a_program_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ignores SIGTERM is killed."""
    monkeypatch.setattr(program, "LONGEST_END", 0.3)
    command = _script(
        tmp_path, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    )
    (facts,) = program.look_into(command, SET_UP).processes
    assert facts["sigterm"] == "ignored"
    assert not _is_alive(facts["pid"])


def test_what_waits_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor does not wait for ever for a report."""
    monkeypatch.setattr(probe, "LONGEST_IMPORT", 0.0)
    monkeypatch.setattr(program, "_LONGEST_LOOK", 0.2)
    with pytest.raises(
        Refused, match=r"sleep could not be looked into \(it has not reported\): it is no Python program"
    ):
        program.look_into(["sleep", "60"], 0.1)


def test_no_such_program() -> None:
    """One line."""
    with pytest.raises(Refused, match="there is no program 'no-such-program'"):
        program.look_into(["no-such-program"], 1)


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    """One line, with the system's reason."""
    path = tmp_path / "worker"
    path.write_bytes(b"\x7fELF no program")
    path.chmod(0o755)
    with pytest.raises(Refused, match="cannot be started"):
        program.look_into([str(path)], 1)


def test_a_python_that_reads_no_path(tmp_path: Path) -> None:
    """It cannot be looked into, and that is said."""
    python, script = _script(tmp_path, "")
    with pytest.raises(Refused, match=r"ended with status 0.*python -I"):
        program.look_into([python, "-I", script], 30)


def test_reports_are_input(tmp_path: Path) -> None:
    """What is no report is left out, and the program's own comes first."""
    (tmp_path / "1.json").write_text('{"pid": 1}')
    (tmp_path / "2.json").write_text("[")
    (tmp_path / "3.json").write_text("[]")
    (tmp_path / "4.json").write_text('{"pid": 4}')
    assert program._read(tmp_path, 4) == [{"pid": 4}, {"pid": 1}]


def _is_alive(pid: int) -> bool:
    for _ in range(600):  # its parent may take a moment to collect it
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        if status.rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True

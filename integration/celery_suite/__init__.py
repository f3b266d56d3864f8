"""Celery's own tests, of the very version that is installed: its source distribution has them, its wheel has not."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from integration.brokers import Unavailable
from integration.brokers.cache import cached

_PLUGIN = Path(__file__).parent / "plugin"
_PATIENCE = 500
"""Seconds that a run may take."""


class Outcomes(NamedTuple):
    """What became of a run."""

    of: Mapping[str, Sequence[str]]
    """By a test's id, the outcome of each of its phases that counts, and of its subtests."""

    spans: Mapping[str, int]
    """How many ended, by scope and kind."""

    log: str


Both = tuple[Sequence[str] | None, Sequence[str] | None]


def differences(plain: Outcomes, traced: Outcomes) -> dict[str, Both]:
    """By a test's id, what became of it in the one run and in the other, where that differs."""
    return {
        name: (plain.of.get(name), traced.of.get(name))
        for name in sorted({*plain.of, *traced.of})
        if plain.of.get(name) != traced.of.get(name)
    }


class Run:
    """A run in a process of its own, from when it is made."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        left_out: Sequence[str] = (),
        traced: Sequence[str] = (),
        *,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``folder`` is the run's own and empty; of ``files`` those are run that this version has, without the ids of
        ``left_out``; ``traced`` are the libraries that queueprop instruments. ``options`` are further ones of pytest's.

        Raises Unavailable where the tests cannot be had.
        """
        here = folder / "celery"
        shutil.copytree(_fetched(), here)  # some write into the folder that they run in
        self._outcomes = folder / "outcomes.json"
        self._log = folder / "log.txt"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_", "QUEUEPROP_", "_QUEUEPROP_", "PYTEST_", "CELERY_"))
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:queueprop"]
        command += ["-p", "queueprop_in_celery_suite", "--tb=short"]
        command += [file for file in files if (here / file).exists()]
        command += [f"--deselect={name}" for name in left_out]
        command += options
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=here,
                env={
                    **inherited,
                    "_QUEUEPROP_SUITE_OUTCOMES": str(self._outcomes),
                    "_QUEUEPROP_SUITE_TRACED": ",".join(traced),
                    "_QUEUEPROP_RAISE_FAULTS": "1",  # what the guard would hide fails a test
                    "PYTHONPATH": str(_PLUGIN),
                    "PYTHONSAFEPATH": "",  # the tests are a package in that folder
                    "TMPDIR": str(folder),
                    **(environ or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def result(self, patience: float = _PATIENCE) -> Outcomes:
        """Waits for it, so many seconds. Raises AssertionError, with what it printed, where pytest itself did not come
        to its end.
        """
        try:
            status = self._process.wait(patience)
        finally:
            self.end()
        log = self._log.read_text(errors="replace")
        assert status in (0, 1), log[-5000:]  # 1: some failed
        found = json.loads(self._outcomes.read_text())
        return Outcomes(found["outcomes"], found["spans"], log)

    def end(self) -> None:
        """It is not waited for any more."""
        self._process.kill()
        self._process.wait()


def _fetched() -> Path:
    """The folder with the tests, from the cache between runs or by pip. The package is left out: the installed one is
    tested.
    """
    return cached(f"celery-{version('celery')}", _fetch)


def _fetch(folder: Path) -> None:
    release = version("celery")
    with tempfile.TemporaryDirectory() as name:
        fetched = Path(name)
        download = ["download", "-q", "--no-deps", "--no-binary=celery", f"celery=={release}"]
        done = subprocess.run(
            [*pip_of_this(), *download], cwd=fetched, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise Unavailable(
                f"pip could not fetch Celery's source distribution: {done.stderr.strip()[-500:]}"
            )
        [archive] = fetched.glob("celery-*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(fetched, filter="data")
        [source] = (it for it in fetched.iterdir() if it.is_dir())
        if not (source / "t").is_dir():
            raise Unavailable(f"the source distribution of Celery {release} has no tests")
        for name in ("t", "pyproject.toml", "setup.cfg"):
            shutil.move(source / name, folder / name)


def pip_of_this() -> list[str]:
    """pip of this environment, or the one on the PATH: what tox makes with uv has none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    program = shutil.which("pip")
    if program is None:
        raise Unavailable(
            "what a test fetches once is not in the cache, and there is no pip that would fetch it"
        )
    return [program]

"""Java, and jars that Maven fetches once."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from .broker import Unavailable
from .cache import cached

_OLDEST = 17  # what brokers of Kafka 4 need

SHORT_LIVED = "-XX:TieredStopAtLevel=1"
"""Of a Java that lives for minutes: its second compiler costs more than it gives."""


def java() -> str:
    """The program. Raises Unavailable where there is none, or an old one."""
    found = shutil.which("java")
    if not found:
        raise Unavailable("java is not on the PATH")
    told = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if not version or int(version[1]) < _OLDEST:
        raise Unavailable(f"the java on the PATH is not Java {_OLDEST} or newer: {told.strip()[:100]}")
    return found


def jars(pom: Path, name: str) -> Path:
    """The folder, ``name`` in the cache, of what a pom depends on. It is fetched again when the name changes."""

    def fetch(folder: Path) -> None:
        maven = shutil.which("mvn")
        if not maven:
            raise Unavailable(f"neither mvn nor the jars that it would fetch ({name}) are there")
        quietly = ("-q", "-B", "-Dstyle.color=never")
        command = [
            maven,
            *quietly,
            "-f",
            str(pom),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={folder}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            # It says what was wrong first, and then how to read about it.
            first = next((line for line in done.stdout.splitlines() if "[ERROR]" in line), done.stderr)
            raise Unavailable(f"Maven could not fetch the jars of {name}: {first.strip()[:500]}")

    return cached(name, fetch)

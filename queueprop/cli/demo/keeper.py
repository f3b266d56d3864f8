"""Ends what the demo started, when the demo is gone.

    python -I keeper.py FOLDER

Reads ``+PID`` and ``-PID`` of process groups from its standard input. When that ends, because the demo closed it
or was killed, the groups that are left are ended, and FOLDER is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

GRACE = 3.0
"""Seconds from SIGTERM to SIGKILL."""


def main(folder: str, lines: Iterable[str], grace: float = GRACE) -> None:
    groups: set[int] = set()
    for line in lines:
        pid = int(line[1:])
        (groups.add if line.startswith("+") else groups.discard)(pid)
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = _signal(groups, 0)
    _signal(groups, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(groups: Iterable[int], number: int) -> set[int]:
    """Sends it; returns the groups that were there."""
    there = set()
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            there.add(group)
    return there


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin)

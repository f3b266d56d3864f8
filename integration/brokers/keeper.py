"""Runs a server for as long as the process that asked for it lives.

    python -I keeper.py PARENT FOLDER COMMAND...

A server that pytest itself had started would outlive a pytest that is killed. This process watches both: on
SIGTERM, or when PARENT (a process id) is gone, the server is stopped, in order if it can be, on SIGUSR1 it is
killed, and then nothing of its process group is left. FOLDER is removed when nobody else is there to do it. The
exit status is the server's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

GRACE = 15.0
"""Seconds that a server has for an orderly end."""


def main(parent: int, folder: str, command: list[str]) -> int:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    server = subprocess.Popen(command, start_new_session=True)
    while server.poll() is None and not asked and os.getppid() == parent:
        time.sleep(0.05)
    _stop(server, 0 if signal.SIGUSR1 in asked else GRACE)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _stop(server: subprocess.Popen[bytes], grace: float) -> None:
    if grace and server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

"""Removes a container as soon as the process that started it is gone.

    python -I container_guard.py PARENT CONTAINER

testcontainers has Ryuk for this: a container too, switched off where it may not have the daemon's socket.
"""

from __future__ import annotations

import os
import sys
import time


def main(parent: int, container: str) -> None:
    while os.getppid() == parent:
        time.sleep(0.1)
    from testcontainers.core.docker_client import DockerClient

    for found in DockerClient().client.containers.list(all=True, filters={"id": container}):
        found.remove(force=True, v=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

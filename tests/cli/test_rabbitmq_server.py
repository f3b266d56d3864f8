"""Which RabbitMQ the demo takes; nothing here starts a real one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError

from queueprop.cli.demo import rabbitmq_server as module
from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import Processes
from queueprop.cli.demo.rabbitmq.broker import RabbitMQ
from queueprop.cli.demo.rabbitmq_server import rabbitmq_server

# Listens on the port that its environment names. (It speaks no AMQP.)
FAKE = f"""#!{sys.executable}
import os, socket
server = socket.create_server(("127.0.0.1", int(os.environ["RABBITMQ_NODE_PORT"])))
while True:
    server.accept()
"""
SLEEPS = f"#!{sys.executable}\nimport time\ntime.sleep(60)\n"


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes(lambda name, line: None) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_BEHIND", tmp_path / "no such program")
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server counts as there when somebody listens."""

    def answers(url: str) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", pika.URLParameters(url).port)) == 0

    monkeypatch.setattr(module, "_answers", answers)


def _program(path: Path, name: str, content: str) -> Path:
    program = path / name
    program.write_text(content)
    program.chmod(0o755)
    return program


def test_program_on_the_path(processes: Processes, path: Path, listens: None) -> None:
    """A private node is started, with a port mapper of its own, and is gone afterwards."""
    _program(path, "rabbitmq-server", FAKE)
    _program(path, "epmd", SLEEPS)
    with rabbitmq_server(processes, {"PATH": str(path)}) as found:
        assert (found.what, found.is_private) == ("a private node of this machine's rabbitmq-server", True)
        assert module._answers(found.url)
    assert not module._answers(found.url)


def test_what_stands_behind_a_distribution_s_script(
    processes: Processes, path: Path, listens: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution's script changes to its own user and folders: what it runs is run instead."""
    _program(path, "rabbitmq-server", "#!/bin/sh\nexit 1\n")
    _program(path, "epmd", SLEEPS)
    monkeypatch.setattr(module, "_BEHIND", _program(path, "behind", FAKE))
    with rabbitmq_server(processes, {"PATH": str(path)}) as found:
        assert found.is_private


def test_server_that_does_not_start(processes: Processes, path: Path, listens: None) -> None:
    """What it printed last is told."""
    _program(path, "rabbitmq-server", "#!/bin/sh\necho no memory left\nexit 1\n")
    _program(path, "epmd", SLEEPS)
    with pytest.raises(NoServer, match="no memory left"), rabbitmq_server(processes, {"PATH": str(path)}):
        pass


@pytest.mark.parametrize("there", [(), ("rabbitmq-server",), ("epmd",)])
def test_none_at_all(processes: Processes, path: Path, there: tuple[str, ...]) -> None:
    """One line says what can be done."""
    for name in there:
        _program(path, name, SLEEPS)
    with (
        pytest.raises(NoServer, match="QUEUEPROP_RABBITMQ_URL") as none,
        rabbitmq_server(processes, {"PATH": str(path)}),
    ):
        pass
    assert "\n" not in str(none.value)


def test_port_mapper_among_erlang_s_programs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Erlang's own folder is asked for where epmd is not on the PATH."""
    erlang = path / "erts"
    erlang.mkdir()
    mapper = _program(erlang, "epmd", SLEEPS)
    _program(path, "erl", SLEEPS)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=str(erlang)))
    assert module._port_mapper({"PATH": str(path)}) == str(mapper)


def test_given_server_is_taken(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a RabbitMQ wants that one; it is not the demo's to stop."""
    monkeypatch.setattr(module, "_answers", lambda url: True)
    with rabbitmq_server(processes, {"QUEUEPROP_RABBITMQ_URL": "amqp://given"}) as found:
        assert found == ("amqp://given", "the RabbitMQ of QUEUEPROP_RABBITMQ_URL", False)


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:1", "amqp://127.0.0.1:none"])
def test_given_server_that_is_not_there(url: str, processes: Processes) -> None:
    """It is not silently replaced by another."""
    with (
        pytest.raises(NoServer, match="does not answer"),
        rabbitmq_server(processes, {"QUEUEPROP_RABBITMQ_URL": url}),
    ):
        pass


def test_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login is what counts."""
    monkeypatch.setattr(module, "BlockingConnection", lambda parameters: SimpleNamespace(close=lambda: None))
    assert module._answers("amqp://there")


def test_private_server(processes: Processes, path: Path, listens: None) -> None:
    """The services are told where it is."""
    _program(path, "rabbitmq-server", FAKE)
    _program(path, "epmd", SLEEPS)
    with RabbitMQ().server(processes, {"PATH": str(path)}) as server:
        assert set(server.environment) == {"RABBITMQ_URL"}


@pytest.mark.parametrize("is_there", [True, False])
def test_given_server_is_left_as_it_was(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Queues of the demo's own, which are deleted; one that went away meanwhile is no error."""
    deleted: list[str] = []

    class Connection:
        def __init__(self, parameters: Any) -> None:
            if not is_there:
                raise AMQPConnectionError

        def __enter__(self) -> Any:
            return SimpleNamespace(channel=lambda: SimpleNamespace(queue_delete=deleted.append))

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "_answers", lambda url: True)
    monkeypatch.setattr(pika, "BlockingConnection", Connection)
    with RabbitMQ().server(processes, {"QUEUEPROP_RABBITMQ_URL": "amqp://given"}) as server:
        queue = server.environment["QUEUE"]
    assert deleted == ([queue, f"{queue}-later"] if is_there else [])

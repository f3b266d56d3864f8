"""Which Kafka the demo takes; nothing here starts a real one."""

from __future__ import annotations

import importlib.metadata
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from queueprop.cli.demo import kafka_mock
from queueprop.cli.demo import kafka_server as module
from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.kafka.broker import Kafka
from queueprop.cli.demo.kafka_server import kafka_server
from queueprop.cli.demo.processes import Processes, accepts

ENDS = "#!/bin/sh\nexit 1\n"
# Listens where its properties say, when its storage has been formatted. (It speaks no Kafka.)
STORAGE = "#!/bin/sh\nproperties=${3#--config=}\n[ $1 = format ] && cp $properties $properties.formatted\n"
START = f"""#!{sys.executable}
import re, socket, sys
properties = open(sys.argv[1] + ".formatted").read()
server = socket.create_server(("127.0.0.1", int(re.search("PLAINTEXT://127.0.0.1:([0-9]+)", properties)[1])))
while True:
    server.accept()
"""
# As confluent-kafka's mock, but an address is all that it has.
MOCK = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1] + ".new")
path.write_text("127.0.0.1:9")
path.rename(sys.argv[1])
time.sleep(60)
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes(lambda name, line: None) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a cluster that does everything is asked for."""
    noted: list[Any] = []

    class Admin:
        def __init__(self, bootstrap_servers: str, request_timeout_ms: int) -> None:
            self._servers = bootstrap_servers

        async def start(self) -> None:
            noted.append(self._servers)

        async def close(self) -> None: ...

        async def find_coordinator(self, group: str) -> None: ...

        async def create_topics(self, topics: list[Any]) -> None:
            noted.append(("create", *(topic.name for topic in topics)))

        async def delete_topics(self, topics: list[str]) -> None:
            noted.append(("delete", *topics))

    monkeypatch.setattr(module, "AIOKafkaAdminClient", Admin)
    return noted


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The mock cluster's program, as if confluent-kafka 2 were installed."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2")
    monkeypatch.setattr(module, "_MOCK", tmp_path / "mock.py")
    (tmp_path / "mock.py").write_text(MOCK)
    return tmp_path / "mock.py"


def _programs(path: Path, storage: str, start: str, suffix: str = ".sh") -> dict[str, str]:
    for name, content in (("storage", storage), ("server-start", start)):
        program = path / f"kafka-{name}{suffix}"
        program.write_text(content)
        program.chmod(0o755)
    return {"PATH": str(path)}


@pytest.mark.parametrize("suffix", [".sh", ""])
def test_program_on_the_path(
    processes: Processes, path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A private node is formatted and started, has the topic, and is gone afterwards."""
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    with kafka_server(processes, _programs(path, STORAGE, START, suffix)) as found:
        assert (found.topic, found.what) == ("emails", "a private node of this machine's Kafka")
        assert asked[-1] == ("create", "emails")
        port = int(found.servers.rpartition(":")[2])
        assert accepts(port)
    assert not accepts(port)


def test_without_a_kafka_there_is_the_mock(processes: Processes, path: Path, mock: Path) -> None:
    """It is called a mock, and the services are told where it is."""
    with Kafka().server(processes, {"PATH": str(path)}) as server:
        assert server.what == "a mock Kafka (librdkafka's mock cluster, confluent-kafka 2)"
        assert server.environment == {"KAFKA_SERVERS": "127.0.0.1:9", "TOPIC": "emails"}


def test_kafka_that_does_not_start(processes: Processes, path: Path, mock: Path) -> None:
    """The mock takes its place, and that is told."""
    with kafka_server(processes, _programs(path, ENDS, ENDS)) as found:
        assert found.what.endswith("confluent-kafka 2; this machine's Kafka does not start)")


@pytest.mark.parametrize("is_installed", [True, False])
def test_none_at_all(
    processes: Processes, path: Path, mock: Path, is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what can be done."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    mock.write_text("raise SystemExit(1)")
    if not is_installed:
        monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(NoServer, match="QUEUEPROP_KAFKA_URL") as none, kafka_server(processes, {"PATH": ""}):
        pass
    assert "\n" not in str(none.value)


@pytest.mark.parametrize("url", ["kafka://there:9092,here:9092", "there:9092,here:9092"])
def test_given_server_is_left_as_it_was(url: str, processes: Processes, asked: list[Any]) -> None:
    """A topic of the demo's own, which is deleted."""
    with kafka_server(processes, {"QUEUEPROP_KAFKA_URL": url}) as found:
        assert (found.servers, found.what) == ("there:9092,here:9092", "the Kafka of QUEUEPROP_KAFKA_URL")
        assert asked[-1] == ("create", found.topic)
    assert asked[-1] == ("delete", found.topic)
    assert found.topic.startswith("emails-")


@pytest.mark.parametrize("url", ["kafka://127.0.0.1:1", "kafka://127.0.0.1:none"])
def test_given_server_that_is_not_there(url: str, processes: Processes, mock: Path) -> None:
    """It is not silently replaced by another."""
    with (
        pytest.raises(NoServer, match="does not answer"),
        kafka_server(processes, {"QUEUEPROP_KAFKA_URL": url}),
    ):
        pass


def test_mock_tells_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is complete when it is there; the cluster has the topic, and stays until it is ended."""
    asked_for: list[str] = []

    class Producer:
        def __init__(self, options: dict[str, object]) -> None: ...

        def list_topics(self, topic: str, timeout: float) -> Any:
            asked_for.append(topic)
            return SimpleNamespace(brokers={1: SimpleNamespace(host="127.0.0.1", port=9)})

    def end() -> None:
        raise SystemExit

    package = ModuleType("confluent_kafka")
    package.Producer = Producer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "confluent_kafka", package)
    monkeypatch.setattr(signal, "pause", end)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "address"), "emails"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(kafka_mock.__file__), run_name="__main__")
    assert [file.name for file in tmp_path.iterdir()] == ["address"]
    assert (tmp_path / "address").read_text() == "127.0.0.1:9"
    assert asked_for == ["emails"]

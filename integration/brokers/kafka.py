"""Apache Kafka on its ladder; where none can be had, librdkafka's mock cluster, which speaks the same protocol."""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.etree import ElementTree

from .broker import Broker, BrokerError, Protocol, Unavailable
from .container import ContainerBroker
from .ladder import Service
from .program import ProgramBroker

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_IMAGE = "confluentinc/cp-kafka:7.6.0"
_POM = Path(__file__).with_name("kafka_pom.xml")
_MOCK = Path(__file__).with_name("kafka_mock.py")

_API_VERSIONS, _METADATA = 18, 3


def addresses(url: str) -> str:
    """What clients call bootstrap servers: ``kafka://a:1,b:2`` is ``a:1,b:2``."""
    return urlsplit(url).netloc


def _handshake(url: str, timeout: float) -> None:
    """Ask for the versions of its protocol, and for the cluster: until it has a controller it makes no topics."""
    host, _, port = addresses(url).split(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as stream:
        _ask(stream, _API_VERSIONS, 0, b"")
        answer = _ask(stream, _METADATA, 1, struct.pack(">i", 0))
    [brokers] = struct.unpack_from(">i", answer)
    if brokers < 1:
        raise OSError("the cluster has no brokers yet")


def _ask(stream: socket.socket, key: int, version: int, body: bytes) -> bytes:
    request = struct.pack(">hhih", key, version, key, -1) + body
    stream.sendall(struct.pack(">i", len(request)) + request)
    [size] = struct.unpack(">i", _read(stream, 4))
    answer = _read(stream, size)
    if answer[:4] != struct.pack(">i", key):
        raise OSError("the server does not speak Kafka's protocol")
    return answer[4:]


def _read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise OSError("the server closed the connection without a word")
        data += more
    return data


_PROTOCOL = Protocol("Kafka", _handshake, patience=90)


class _Node(ProgramBroker):
    """A private node, broker and controller in one (KRaft), from the jars in a folder."""

    def __init__(self, java: str, jars: Path, what: str) -> None:
        super().__init__(_PROTOCOL, "native", what)
        self._java = [java, "-Xmx512m", "-Dlog4j2.level=WARN", "-cp", f"{jars}/*"]

    def _prepare(self, folder: Path) -> None:
        port, controller = self._port(), self._port()
        self.url = f"kafka://127.0.0.1:{port}"
        properties = folder / "kafka.properties"
        properties.write_text(_PROPERTIES.format(port=port, controller=controller, folder=folder))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
        done = subprocess.run(tool, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise BrokerError(
                f"{self} could not format its storage: {done.stdout[-500:]}{done.stderr[-500:]}"
            )

    def _run(self, folder: Path) -> None:
        self._program([*self._java, "kafka.Kafka", str(folder / "kafka.properties")])


_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
num.partitions=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


class _Mock(ProgramBroker):
    """It forgets everything with its process, and cannot come back on the same ports."""

    def __init__(self, what: str) -> None:
        super().__init__(_PROTOCOL, "embedded", what)

    def stop(self) -> None:
        if self._programs and self.folder is not None and (self.folder / "keep").exists():
            raise Unavailable(f"{self} cannot be started again where it was")
        super().stop()

    def close(self) -> None:
        if self.folder is not None:
            (self.folder / "keep").unlink(missing_ok=True)
        super().close()

    def _prepare(self, folder: Path) -> None:
        (folder / "keep").touch()

    def _run(self, folder: Path) -> None:
        address_file = folder / "addresses"
        self._program([sys.executable, str(_MOCK), str(address_file)])
        deadline = time.monotonic() + _PROTOCOL.patience
        while not address_file.exists() and not self._ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not address_file.exists():
            raise BrokerError(f"{self} did not tell its addresses{self._log_tail()}")
        self.url = f"kafka://{address_file.read_text()}"


class _Container(ContainerBroker):
    port = 9093  # KafkaContainer's own

    def __init__(self) -> None:
        super().__init__(_PROTOCOL, _IMAGE)

    def _make(self) -> DockerContainer:
        from testcontainers.community.kafka import KafkaContainer

        return KafkaContainer(self.what, port=self.port).with_kraft()

    def _url(self, host: str, port: int) -> str:
        return f"kafka://{host}:{port}"


def _native() -> Broker:
    java = shutil.which("java")
    if not java:
        raise Unavailable("java is not on the PATH")
    start = shutil.which("kafka-server-start.sh") or shutil.which("kafka-server-start")
    if start:
        jars = Path(start).resolve().parent.parent / "libs"
        if jars.is_dir():
            return _Node(java, jars, "Kafka on the PATH")
    version = _version()
    return _Node(java, _jars_by_maven(version), f"Kafka {version}")


def _version() -> str:
    name = "{http://maven.apache.org/POM/4.0.0}version"
    versions = [element.text or "" for element in ElementTree.parse(_POM).iter(name)]
    return versions[1]  # the project's own comes first


def _jars_by_maven(version: str) -> Path:
    """The jars, from the cache between runs or by Maven."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jars = home / "queueprop" / f"kafka-{version}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if not maven:
        raise Unavailable(f"neither Kafka's jars ({jars}) nor mvn are there")
    jars.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, and moved as a whole: another process of the tests may fetch them, too.
    fetched = Path(tempfile.mkdtemp(prefix=f"{jars.name}-", dir=jars.parent))
    try:
        command = [
            maven,
            "-q",
            "-B",
            "-f",
            str(_POM),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={fetched}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise Unavailable(f"Maven could not fetch Kafka's jars: {done.stdout.strip()[-300:]}")
        if not jars.is_dir():
            fetched.rename(jars)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return jars


def _embedded() -> Broker:
    if importlib.util.find_spec("confluent_kafka") is None:
        raise Unavailable("the package confluent-kafka is not installed")
    return _Mock("librdkafka's mock cluster")


KAFKA = Service(
    _PROTOCOL,
    "QUEUEPROP_KAFKA_URL",
    {"containers": _Container, "native": _native, "embedded": _embedded},
)

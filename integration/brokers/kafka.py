"""Apache Kafka on its ladder; where none can be had, librdkafka's mock cluster, which speaks the same protocol."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

from .broker import Broker, BrokerError, Protocol, Unavailable
from .container import ContainerBroker
from .java import SHORT_LIVED, jars, java
from .ladder import Service
from .program import Port, ProgramBroker

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_IMAGE = "confluentinc/cp-kafka:7.6.0"
_POM = Path(__file__).with_name("kafka_pom.xml")
_MOCK = Path(__file__).with_name("kafka_mock.py")

_OFFSETS = "__consumer_offsets"

_OFFSET_FETCH, _METADATA, _API_VERSIONS = 9, 3, 18
_LOADING, _NOT_COORDINATOR = 14, 16  # errors


def addresses(url: str) -> str:
    """What clients call bootstrap servers: ``kafka://a:1,b:2`` is ``a:1,b:2``."""
    return urlsplit(url).netloc


def _handshake(url: str, timeout: float) -> None:
    """Ask for the cluster, which makes no topics until it has brokers, and for the offsets of a group."""
    found = _metadata(url, timeout)
    if not found.ports:
        raise OSError("the cluster has no brokers yet")
    has_groups = any(topic == _OFFSETS for topic, *_ in found.partitions)
    _check_groups(url, timeout, is_coordinator=has_groups and len(found.ports) == 1)


def _check_groups(url: str, timeout: float, *, is_coordinator: bool) -> None:
    """A broker that still loads its groups says so, and aiokafka 0.14 takes it for: nothing was ever committed."""
    group, topic, one = b"\0\6nobody", b"\0\7nothing", struct.pack(">i", 1)
    answer = _request(url, timeout, _OFFSET_FETCH, 1, group + one + topic + one + struct.pack(">i", 0))
    answer.number(">i"), answer.text(), answer.number(">ii"), answer.number(">q"), answer.text()
    error = answer.number(">h")
    if error == _LOADING or (is_coordinator and error == _NOT_COORDINATOR):
        raise OSError("the groups are not loaded yet")


def _member_handshake(url: str, timeout: float) -> None:
    """A node of a cluster is back when it is one of the brokers and has again what it is to keep."""
    _handshake(url, timeout)
    found = _metadata(url, timeout)
    own = [number for number, port in found.ports.items() if port == urlsplit(url).port]
    if not own:
        raise OSError("the cluster does not count the node yet")
    for topic, replicas, in_sync in found.partitions:
        if own[0] in replicas and own[0] not in in_sync:
            raise OSError(f"the node is behind with {topic}")


class _Metadata(NamedTuple):
    """``ports`` by the numbers of the nodes; of each partition the topic, its replicas, and those in sync."""

    ports: Mapping[int, int]
    partitions: Sequence[tuple[str, Sequence[int], Sequence[int]]]


def _metadata(url: str, timeout: float) -> _Metadata:
    answer = _request(url, timeout, _METADATA, 1, struct.pack(">i", -1))
    ports = {}
    for _ in range(answer.number(">i")):
        number, _, ports[number], _ = answer.number(">i"), answer.text(), answer.number(">i"), answer.text()
    answer.number(">i")  # the controller
    partitions = []
    for _ in range(answer.number(">i")):
        _, topic, _ = answer.number(">h"), answer.text(), answer.number(">b")
        for _ in range(answer.number(">i")):
            answer.number(">hii")  # an error, the partition, its leader
            partitions.append((topic, answer.numbers(), answer.numbers()))
    return _Metadata(ports, partitions)


def _request(url: str, timeout: float, key: int, version: int, body: bytes) -> _Answer:
    """Asks the first of the addresses, and before that for the versions of its protocol, as clients do."""
    host, _, port = addresses(url).split(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as stream:
        _ask(stream, _API_VERSIONS, 0, b"")
        return _Answer(_ask(stream, key, version, body))


class _Answer:
    """Reads an answer from its first byte to its last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> int:
        """The first of the numbers in this form of ``struct``."""
        self._at += struct.calcsize(form)
        return int(struct.unpack_from(form, self._data, self._at - struct.calcsize(form))[0])

    def numbers(self) -> list[int]:
        return [self.number(">i") for _ in range(self.number(">i"))]

    def text(self) -> str:
        size = max(self.number(">h"), 0)  # -1 is nothing
        self._at += size
        return self._data[self._at - size : self._at].decode()


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
_MEMBER_PROTOCOL = replace(_PROTOCOL, handshake=_member_handshake)


class _Kafka(NamedTuple):
    """What a node is made of."""

    java: str
    jars: Path
    what: str

    def command(self, megabytes: int) -> list[str]:
        options = (f"-Xmx{megabytes}m", SHORT_LIVED, "-XX:+UseSerialGC", "-Dlog4j2.level=WARN")
        return [self.java, *options, "-cp", f"{self.jars}/*"]


class _Quorum:
    """What the nodes of one cluster agree on: its id, and where their controllers answer."""

    def __init__(self, size: int) -> None:
        self.id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.controllers = [Port() for _ in range(size)]

    @property
    def properties(self) -> str:
        """A cluster of three works on without one of them, whichever that is."""
        size = len(self.controllers)
        voters = (f"{number}@127.0.0.1:{port.number}" for number, port in enumerate(self.controllers, 1))
        return _QUORUM_PROPERTIES.format(voters=",".join(voters), size=size, majority=size // 2 + 1)


class Node(ProgramBroker):
    """A private node, broker and controller in one (KRaft), alone or one of a cluster.

    ``number`` is its id in the cluster, from 1. A node of a cluster may be stopped in order (``stop()``, SIGTERM)
    or killed (``kill()``, SIGKILL), and started again on its port with what it had on disk (``start()``).
    """

    def __init__(self, kafka: _Kafka, quorum: _Quorum | None = None, number: int = 1) -> None:
        super().__init__(_PROTOCOL if quorum is None else _MEMBER_PROTOCOL, "native", kafka.what)
        self.number = number
        self._kafka = kafka
        self._quorum = quorum

    def _prepare(self, folder: Path) -> None:
        quorum = self._quorum or _Quorum(1)
        port, controller = self._port(), quorum.controllers[self.number - 1]
        self._ports.append(controller)
        self.url = f"kafka://127.0.0.1:{port}"
        properties = folder / "kafka.properties"
        own = _PROPERTIES.format(number=self.number, port=port, controller=controller.number, folder=folder)
        properties.write_text(own + quorum.properties)
        done = self._format(properties, quorum, "--feature=share.version=1")  # share groups, since 4.1
        if done.returncode:
            done = self._format(properties, quorum)
        if done.returncode:
            raise BrokerError(
                f"{self} could not format its storage: {done.stdout[-500:]}{done.stderr[-500:]}"
            )

    def _format(self, properties: Path, quorum: _Quorum, *options: str) -> subprocess.CompletedProcess[str]:
        tool = [*self._command(), "kafka.tools.StorageTool", "format"]
        tool += [
            f"--cluster-id={quorum.id}",
            f"--config={properties}",
            *options,
        ]  # an id may begin with a hyphen
        return subprocess.run(tool, capture_output=True, text=True, timeout=60, check=False)

    def _run(self, folder: Path) -> None:
        self._program([*self._command(), "kafka.Kafka", str(folder / "kafka.properties")])

    def _command(self) -> list[str]:
        return self._kafka.command(512 if self._quorum is None else 256)


class KafkaCluster:
    """Three nodes that keep every topic three times, and write when two of them have it.

    ``url`` names all of them, ``nodes`` are each to be stopped, killed and started; one at a time, or the
    others have no majority. ``str()`` tells what runs.
    """

    def __init__(self, kafka: _Kafka) -> None:
        quorum = _Quorum(3)
        self.nodes = [Node(kafka, quorum, number) for number in (1, 2, 3)]

    def __str__(self) -> str:
        return f"{self.nodes[0]}, a cluster of {len(self.nodes)}"

    @property
    def url(self) -> str:
        return f"kafka://{','.join(addresses(node.url) for node in self.nodes)}"

    def start(self) -> str:
        """Start every node, or those that do not run, and return the URL once all of them answer.

        Raises BrokerError when one ends or stays silent; nothing is left running then.
        """
        stopped = [node for node in self.nodes if not node.is_running]
        try:
            with ThreadPoolExecutor(len(self.nodes)) as threads:  # the first answers when it has a majority
                list(threads.map(Node.start, stopped))
            self._await_each_other()
        except BaseException:
            self.close()
            raise
        return self.url

    def _await_each_other(self) -> None:
        deadline = time.monotonic() + _MEMBER_PROTOCOL.patience
        while any(len(_metadata(node.url, 2.0).ports) < len(self.nodes) for node in self.nodes):
            if time.monotonic() >= deadline:
                raise BrokerError(f"the nodes of {self} did not find each other")
            time.sleep(0.05)

    def close(self) -> None:
        """Kill the nodes, since the last one would wait for the others, and remove what belongs to them."""
        for node in self.nodes:
            node.kill()
            node.close()


_PROPERTIES = """\
process.roles=broker,controller
node.id={number}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
num.partitions=1
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.share.min.heartbeat.interval.ms=500
group.share.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=4194304
"""

# A node that was killed is given up after four seconds instead of nine.
_QUORUM_PROPERTIES = """\
controller.quorum.voters={voters}
default.replication.factor={size}
min.insync.replicas={majority}
offsets.topic.replication.factor={size}
transaction.state.log.replication.factor={size}
transaction.state.log.min.isr={majority}
share.coordinator.state.topic.replication.factor={size}
share.coordinator.state.topic.min.isr={majority}
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
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
    """Its data and its port outlive ``stop()``; what it is configured by is written again at each start."""

    port = 9093  # KafkaContainer's own
    # Process 1 is a shell that waits for the server, and keeps signals from it.
    stop_command = ("sh", "-c", "kill $(grep -lz 'kafka[.]Kafka' /proc/[0-9]*/cmdline | cut -d/ -f3)")

    def __init__(self) -> None:
        super().__init__(_PROTOCOL, _IMAGE)

    def _make(self) -> DockerContainer:
        from testcontainers.community.kafka import KafkaContainer

        class WithoutWait(KafkaContainer):
            def tc_start(self) -> None:
                super().tc_start()
                self.wait_for = re.compile("")  # ours comes next: it has a deadline, and shows the log

        container = WithoutWait(self.what, port=self.port).with_kraft()
        for name in ("REPLICATION_FACTOR", "MIN_ISR"):
            container.with_env(f"KAFKA_TRANSACTION_STATE_LOG_{name}", "1")
        return container.with_env("JAVA_TOOL_OPTIONS", SHORT_LIVED)

    def _url(self, host: str, port: int) -> str:
        return f"kafka://{host}:{port}"


def kafka_cluster() -> KafkaCluster:
    """Three private nodes, not yet started. Raises Unavailable with the reason."""
    try:
        return KafkaCluster(_kafka())
    except Unavailable as reason:
        raise Unavailable(f"no cluster of Kafka for the tests (native: {reason})") from None


def _native() -> Broker:
    return Node(_kafka())


def _kafka() -> _Kafka:
    program = java()
    start = shutil.which("kafka-server-start.sh") or shutil.which("kafka-server-start")
    if start:
        libraries = Path(start).resolve().parent.parent / "libs"
        if libraries.is_dir():
            return _Kafka(program, libraries, "Kafka on the PATH")
    version = _version()
    return _Kafka(program, jars(_POM, f"kafka-{version}"), f"Kafka {version}")


def _version() -> str:
    name = "{http://maven.apache.org/POM/4.0.0}version"
    versions = [element.text or "" for element in ElementTree.parse(_POM).iter(name)]
    return versions[1]  # the project's own comes first


def _embedded() -> Broker:
    if importlib.util.find_spec("confluent_kafka") is None:
        raise Unavailable("the package confluent-kafka is not installed")
    return _Mock("librdkafka's mock cluster")


KAFKA = Service(
    _PROTOCOL,
    "QUEUEPROP_KAFKA_URL",
    {"containers": _Container, "native": _native, "embedded": _embedded},
    stand_ins=("embedded",),
)

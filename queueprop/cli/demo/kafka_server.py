"""A Kafka for the demo: QUEUEPROP_KAFKA_URL, else a private node of the Kafka on the PATH, else librdkafka's mock."""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import logging
import secrets
import shutil
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import STARTUP, Died, Process, Processes, accepts, free_port, until

_NONE = (
    "no Kafka to be had: confluent-kafka, whose mock cluster would do, is not installed or does not start{}. Install "
    "it, or a Kafka, so that its kafka-server-start.sh is on the PATH, or set QUEUEPROP_KAFKA_URL"
)

_TOPIC = "emails"
_MOCK = Path(__file__).with_name("kafka_mock.py")


class Found(NamedTuple):
    servers: str
    """As clients take them: host:port, separated by commas."""

    topic: str
    """A topic for the demo alone, with one partition at least. It is gone afterwards."""

    what: str


@contextmanager
def kafka_server(processes: Processes, environ: Mapping[str, str]) -> Iterator[Found]:
    """The first that can be had. Raises NoServer."""
    given = environ.get("QUEUEPROP_KAFKA_URL", "").strip()
    if given:
        with _topic_on(given.rpartition("://")[2].rstrip("/")) as found:
            yield found
        return
    found, server = _private(processes, environ)
    try:
        yield found
    finally:
        processes.stop(server)


@contextmanager
def _topic_on(servers: str) -> Iterator[Found]:
    if not _ask(servers):
        raise NoServer("the Kafka that QUEUEPROP_KAFKA_URL names does not answer")
    topic = f"{_TOPIC}-{secrets.token_hex(4)}"
    _ask(servers, _creation(topic))  # where that is not allowed, its first use may create it
    try:
        yield Found(servers, topic, "the Kafka of QUEUEPROP_KAFKA_URL")
    finally:
        _ask(servers, lambda admin: admin.delete_topics([topic]))


def _private(processes: Processes, environ: Mapping[str, str]) -> tuple[Found, Process]:
    programs = _programs(environ)
    remark = ""
    if programs is not None:
        try:
            servers, server = _start(programs, processes)
            return Found(servers, _TOPIC, "a private node of this machine's Kafka"), server
        except (Died, OSError, TimeoutError):
            remark = "; this machine's Kafka does not start"
    try:
        version = importlib.metadata.version("confluent-kafka")
        servers, server = _start_mock(processes)
    except (Died, OSError, TimeoutError, importlib.metadata.PackageNotFoundError):
        raise NoServer(_NONE.format(remark)) from None
    what = f"a mock Kafka (librdkafka's mock cluster, confluent-kafka {version}{remark})"
    return Found(servers, _TOPIC, what), server


class _Programs(NamedTuple):
    storage: str
    start: str


def _programs(environ: Mapping[str, str]) -> _Programs | None:
    """Kafka's own scripts, by their names in its archive, or in packages."""
    path = environ.get("PATH")
    for suffix in (".sh", ""):
        storage = shutil.which(f"kafka-storage{suffix}", path=path)
        start = shutil.which(f"kafka-server-start{suffix}", path=path)
        if storage is not None and start is not None:
            return _Programs(storage, start)
    return None


def _start(programs: _Programs, processes: Processes) -> tuple[str, Process]:
    """A node that is broker and controller in one, with ports and folders of its own."""
    port, folder = free_port(), processes.folder
    servers = f"127.0.0.1:{port}"
    properties = folder / "kafka.properties"
    properties.write_text(_PROPERTIES.format(port=port, controller=free_port(), folder=folder))
    environment = {
        **dict.fromkeys(("KAFKA_OPTS", "KAFKA_JMX_OPTS", "KAFKA_LOG4J_OPTS", "JMX_PORT"), ""),
        "KAFKA_HEAP_OPTS": "-Xmx512m",
        "LOG_DIR": str(folder / "kafka-log"),
    }
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    script = '"$1" format --cluster-id="$3" --config="$4" && exec "$2" "$4"'
    command = ["/bin/sh", "-c", script, "kafka", *programs, cluster, str(properties)]
    server = processes.start("kafka", command, environment)
    # A new cluster has coordinators of groups some time after it has begun to answer.
    until(
        "the server",
        lambda: accepts(port) and _ask(servers, lambda admin: admin.find_coordinator(_TOPIC)),
        STARTUP,
        server,
    )
    _ask(servers, _creation(_TOPIC))
    return servers, server


_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/kafka-data
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
"""


def _start_mock(processes: Processes) -> tuple[str, Process]:
    address_file = processes.folder / "kafka-address"
    server = processes.start("kafka-mock", [sys.executable, "-I", str(_MOCK), str(address_file), _TOPIC], {})
    until("the mock cluster", address_file.exists, STARTUP, server)
    return address_file.read_text(), server


_Request = Callable[[Any], Awaitable[object]]


def _creation(topic: str) -> _Request:
    return lambda admin: admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])


def _ask(servers: str, *requests: _Request) -> bool:
    """Whether the servers answer, and to each of these."""
    # aiokafka logs an error for each server that it does not reach: nobody's, as long as it is not shown.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())

    async def ask() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=5000)
        try:
            await admin.start()
            for request in requests:
                await request(admin)
        finally:
            await admin.close()

    try:
        asyncio.run(ask())
    except Exception:  # of the connection, of an address that is none, and of what a mock does not know
        return False
    return True

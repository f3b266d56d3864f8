"""Servers that are in a package: no broker of the machine's is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import Processes
from queueprop.cli.demo.redis_server import redis_server


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    """An embedded Valkey of the module's own."""
    with Processes(lambda name, line: None) as running:
        try:
            with redis_server(running, {}) as found:
                yield found.url
        except NoServer as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="module")
def mock_kafka_url() -> Iterator[str]:
    """librdkafka's mock cluster, in this process. It keeps topics that are asked for, and administers none."""
    kafka = pytest.importorskip("confluent_kafka")
    # The type of C: what is traced has a producer of Python in its place.
    cluster = kafka.cimpl.Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = cluster.list_topics(timeout=60).brokers.values()
    yield f"kafka://{broker.host}:{broker.port}"
    del cluster  # it lives as long

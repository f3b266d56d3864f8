"""What every test of aiokafka is given: spans, how it is traced, the servers and a topic of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiokafka")  # and else skips this folder

from integration.aiokafka.programs import Program, Tracing, create_topic
from integration.brokers import Broker
from integration.brokers.kafka import addresses
from integration.contract.telemetry import DEADLINE, telemetry
from integration.live import NOTHING, Spans, current, unique
from queueprop import Settings


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    with telemetry(tmp_path / "records.jsonl") as told:
        yield Spans(told)


@pytest.fixture
def settings() -> Settings | None:
    return None


@pytest.fixture(params=["instrumentor", "explicit"])
def tracing(request: pytest.FixtureRequest, spans: Spans, settings: Settings | None) -> Iterator[Tracing]:
    with Tracing(request.param, settings).on() as tracing:
        yield tracing


@pytest.fixture(params=["instrumentor", "explicit"])
def as_without(
    request: pytest.FixtureRequest, spans: Spans, settings: Settings | None
) -> Callable[[Program], Any]:
    """Runs a program without queueprop and with it. What it tells must be the same, and is given back."""

    def run(program: Program) -> Any:
        plain = asyncio.run(asyncio.wait_for(program(Tracing("plain")), DEADLINE))
        assert spans.everything == []
        with Tracing(request.param, settings).on() as tracing:
            traced = asyncio.run(asyncio.wait_for(program(tracing), DEADLINE))
        assert traced == plain
        assert current() == NOTHING
        return plain

    return run


@pytest.fixture
def servers(kafka_broker: Broker) -> str:
    return addresses(kafka_broker.url)


@pytest.fixture
def real_servers(kafka_broker: Broker) -> str:
    """For what librdkafka's mock cluster has not: it takes messages of every size, answers what is sent without acks,
    breaks the CRC of transactional batches, and gathers a group in three seconds, once.
    """
    if kafka_broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster does this unlike Kafka; see real_servers")
    return addresses(kafka_broker.url)


@pytest.fixture
def topic() -> str:
    return unique("orders")


@pytest.fixture
def narrow_topic(kafka_broker: Broker, servers: str) -> str:
    """One partition, however many the broker gives to a topic that it makes by itself."""
    return _made(kafka_broker, servers, partitions=1)


@pytest.fixture
def wide_topic(kafka_broker: Broker, servers: str) -> str:
    """Four partitions, as every topic of the mock cluster has them."""
    return _made(kafka_broker, servers, partitions=4)


def _made(broker: Broker, servers: str, partitions: int) -> str:
    topic = unique("orders")
    if broker.rung != "embedded":
        asyncio.run(create_topic(servers, topic, partitions))
    return topic

"""What the tests of every language are given: spans, a Python side of each library, and queues of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pika")  # and else skips this folder
pytest.importorskip("kombu")
pytest.importorskip("aio_pika")
pytest.importorskip("aiokafka")

from integration.contract.telemetry import Telemetry, telemetry
from integration.live import Spans, unique
from integration.peers.programs import AioKafka, AioPika, Kombu, Pika, Python
from queueprop import Settings


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Telemetry]:
    with telemetry(tmp_path / "told.jsonl") as told:
        yield told


@pytest.fixture
def spans(told: Telemetry) -> Spans:
    return Spans(told)


@pytest.fixture(params=[Pika, Kombu, AioPika, AioKafka], ids=["pika", "kombu", "aio_pika", "aiokafka"])
def plain_python(request: pytest.FixtureRequest, told: Telemetry) -> Python:
    """Without queueprop."""
    broker = request.getfixturevalue(f"{request.param.broker}_broker")
    if broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster cannot be asked to make a topic")
    python: Python = request.param(broker.url)
    return python


@pytest.fixture
def python(plain_python: Python) -> Iterator[Python]:
    """With the library's instrumentor on."""
    plain_python.instrumentor().instrument(settings=Settings())
    yield plain_python
    plain_python.instrumentor().uninstrument()


@pytest.fixture
def queues(plain_python: Python) -> Iterator[list[str]]:
    names = [unique("orders"), unique("payments")]
    for name in names:
        plain_python.make(name)
    yield names
    for name in names:
        plain_python.remove(name)

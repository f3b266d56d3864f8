"""The rounds of the doctor: each library's message in one trace, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import Future
from typing import Any

import pytest
from redis import Redis

from queueprop.cli import urls
from queueprop.cli.doctor import rounds, trial
from queueprop.cli.doctor.findings import Finding


def _finding(library: str, broker: urls.BrokerURL) -> Finding:
    if not trial._is_installed(library):
        pytest.skip(f"{library} is not installed")
    return trial._finding(library, rounds.ROUNDS[broker.kind][library], broker)


@pytest.mark.parametrize("library", sorted(rounds.ROUNDS["redis"]))
def test_on_redis(library: str, valkey_url: str) -> None:
    """RQ's, BullMQ's and kombu's, on a real server."""
    found = _finding(library, urls.parse(valkey_url))
    assert found.level == "ok", found
    with Redis.from_url(valkey_url) as connection:
        left = [key for key in connection.scan_iter() if connection.ttl(key) == -1]
    assert left == []


def test_a_job_that_is_not_taken(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a problem, and is taken away again."""
    worker = importlib.import_module("queueprop.adapters.rq").TracedSimpleWorker
    monkeypatch.setattr(worker, "work", lambda self, **options: None)
    found = _finding("rq", urls.parse(valkey_url))
    assert "was not taken" in found.text
    with Redis.from_url(valkey_url) as connection:
        assert [key for key in connection.scan_iter() if b"queue:" in key] == []


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step waits for ever."""
    monkeypatch.setattr(rounds, "LONGEST", 0.01)
    with pytest.raises(rounds.NothingCame, match="no answer"):
        asyncio.run(rounds._in_time(asyncio.sleep(60)))


# RabbitMQ


AMQP = urls.parse("amqp://127.0.0.1:1")


def test_kombu_on_rabbitmq() -> None:
    """Its exchange goes as well; in memory here."""
    assert _finding("kombu", urls.BrokerURL("rabbitmq", "memory://", "memory://")).level == "ok"


class _Channel:
    """pika's, with one queue."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def confirm_delivery(self) -> None: ...

    def queue_declare(self, queue: str, exclusive: bool) -> None:
        assert exclusive

    def basic_publish(self, exchange: str, routing_key: str, body: bytes, properties: Any = None) -> None:
        from pika.spec import Basic

        self.waiting.append((Basic.GetOk(1, False, exchange, routing_key), properties, body))

    def basic_get(self, queue: str, auto_ack: bool) -> Any:
        return self.waiting.pop() if self.waiting else (None, None, None)


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> _Channel:
    pika = pytest.importorskip("pika")
    channel = _Channel()

    class Connection:
        def __init__(self, parameters: Any) -> None:
            assert parameters.socket_timeout == 10

        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None: ...

        def channel(self) -> _Channel:
            return channel

    monkeypatch.setattr(pika, "BlockingConnection", Connection)
    return channel


def test_pika(channel: _Channel) -> None:
    """What it published is what it handles."""
    assert _finding("pika", AMQP).level == "ok"


def test_pika_loses_a_message(channel: _Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is confirmed and not there is a problem."""
    monkeypatch.setattr(channel, "basic_get", lambda queue, auto_ack: (None, None, None))
    assert "is not there" in _finding("pika", AMQP).text


def test_aio_pika(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one connection, which is closed."""
    aio_pika = pytest.importorskip("aio_pika")
    from aiormq.abc import DeliveredMessage
    from pamqp.commands import Basic
    from pamqp.header import ContentHeader

    published: list[Any] = []
    closed = []

    class Exchange:
        async def publish(self, message: Any, routing_key: str) -> None:
            published.append((message, routing_key))

    class Queue:
        async def get(self, timeout: float) -> Any:
            (message, routing_key) = published.pop()
            delivered = DeliveredMessage(
                delivery=Basic.Deliver("tag", 1, False, "", routing_key),
                header=ContentHeader(properties=message.properties),
                body=message.body,
                channel=None,  # type: ignore[arg-type]
            )
            return aio_pika.IncomingMessage(delivered, no_ack=True)

    class Channel:
        default_exchange = Exchange()

        async def declare_queue(self, name: str, exclusive: bool) -> Queue:
            return Queue()

    class Connection:
        async def channel(self) -> Channel:
            return Channel()

        async def close(self) -> None:
            closed.append(True)

    async def connect(url: str, timeout: float) -> Connection:
        return Connection()

    async def ack(self: Any) -> None: ...

    monkeypatch.setattr(aio_pika, "connect", connect)
    monkeypatch.setattr(aio_pika.IncomingMessage, "ack", ack)
    found = _finding("aio-pika", AMQP)
    assert found.level == "ok", found
    assert closed == [True]


# Kafka


@pytest.fixture
def made() -> list[str]:
    """What was done to topics."""
    return []


@pytest.fixture
def aiokafka_admin(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    admin = pytest.importorskip("aiokafka.admin")

    class Admin:
        def __init__(self, bootstrap_servers: list[str]) -> None: ...

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def create_topics(self, topics: Any) -> None:
            made.append("made")

        async def delete_topics(self, topics: Any) -> None:
            made.append("gone")

    monkeypatch.setattr(admin, "AIOKafkaAdminClient", Admin)


def test_aiokafka(mock_kafka_url: str, aiokafka_admin: None, made: list[str]) -> None:
    """On librdkafka's mock cluster, which administers no topics."""
    found = _finding("aiokafka", urls.parse(mock_kafka_url))
    assert found.level == "ok", found
    assert made == ["made", "gone"]


@pytest.fixture
def confluent_admin(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    admin = pytest.importorskip("confluent_kafka.admin")

    class Admin:
        def __init__(self, options: Any) -> None: ...

        def list_topics(self, timeout: float) -> None: ...

        def create_topics(self, topics: Any) -> dict[str, Future[None]]:
            return self._done("made", topics[0].topic)

        def delete_topics(self, topics: list[str]) -> dict[str, Future[None]]:
            return self._done("gone", topics[0])

        def _done(self, what: str, topic: str) -> dict[str, Future[None]]:
            made.append(what)
            future: Future[None] = Future()
            future.set_result(None)
            return {topic: future}

    monkeypatch.setattr(admin, "AdminClient", Admin)


def test_confluent_kafka(mock_kafka_url: str, confluent_admin: None, made: list[str]) -> None:
    """On the same cluster."""
    found = _finding("confluent-kafka", urls.parse(mock_kafka_url))
    assert found.level == "ok", found
    assert made == ["made", "gone"]


def test_confluent_kafka_in_vain(
    mock_kafka_url: str, confluent_admin: None, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the broker takes nothing, gives nothing, or gives an error, the topic is gone all the same."""
    import confluent_kafka

    broker = urls.parse(mock_kafka_url)
    monkeypatch.setattr(rounds, "_polled", _error_of_partition)
    assert "KafkaException" in _finding("confluent-kafka", broker).text
    monkeypatch.undo()
    monkeypatch.setattr(rounds, "_TIMEOUT", 0.0)

    class Producer(confluent_kafka.Producer):
        def flush(self, timeout: float = 0) -> int:
            return 1

    monkeypatch.setattr(confluent_kafka, "Producer", Producer)
    assert "did not take the message" in trial._finding("x", _confluent_without_admin, broker).text
    with pytest.raises(rounds.NothingCame, match="did not give the message"):
        rounds._polled(None, 0.0)


def _error_of_partition(consumer: Any, deadline: float) -> Any:
    from confluent_kafka import KafkaError

    class Message:
        def error(self) -> Any:
            return KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)

    return Message()


def _confluent_without_admin(broker: Any, queue: str, settings: Any) -> Any:
    patch = pytest.MonkeyPatch()
    admin = importlib.import_module("confluent_kafka.admin")

    class Admin:
        def __init__(self, options: Any) -> None: ...

        def list_topics(self, timeout: float) -> None: ...

        def create_topics(self, topics: Any) -> Any:
            return {queue: _Done()}

        delete_topics = create_topics

    patch.setattr(admin, "AdminClient", Admin)
    try:
        yield from rounds.ROUNDS["kafka"]["confluent-kafka"](broker, queue, settings)
    finally:
        patch.undo()


class _Done:
    def result(self, timeout: float) -> None: ...


def test_a_poll_that_gives_nothing_yet() -> None:
    """It is asked again until there is a message."""

    class Consumer:
        answers = iter([None, "message"])

        def poll(self, timeout: float) -> Any:
            return next(self.answers)

    import time

    assert rounds._polled(Consumer(), time.monotonic() + 10) == "message"

"""``queueprop peek`` on live brokers, as a person runs it: what waits there, and that it is as it was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider

from integration.live import unique
from queueprop import Settings

for _module in ("click", "rich"):
    pytest.importorskip(_module, reason='pip install "queueprop[cli]"')

COMMAND = [sys.executable, "-c", "import sys; from queueprop.cli import main; sys.exit(main())", "peek"]
PROVIDER = TracerProvider(shutdown_on_exit=False)
SETTINGS = Settings(tracer_provider=PROVIDER)
BAGGAGE = {"tenant": "Jürgen M, 100%"}


class Peeked(NamedTuple):
    status: int
    output: str
    errors: str

    @property
    def queue(self) -> dict[str, Any]:
        """The one queue of its JSON."""
        (queue,) = json.loads(self.output)["queues"]
        return dict(queue)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.queue["messages"])


def peek(*arguments: str) -> Peeked:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=90, check=False
    )
    return Peeked(done.returncode, done.stdout, done.stderr)


@contextmanager
def request() -> Iterator[str]:
    """What a producer does something for: a span, and baggage. Gives its trace."""
    with PROVIDER.get_tracer("test").start_as_current_span("request") as span:
        token = context.attach(baggage.set_baggage("tenant", BAGGAGE["tenant"]))
        try:
            yield trace.format_trace_id(span.get_span_context().trace_id)
        finally:
            context.detach(token)


# Redis


def _rq(url: str, queue: str) -> str:
    from redis import Redis
    from rq import Queue

    from queueprop.adapters.rq import traced_publish

    with Redis.from_url(url) as connection:
        jobs = Queue(queue, connection=connection)
        with request() as trace_id:
            traced_publish(jobs.enqueue, settings=SETTINGS)("shop.send_mail", "secret")
        jobs.enqueue("shop.send_mail", "plain")
    return trace_id


def _dramatiq(url: str, queue: str) -> str:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    from queueprop.adapters.dramatiq import QueuepropMiddleware

    plain: Any = RedisBroker(url=url)
    traced: Any = RedisBroker(url=url)
    traced.add_middleware(QueuepropMiddleware(SETTINGS))
    for broker in (traced, plain):
        actor: Any = dramatiq.actor(broker=broker, queue_name=queue, actor_name="send_mail")(_send_mail)
        with request() as trace_id:
            actor.send("secret")
        if broker is traced:
            kept = trace_id
        broker.close()
    return kept


def _send_mail(address: str) -> None: ...


def _bullmq(url: str, queue: str) -> str:
    from bullmq import Queue

    from queueprop.adapters.bullmq import traced_publish

    async def publish() -> str:
        jobs = Queue(queue, {"connection": url})
        with request() as trace_id:
            await traced_publish(jobs.add, settings=SETTINGS)("send_mail", {"to": "secret"})
        await jobs.add("send_mail", {"to": "plain"})
        await jobs.close()
        return trace_id

    return asyncio.run(publish())


def _celery(url: str, queue: str) -> str:
    from celery import Celery

    from queueprop.adapters.celery import traced_publish

    app: Any = Celery(broker=url)
    with request() as trace_id:
        traced_publish(app.send_task, settings=SETTINGS)("shop.send_mail", ("secret",), queue=queue)
    app.send_task("shop.send_mail", ("plain",), queue=queue)
    app.close()
    return trace_id


ON_REDIS: Mapping[str, Callable[[str, str], str]] = {
    "rq": _rq,
    "dramatiq": _dramatiq,
    "bullmq": _bullmq,
    "celery": _celery,
}


@pytest.mark.parametrize("library", ON_REDIS)
def test_what_waits_on_redis(library: str, redis_url: str) -> None:
    """Who sent what, in which trace, with which baggage, and what has no context: of each library's own messages. All
    keys are as they were, and no payload is shown.
    """
    pytest.importorskip(library)
    queue = unique("emails")
    trace_id = ON_REDIS[library](redis_url, queue)
    before = _dumped(redis_url, queue)
    peeked = peek(redis_url, queue, "--json")
    assert peeked.status == 0, peeked.errors
    assert _dumped(redis_url, queue) == before
    assert peeked.queue["waiting"] == 2
    first, second = peeked.messages
    assert (first["context"], first["trace_id"], first["sampled"]) == ("ok", trace_id, True)
    assert first["baggage"] == BAGGAGE
    assert "send_mail" in first["name"]
    assert 0 <= first["age"] < 60
    assert second["context"] == "missing"
    assert "trace_id" not in second
    assert "secret" not in peeked.output + peeked.errors
    assert "secret" in peek(
        redis_url, queue, "--json", "--bodies", "--library", library
    ).output or library in (
        "celery",  # whose bodies are base64
        "rq",  # whose bodies are pickles of text, escaped
    )


def test_lines_for_a_person(redis_url: str) -> None:
    """A line for each message, and one that counts those without a context."""
    pytest.importorskip("rq")
    queue = unique("emails")
    trace_id = _rq(redis_url, queue)
    peeked = peek(redis_url, queue)
    assert peeked.status == 0, peeked.errors
    headline, first, carried, second, last = peeked.output.splitlines()
    assert headline == f"{queue} at {redis_url} (RQ): 2 waiting"
    assert f"trace {trace_id}" in first
    assert "s ago  shop.send_mail" in first
    assert carried.strip() == f"baggage tenant={BAGGAGE['tenant']}"
    assert "no context" in second
    assert last.startswith("1 of 2 without a context")
    assert peek(redis_url, queue, "--limit", "1").output.startswith(
        f"{queue} at {redis_url} (RQ): 1 of 2 waiting"
    )


def test_meta_that_would_run_code(redis_url: str) -> None:
    """A pickle that calls something when it is loaded is read without that."""
    pytest.importorskip("rq")
    import os
    import pickle

    from redis import Redis
    from rq import Queue

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("echo it ran",)

    queue = unique("emails")
    with Redis.from_url(redis_url) as connection:
        job = Queue(queue, connection=connection).enqueue("shop.send_mail")
        parts = {"evil": Evil(), "queueprop": {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}}
        connection.hset(job.key, "meta", pickle.dumps(parts))
    peeked = peek(redis_url, queue, "--json")
    assert peeked.status == 0, peeked.errors
    assert peeked.messages[0]["trace_id"] == "1" * 32
    assert "it ran" not in peeked.output + peeked.errors


def test_no_such_queue_on_redis(redis_url: str) -> None:
    """A queue that is not there is one line, and the status 2."""
    _assert_refused(peek(redis_url, unique("nothing")), "there is no queue")


def _dumped(url: str, queue: str) -> dict[bytes, bytes]:
    from redis import Redis

    with Redis.from_url(url) as connection:
        return {key: connection.dump(key) for key in connection.scan_iter(f"*{queue}*")}


# RabbitMQ


@pytest.fixture
def pika_queue(rabbitmq_url: str) -> Iterator[tuple[Any, str]]:
    """A channel, and a queue of the test's own with two messages: one traced, one plain."""
    pika = pytest.importorskip("pika")
    queue = unique("emails")
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True)
    yield channel, queue
    channel.queue_delete(queue)
    connection.close()


def _publish_with_pika(channel: Any, queue: str) -> str:
    import pika

    from queueprop.adapters.pika import traced_publish

    properties = pika.BasicProperties(
        app_id="shop", message_id="first", timestamp=1_700_000_000, type="send_mail"
    )
    with request() as trace_id:
        traced_publish(channel.basic_publish, settings=SETTINGS)("", queue, b"secret", properties)
    channel.basic_publish("", queue, b"plain", pika.BasicProperties(message_id="second"))
    return trace_id


def test_rabbitmq_is_not_looked_at_without_yes(rabbitmq_url: str, pika_queue: tuple[Any, str]) -> None:
    """What a look would do is said, nothing is done, and the status is 2."""
    channel, queue = pika_queue
    _publish_with_pika(channel, queue)
    peeked = peek(rabbitmq_url, queue)
    _assert_refused(peeked, "marked as redelivered")
    assert "--yes" in peeked.errors
    method, _, body = channel.basic_get(queue, auto_ack=True)
    assert (body, method.redelivered) == (b"secret", False)


def test_what_waits_in_rabbitmq(rabbitmq_url: str, pika_queue: tuple[Any, str]) -> None:
    """With --yes: what it does is said first, messages are shown and given back, in their order, as redelivered."""
    channel, queue = pika_queue
    trace_id = _publish_with_pika(channel, queue)
    peeked = peek(rabbitmq_url, queue, "--yes", "--json")
    assert peeked.status == 0, peeked.errors
    assert "marked as redelivered" in peeked.errors
    first, second = peeked.messages
    assert (first["context"], first["trace_id"], first["baggage"]) == ("ok", trace_id, BAGGAGE)
    assert (first["sender"], first["name"], first["id"]) == ("shop", "send_mail", "first")
    assert first["sent_at"] == 1_700_000_000
    assert (second["id"], second["context"]) == ("second", "missing")
    assert "secret" not in peeked.output
    found = [channel.basic_get(queue, auto_ack=True) for _ in range(3)]
    assert [body for _, _, body in found] == [b"secret", b"plain", None]
    assert [method.redelivered for method, _, _ in found[:2]] == [True, True]


def test_a_limit_leaves_the_others_alone(rabbitmq_url: str, pika_queue: tuple[Any, str]) -> None:
    """What is beyond the limit is not taken, and so not marked."""
    channel, queue = pika_queue
    _publish_with_pika(channel, queue)
    peeked = peek(rabbitmq_url, queue, "--yes", "--json", "--limit", "1")
    assert [message["id"] for message in peeked.messages] == ["first"]
    assert peeked.queue["waiting"] == 2
    assert [channel.basic_get(queue, auto_ack=True)[0].redelivered for _ in range(2)] == [True, False]


def test_an_empty_queue_of_rabbitmq(rabbitmq_url: str, pika_queue: tuple[Any, str]) -> None:
    """There is nothing to take, so nothing has to be allowed."""
    _, queue = pika_queue
    peeked = peek(rabbitmq_url, queue)
    assert (peeked.status, peeked.errors) == (0, "")
    assert peeked.output == f"{queue} at {_without_password(rabbitmq_url)} (RabbitMQ): 0 waiting\n"


def test_a_stream_of_rabbitmq(rabbitmq_url: str, pika_queue: tuple[Any, str]) -> None:
    """A stream is read from its beginning, twice, and nothing changes."""
    channel, _ = pika_queue
    stream = unique("events")
    channel.queue_declare(stream, durable=True, arguments={"x-queue-type": "stream"})
    try:
        trace_id = _publish_with_pika(channel, stream)
        for _ in range(2):
            peeked = peek(rabbitmq_url, stream, "--yes", "--json")
            assert peeked.status == 0, peeked.errors
            assert peeked.queue["library"] == "RabbitMQ, a stream"
            assert [message.get("trace_id") for message in peeked.messages] == [trace_id, None]
    finally:
        channel.queue_delete(stream)


def test_no_such_queue_in_rabbitmq(rabbitmq_url: str) -> None:
    """A queue that is not there is one line, and the status 2."""
    _assert_refused(peek(rabbitmq_url, unique("nothing"), "--yes"), "NOT_FOUND")


def test_a_wrong_password(rabbitmq_url: str) -> None:
    """What the broker says is told in one line, without the password."""
    scheme, _, place = rabbitmq_url.partition("://")
    url = f"{scheme}://guest:opensesame@{place.rpartition('@')[2]}"
    peeked = peek(url, "orders", "--yes")
    _assert_refused(peeked, "ACCESS_REFUSED")
    assert "opensesame" not in peeked.errors


def _without_password(url: str) -> str:
    scheme, _, place = url.partition("://")
    login, at, host = place.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}:***@{host}" if at else url


# Kafka


def _publish_to_kafka(url: str, topic: str) -> str:
    from aiokafka import AIOKafkaProducer

    from queueprop.adapters.aiokafka import traced_publish

    async def publish() -> str:
        producer = AIOKafkaProducer(bootstrap_servers=url.partition("://")[2])
        await producer.start()
        with request() as trace_id:
            await traced_publish(producer.send_and_wait, settings=SETTINGS)(topic, b"secret", key=b"first")
        await producer.send_and_wait(topic, b"plain", key=b"second")
        await producer.stop()
        return trace_id

    return asyncio.run(publish())


def test_what_waits_in_kafka(kafka_broker: Any) -> None:
    """The newest records of a topic, with their contexts, keys and offsets."""
    pytest.importorskip("aiokafka")
    topic = unique("emails")
    trace_id = _publish_to_kafka(kafka_broker.url, topic)
    peeked = peek(kafka_broker.url, topic, "--json")
    assert peeked.status == 0, peeked.errors
    first, second = peeked.messages
    assert (first["context"], first["trace_id"], first["baggage"]) == ("ok", trace_id, BAGGAGE)
    assert (first["name"], first["place"]) == ("first", "partition 0, offset 0")
    assert (second["context"], second["name"]) == ("missing", "second")
    assert "secret" not in peeked.output


def test_what_waits_for_a_group(kafka_broker: Any) -> None:
    """Of a group: what it has not committed, which stays so."""
    pytest.importorskip("aiokafka")
    if kafka_broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster tells no offsets of a group")
    topic, group = unique("emails"), unique("mailers")
    _publish_to_kafka(kafka_broker.url, topic)
    asyncio.run(_consume_one(kafka_broker.url, topic, group))
    for _ in range(2):  # the first look has changed nothing
        peeked = peek(kafka_broker.url, topic, "--json", "--group", group)
        assert peeked.status == 0, peeked.errors
        assert peeked.queue["waiting"] == 1
        assert [message["name"] for message in peeked.messages] == ["second"]


async def _consume_one(url: str, topic: str, group: str) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=url.partition("://")[2],
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    record = await consumer.getone()
    await consumer.commit({TopicPartition(topic, record.partition): record.offset + 1})
    await consumer.stop()


def test_no_such_topic(kafka_broker: Any) -> None:
    """A topic that is not there is one line and the status 2, and is not made by asking for it."""
    pytest.importorskip("aiokafka")
    topic = unique("nothing")
    _assert_refused(peek(kafka_broker.url, topic), "there is no topic")
    _assert_refused(peek(kafka_broker.url, topic), "there is no topic")


# What cannot be looked at


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "amqp://127.0.0.1:1", "kafka://127.0.0.1:1"])
def test_a_broker_that_is_down(url: str) -> None:
    """One line, and the status 2."""
    _assert_refused(peek(url, "orders", "--yes"), "does not answer")


def _assert_refused(peeked: Peeked, text: str) -> None:
    assert peeked.status == 2, peeked
    assert peeked.output == ""
    assert text in peeked.errors
    assert peeked.errors.count("\n") <= 2, peeked.errors
    assert "Traceback" not in peeked.errors

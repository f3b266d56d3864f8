"""One message by each library's own client: published into a queue of the doctor's own, and handled.

A round is a generator of three steps. The first connects, the second publishes, and the third, which is outside of
whatever the second one was in, takes the message and handles it. Nothing is left behind, wherever it ends. The explicit
API does the tracing: nothing is patched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from queueprop.cli.urls import BrokerURL, Kind
from queueprop.settings import Settings

LONGEST = 15.0
"""Seconds that one step may take."""

Round = Callable[[BrokerURL, str, Settings], Generator[None, None, None]]
_BODY = b"queueprop doctor"
_TIMEOUT = 10.0
T = TypeVar("T")


class NothingCame(Exception):
    """The message that was published did not come."""


def _pika(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from pika import BlockingConnection, URLParameters

    from queueprop.adapters.pika import traced_message, traced_publish

    parameters = URLParameters(broker.url)
    parameters.socket_timeout = parameters.blocked_connection_timeout = _TIMEOUT
    with BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, exclusive=True)  # it goes with the connection
        yield
        traced_publish(channel.basic_publish, settings=settings)("", queue, _BODY)
        yield
        message = channel.basic_get(queue, auto_ack=True)
        if message[0] is None:
            raise NothingCame("the message was confirmed, and is not there")
        with traced_message(message, settings=settings):
            pass


def _aio_pika(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    import aio_pika

    from queueprop.adapters.aio_pika import traced_message, traced_publish

    # Both steps are on one connection, whose queue goes with it, and so in one loop.
    loop = asyncio.new_event_loop()

    async def connect() -> tuple[Any, Any, Any]:
        connection = await aio_pika.connect(broker.url, timeout=_TIMEOUT)
        channel = await connection.channel()
        return connection, channel, await channel.declare_queue(queue, exclusive=True)

    async def publish(channel: Any) -> None:
        send = traced_publish(channel.default_exchange.publish, settings=settings)
        await send(aio_pika.Message(_BODY), queue)

    async def handle(declared: Any) -> None:
        message = await declared.get(timeout=_TIMEOUT)
        with traced_message(message, settings=settings):
            await message.ack()

    with ExitStack() as stack:
        stack.callback(loop.close)
        connection, channel, declared = loop.run_until_complete(_in_time(connect()))
        stack.callback(lambda: loop.run_until_complete(connection.close()))
        yield
        loop.run_until_complete(_in_time(publish(channel)))
        yield
        loop.run_until_complete(_in_time(handle(declared)))


def _kombu(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from kombu import Connection

    from queueprop.adapters.kombu import traced_message, traced_publish

    with Connection(broker.url, connect_timeout=int(_TIMEOUT)) as connection:
        connection.ensure_connection(max_retries=1, timeout=_TIMEOUT)
        simple = connection.SimpleQueue(queue)
        try:
            yield
            traced_publish(simple.put, settings=settings)(_BODY.decode())
            yield
            message = simple.get(timeout=_TIMEOUT)
            with traced_message(message, settings=settings):
                message.ack()
        finally:
            simple.close()
            channel = connection.channel()
            simple.queue.bind(channel).delete()
            if broker.kind == "rabbitmq":
                simple.queue.exchange.bind(channel).delete()  # SimpleQueue has one of the same name


def _rq(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from redis import Redis
    from rq import Queue

    from queueprop.adapters.rq import TracedSimpleWorker, traced_publish

    class Worker(TracedSimpleWorker):
        queueprop_settings = settings

    # RQ waits for as long as a worker's time to live: there, a timeout of the socket would be in its way.
    with Redis.from_url(broker.url, socket_connect_timeout=_TIMEOUT) as connection:
        waiting = Queue(queue, connection=connection)
        connection.ping()
        try:
            yield
            enqueue = traced_publish(waiting.enqueue, settings=settings)
            job = enqueue("builtins.len", _BODY.decode(), result_ttl=0, failure_ttl=60)
            yield
            worker = Worker([waiting], connection=connection)
            worker.work(burst=True, logging_level="CRITICAL")
            connection.delete(worker.key)
            if Queue(queue, connection=connection).job_ids:
                raise NothingCame(f"the job {job.id} was not taken")
        finally:
            waiting.delete()
            connection.delete(*(f"rq:{name}:{queue}" for name in _REGISTRIES))


_REGISTRIES = (
    "clean_registries",
    "finished",
    "failed",
    "wip",
    "deferred",
    "scheduled",
    "canceled",
    "intermediate",
)


def _bullmq(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from bullmq import Queue, Worker

    from queueprop.adapters.bullmq import traced_consumer, traced_publish

    options: Any = {"connection": broker.url}

    async def publish() -> None:
        waiting = Queue(queue, options)
        try:
            await traced_publish(waiting.add, settings=settings)("queueprop doctor", {})
        finally:
            await waiting.close()

    async def handle() -> None:
        done = asyncio.Event()

        @traced_consumer(settings=settings)
        async def process(job: Any, token: str) -> None:
            return None

        performed: Any = process  # a coroutine function, whatever its annotation says
        worker = Worker(queue, performed, options)
        worker.on("completed", lambda *given: done.set())
        waiting = Queue(queue, options)
        try:
            await done.wait()
        finally:
            await worker.close()
            await waiting.obliterate()  # its "force" is broken in 2.15
            await waiting.close()

    yield  # each step has a connection of its own: a client belongs to its loop
    asyncio.run(_in_time(publish()))
    yield
    asyncio.run(_in_time(handle()))


def _aiokafka(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    from queueprop.adapters.aiokafka import traced_message, traced_publish

    servers: Any = broker.servers  # a list is taken, too

    async def administer(what: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        try:
            await what(admin)
        finally:
            await admin.close()

    async def publish() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=servers)
        await producer.start()
        try:
            await traced_publish(producer.send_and_wait, settings=settings)(queue, _BODY, partition=0)
        finally:
            await producer.stop()

    async def handle() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([TopicPartition(queue, 0)])
            record = await consumer.getone()
            with traced_message(record, settings=settings):
                pass
        finally:
            await consumer.stop()

    asyncio.run(_in_time(administer(lambda admin: admin.create_topics([NewTopic(queue, 1, 1)]))))
    try:
        yield
        asyncio.run(_in_time(publish()))
        yield
        asyncio.run(_in_time(handle()))
    finally:
        asyncio.run(_in_time(administer(lambda admin: admin.delete_topics([queue]))))


def _confluent_kafka(broker: BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    from queueprop.adapters.confluent_kafka import traced_message, traced_publish

    common: dict[str, Any] = {"bootstrap.servers": ",".join(broker.servers), "log_level": 0}
    admin = AdminClient(common)
    admin.list_topics(timeout=_TIMEOUT)
    admin.create_topics([NewTopic(queue, 1, 1)])[queue].result(_TIMEOUT)
    try:
        yield
        producer = Producer(common)
        traced_publish(producer.produce, settings=settings)(queue, _BODY, partition=0)
        if producer.flush(_TIMEOUT):
            raise NothingCame("the broker did not take the message in time")
        yield
        consumer = Consumer({**common, "group.id": queue, "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(queue, 0, 0)])
            message = _polled(consumer, time.monotonic() + _TIMEOUT)
            if message.error():
                raise KafkaException(message.error())
            with traced_message(message, settings=settings):
                pass
        finally:
            consumer.close()
    finally:
        admin.delete_topics([queue])[queue].result(_TIMEOUT)


def _polled(consumer: Any, deadline: float) -> Any:
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None:
            return message
    raise NothingCame("the broker did not give the message in time")


async def _in_time(step: Coroutine[Any, Any, T]) -> T:
    try:
        return await asyncio.wait_for(step, LONGEST)
    except (asyncio.TimeoutError, TimeoutError):
        raise NothingCame(f"there was no answer within {LONGEST:.0f} s") from None


ROUNDS: Mapping[Kind, Mapping[str, Round]] = {
    "rabbitmq": {"pika": _pika, "aio-pika": _aio_pika, "kombu": _kombu},
    "redis": {"rq": _rq, "bullmq": _bullmq, "kombu": _kombu},
    "kafka": {"aiokafka": _aiokafka, "confluent-kafka": _confluent_kafka},
}
"""Which libraries speak to which broker. (Celery is kombu's there, Dramatiq and FastStream are these clients'.)"""

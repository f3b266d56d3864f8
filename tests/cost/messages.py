"""The program of tests/test_cost.py: prints, as JSON, the calls of Python functions and the bytes that a message costs.

A process of its own, because what else a process has done (a cache, a provider, a library that is loaded) counts, too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import statistics
import sys
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import queueprop
from queueprop import Destination, Settings

ORDERS = Destination(system="rabbitmq", name="orders", server_address="rabbit.example", server_port=5672)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RECORDED = Settings(tracer_provider=TracerProvider())
SAMPLED_OUT = Settings(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
WITHOUT_SDK = Settings()

Handle = Callable[[], object]
Make = Callable[[Settings | None], Handle]
"""Makes what handles one message: by the library alone where there are no settings."""


def main() -> None:
    print(json.dumps({name: measured(make, settings) for name, (make, settings) in MESSAGES.items()}))


def measured(make: Make, settings: Settings) -> dict[str, int]:
    """What queueprop adds."""
    plain, traced = cost_of(make(None)), cost_of(make(settings))
    while instrumented:
        instrumented.pop().uninstrument()
    return {what: traced[what] - plain[what] for what in traced}


def cost_of(handle: Handle) -> dict[str, int]:
    """Calls are the least of several: a cache that is filled on the way is no message's cost."""
    for _ in range(50):
        handle()
    return {"calls": min(calls_of(handle) for _ in range(5)), "bytes": bytes_of(handle)}


def calls_of(handle: Handle) -> int:
    calls = 0

    def count(frame: Any, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        handle()
    finally:
        sys.setprofile(None)
    return calls


def bytes_of(handle: Handle) -> int:
    """That it needs at once; the median, as one in many finds more of it in a free list of Python's, and what is in a
    message (an id, a time) has more sizes than one.
    """
    gc.collect()
    gc.disable()
    tracemalloc.start()
    needed = []
    try:
        for _ in range(50):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            handle()
            needed.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
        gc.enable()
    return statistics.median_low(needed)


# The core


def send(settings: Settings | None) -> Handle:
    def handle() -> None:
        headers: dict[str, str] = {}
        if settings is not None:
            with queueprop.send_span(ORDERS, headers=headers, settings=settings):
                pass

    return handle


def process(settings: Settings | None) -> Handle:
    headers = {"traceparent": TRACEPARENT}

    def handle() -> None:
        if settings is not None:
            with queueprop.process_span(ORDERS, headers=headers, settings=settings):
                pass

    return handle


def send_ten(settings: Settings | None) -> Handle:
    """In one call, from a program that is in no span."""

    def handle() -> None:
        if settings is not None:
            with queueprop.send_span(ORDERS, [queueprop.Message({}) for _ in range(10)], settings=settings):
                pass

    return handle


def process_ten(settings: Settings | None) -> Handle:
    messages = [queueprop.Message({"traceparent": TRACEPARENT}) for _ in range(10)]

    def handle() -> None:
        if settings is not None:
            with queueprop.process_span(ORDERS, messages, settings=settings):
                pass

    return handle


def receive(settings: Settings | None) -> Handle:
    headers = {"traceparent": TRACEPARENT}

    def handle() -> None:
        if settings is not None:
            with queueprop.receive_span(ORDERS, settings=settings) as receipt:
                receipt.add(headers=headers)

    return handle


def settle(settings: Settings | None) -> Handle:
    headers = {"traceparent": TRACEPARENT}

    def handle() -> None:
        if settings is not None:
            with queueprop.settle_span(ORDERS, headers=headers, settings=settings):
                pass

    return handle


# The adapters: their explicit words, or the instrumentor where there is none


def pika_publish(settings: Settings | None) -> Handle:
    import pika

    from queueprop.adapters.pika import traced_publish

    parameters = SimpleNamespace(host="rabbit.example", port=5672, frame_max=131_072)

    class Channel:
        connection = SimpleNamespace(params=parameters)

        def basic_publish(
            self, exchange: Any, routing_key: Any, body: Any, properties: Any = None, mandatory: bool = False
        ) -> None: ...

    publish = Channel().basic_publish
    if settings is not None:
        publish = traced_publish(publish, settings=settings)
    return lambda: publish("", "orders", b"hello", pika.BasicProperties(headers={"tenant": "a"}))


def pika_delivery(settings: Settings | None) -> Handle:
    import pika

    from queueprop.adapters.pika import traced_consumer

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None: ...

    if settings is not None:
        on_message = traced_consumer(queue="orders", settings=settings)(on_message)

    def handle() -> None:
        deliver = pika.spec.Basic.Deliver("consumer", 1, False, "", "orders")
        on_message(None, deliver, pika.BasicProperties(headers={"traceparent": TRACEPARENT}), b"hello")

    return handle


def aiokafka_send(settings: Settings | None) -> Handle:
    from queueprop.adapters.aiokafka import traced_publish

    loop = asyncio.new_event_loop()

    async def send(
        topic: Any,
        value: Any = None,
        key: Any = None,
        partition: Any = None,
        timestamp_ms: Any = None,
        headers: Any = None,
    ) -> Any:
        future = loop.create_future()
        future.set_result(SimpleNamespace(topic=topic, partition=0, offset=1))
        return future

    if settings is not None:
        send = traced_publish(send, settings=settings)

    async def handle() -> None:
        await (await send("orders", b"hello", headers=[("tenant", b"a")]))

    return lambda: loop.run_until_complete(handle())


def aiokafka_delivery(settings: Settings | None) -> Handle:
    from aiokafka.structs import ConsumerRecord

    from queueprop.adapters.aiokafka import traced_message

    def handle() -> None:
        headers = [("traceparent", TRACEPARENT.encode())]
        record: Any = ConsumerRecord("orders", 0, 7, 0, 0, None, b"hello", None, -1, 5, headers)
        if settings is not None:
            with traced_message(record, settings=settings):
                pass

    return handle


def confluent_kafka_produce(settings: Settings | None) -> Handle:
    from confluent_kafka import Producer

    from queueprop.adapters.confluent_kafka import traced_publish

    # Nobody is there, and what waits is thrown away: that is its delivery report.
    producer = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    produce: Any = producer.produce
    if settings is not None:
        produce = traced_publish(produce, settings=settings)

    def handle() -> None:
        produce("orders", b"hello", headers=[("tenant", b"a")])
        producer.purge()
        producer.poll(0)

    return handle


def confluent_kafka_delivery(settings: Settings | None) -> Handle:
    from confluent_kafka import Message

    from queueprop.adapters.confluent_kafka import traced_message

    def handle() -> None:
        headers: Any = [("traceparent", TRACEPARENT.encode())]
        topic = b"orders".decode()  # each message of a broker's has a text of its own
        message = Message(topic, 0, 7, b"k", b"hello", headers, None, (1, 0))
        if settings is not None:
            with traced_message(message, settings=settings):
                pass

    return handle


def aio_pika_publish(settings: Settings | None) -> Handle:
    from aio_pika import Exchange, Message
    from aiormq import spec
    from yarl import URL

    from queueprop.adapters.aio_pika import traced_publish

    loop, answer = asyncio.new_event_loop(), spec.Basic.Ack(1)

    class Underlay:
        async def basic_publish(self, **given: Any) -> Any:
            return answer

    class Channel:
        is_closed = False
        _connection = SimpleNamespace(url=URL("amqp://guest@rabbit.example:5672/"))

        async def get_underlay_channel(self) -> Any:
            return underlay

    underlay: Any = Underlay()
    channel: Any = Channel()
    publish: Any = Exchange(channel, "").publish
    if settings is not None:
        publish = traced_publish(publish, settings=settings)
    return lambda: loop.run_until_complete(publish(Message(b"hello", headers={"tenant": "a"}), "orders"))


def aio_pika_delivery(settings: Settings | None) -> Handle:
    from aio_pika import IncomingMessage
    from aiormq import spec
    from aiormq.abc import DeliveredMessage
    from pamqp.header import ContentHeader

    from queueprop.adapters.aio_pika import traced_consumer

    loop = asyncio.new_event_loop()

    async def on_message(message: Any) -> None: ...

    if settings is not None:
        on_message = traced_consumer(queue="orders", settings=settings)(on_message)
    channel: Any = SimpleNamespace()

    def handle() -> None:
        header = ContentHeader(properties=spec.Basic.Properties(headers={"traceparent": TRACEPARENT}))
        deliver = spec.Basic.Deliver("consumer", 1, False, "", "orders")
        delivered = DeliveredMessage(delivery=deliver, header=header, body=b"hello", channel=channel)
        loop.run_until_complete(on_message(IncomingMessage(delivered)))

    return handle


def faststream_publish(settings: Settings | None) -> Handle:
    """What FastStream hands a middleware of a publish, and what that gives to the producer."""
    from faststream.kafka.publisher.producer import AioKafkaFastProducerImpl
    from faststream.kafka.response import KafkaPublishCommand
    from faststream.response.publish_type import PublishType

    class Producer(AioKafkaFastProducerImpl):
        async def publish(self, cmd: Any) -> Any: ...

    loop, publish, middleware = asyncio.new_event_loop(), Producer(None, None).publish, _middleware(settings)

    def handle() -> None:
        cmd = KafkaPublishCommand("hello", topic="orders", _publish_type=PublishType.PUBLISH)
        loop.run_until_complete(
            publish(cmd) if middleware is None else middleware(None).publish_scope(publish, cmd)
        )

    return handle


def faststream_delivery(settings: Settings | None) -> Handle:
    """What it hands a middleware of a delivery, around a handler."""
    from aiokafka import ConsumerRecord
    from faststream.kafka.message import KafkaMessage

    loop, middleware = asyncio.new_event_loop(), _middleware(settings)

    async def handler(message: Any) -> None: ...

    async def consume(record: Any, message: Any) -> None:
        if middleware is None:
            await handler(message)
            return
        async with middleware(record) as it:
            await it.consume_scope(handler, message)

    def handle() -> None:
        headers = [("traceparent", TRACEPARENT.encode())]
        record: Any = ConsumerRecord("orders", 0, 7, 0, 0, None, b"hello", None, -1, 5, headers)
        message: Any = KafkaMessage(record, b"hello", correlation_id="1", consumer=None)  # type: ignore[arg-type]
        loop.run_until_complete(consume(record, message))

    return handle


def _middleware(settings: Settings | None) -> Any:
    from faststream import ContextRepo

    from queueprop.adapters.faststream import QueuepropMiddleware

    if settings is None:
        return None
    context, middleware = ContextRepo(), QueuepropMiddleware(settings)
    return lambda msg: middleware(msg, context=context)


def kombu_round_trip(settings: Settings | None) -> Handle:
    import kombu

    from queueprop.adapters.kombu import KombuInstrumentor

    connection = kombu.Connection("memory://", transport_options={"polling_interval": 0})
    channel = connection.default_channel
    name = "plain" if settings is None else "traced"
    queue = kombu.Queue(name, kombu.Exchange(name, "direct"), "new")(channel)
    queue.declare()
    producer = kombu.Producer(channel)
    instrument(KombuInstrumentor(), settings)

    def on_message(body: Any, message: Any) -> None:
        message.ack()

    kombu.Consumer(channel, [queue], callbacks=[on_message]).consume()

    def handle() -> None:
        producer.publish("hello", exchange=queue.exchange, routing_key="new", headers={"tenant": "a"})
        connection.drain_events(timeout=1)

    return handle


def dramatiq_send(settings: Settings | None) -> Handle:
    handle: Handle = dramatiq_actor(settings).send
    return handle


def dramatiq_process(settings: Settings | None) -> Handle:
    actor = dramatiq_actor(settings)
    from dramatiq import Message
    from dramatiq.broker import MessageProxy
    from dramatiq.worker import _WorkerThread

    consumers: Any = {"default": SimpleNamespace(post_process_message=lambda message: None)}
    work_queue: Any = SimpleNamespace(task_done=lambda: None)
    worker = _WorkerThread(
        broker=actor.broker, consumers=consumers, work_queue=work_queue, worker_timeout=100
    )
    sent = actor.send().encode()
    return lambda: worker.process_message(MessageProxy(Message.decode(sent)))


def dramatiq_actor(settings: Settings | None) -> Any:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    from queueprop.adapters.dramatiq import DramatiqInstrumentor

    instrument(DramatiqInstrumentor(), settings)
    broker = StubBroker()
    broker.emit_after("process_boot")

    def work() -> None: ...

    return dramatiq.actor(broker=broker)(work)


class Forgetful:
    """A Redis client, its pipeline, and what their commands answer. A mock would keep what it was asked."""

    connection_pool = SimpleNamespace(connection_kwargs={"host": "redis.example", "port": 6379})

    def __getattr__(self, command: str) -> Forgetful:
        return self

    def __call__(self, *args: object, **options: object) -> Forgetful:
        return self

    def __enter__(self) -> Forgetful:
        return self

    def __exit__(self, *error: object) -> None: ...


def rq_enqueue(settings: Settings | None) -> Handle:
    import rq

    from queueprop.adapters.rq import RQInstrumentor

    connection: Any = Forgetful()
    queue = rq.Queue("orders", connection=connection)
    queue.redis_server_version = (7, 0, 0)
    instrument(RQInstrumentor(), settings)
    return lambda: queue.enqueue(math.sqrt, 4)


def bullmq_add(settings: Settings | None) -> Handle:
    from bullmq import Queue

    from queueprop.adapters.bullmq import BullMQInstrumentor

    instrument(BullMQInstrumentor(), settings)
    loop = asyncio.new_event_loop()
    queue = Queue("orders", {"connection": forgetful_redis()})
    return lambda: loop.run_until_complete(queue.add("mails.send", 1))


def bullmq_process(settings: Settings | None) -> Handle:
    from bullmq import Job, Worker

    from queueprop.adapters.bullmq import BullMQInstrumentor

    instrument(BullMQInstrumentor(), settings)
    loop = asyncio.new_event_loop()

    async def process(job: Any, token: str) -> None: ...

    async def work() -> None:
        worker: Any = Worker("orders", process, {"connection": forgetful_redis(), "autorun": False})
        made.append(worker)

    made: list[Any] = []
    loop.run_until_complete(work())
    raw = {
        "name": "mails.send",
        "data": "1",
        "opts": json.dumps({"attempts": 1, "tm": json.dumps({"traceparent": TRACEPARENT})}),
        "timestamp": "1767225600000",
        "ats": "1",
    }
    return lambda: loop.run_until_complete(made[0].processJob(Job.fromJSON(made[0], raw, "7"), "token"))


def celery_send(settings: Settings | None) -> Handle:
    from celery import Celery
    from kombu.transport import memory

    from queueprop.adapters.celery import CeleryInstrumentor

    app: Any = Celery("shop", broker="memory://", set_as_current=False)
    task = app.task(work_of_celery(), name="work", shared=False, ignore_result=True)
    instrument(CeleryInstrumentor(), settings)

    def send() -> None:
        task.delay()
        for queue in memory.Channel.queues.values():
            queue.queue.clear()

    return send


def celery_execute(settings: Settings | None) -> Handle:
    from celery import Celery
    from celery.app import trace

    from queueprop.adapters.celery import CeleryInstrumentor

    app: Any = Celery("shop", broker="memory://", set_as_current=False)
    task = app.task(work_of_celery(), name="work", shared=False, ignore_result=True)
    instrument(CeleryInstrumentor(), settings)
    tracer: Any = trace.build_tracer("work", task, app=app)
    info = {"exchange": "", "routing_key": "celery"}
    known = {"id": "7", "task": "work", "root_id": "7", "retries": 0, "delivery_info": info}
    return lambda: tracer(
        "7", (), {}, {**known, "traceparent": TRACEPARENT, "queueprop-sent-at": "1767225600.0"}
    )


def work_of_celery() -> Any:
    def work() -> None: ...

    return work


def forgetful_redis() -> Any:
    from redis.asyncio import Redis

    class Forgetting(Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            return 0

    return Forgetting(host="redis.example", decode_responses=True)


instrumented: list[Any] = []


def instrument(instrumentor: Any, settings: Settings | None) -> None:
    if settings is not None:
        instrumentor.instrument(settings=settings)
        instrumented.append(instrumentor)


MESSAGES: dict[str, tuple[Make, Settings]] = {
    "send": (send, RECORDED),
    "process": (process, RECORDED),
    "send ten": (send_ten, RECORDED),
    "process ten": (process_ten, RECORDED),
    "receive": (receive, RECORDED),
    "settle": (settle, RECORDED),
    "send, sampled out": (send, SAMPLED_OUT),
    "process, sampled out": (process, SAMPLED_OUT),
    "send without an SDK": (send, WITHOUT_SDK),
    "process without an SDK": (process, WITHOUT_SDK),
    "pika, publish": (pika_publish, RECORDED),
    "pika, delivery": (pika_delivery, RECORDED),
    "aiokafka, send": (aiokafka_send, RECORDED),
    "aiokafka, delivery": (aiokafka_delivery, RECORDED),
    "confluent-kafka, produce": (confluent_kafka_produce, RECORDED),
    "confluent-kafka, delivery": (confluent_kafka_delivery, RECORDED),
    "aio-pika, publish": (aio_pika_publish, RECORDED),
    "aio-pika, delivery": (aio_pika_delivery, RECORDED),
    "kombu, publish and delivery": (kombu_round_trip, RECORDED),
    "Dramatiq, send": (dramatiq_send, RECORDED),
    "Dramatiq, process": (dramatiq_process, RECORDED),
    "FastStream, publish": (faststream_publish, RECORDED),
    "FastStream, delivery": (faststream_delivery, RECORDED),
    "RQ, enqueue": (rq_enqueue, RECORDED),
    "BullMQ, add": (bullmq_add, RECORDED),
    "BullMQ, process": (bullmq_process, RECORDED),
    "Celery, delay": (celery_send, RECORDED),
    "Celery, task": (celery_execute, RECORDED),
}

if __name__ == "__main__":
    main()

"""The program of tests/test_cost.py: prints, as JSON, the calls of Python functions and the bytes that a message costs.

A process of its own, because what else a process has done (a cache, a provider, a library that is loaded) counts, too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
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
    """The least of several: a cache that is filled on the way is no message's cost."""
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
    """That it needs at once; the least, as what is in a message (an id, a time) has more sizes than one."""
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
    return min(needed)


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
    "aio-pika, delivery": (aio_pika_delivery, RECORDED),
    "kombu, publish and delivery": (kombu_round_trip, RECORDED),
    "Dramatiq, send": (dramatiq_send, RECORDED),
    "Dramatiq, process": (dramatiq_process, RECORDED),
    "RQ, enqueue": (rq_enqueue, RECORDED),
}

if __name__ == "__main__":
    main()

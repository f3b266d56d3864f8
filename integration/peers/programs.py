"""Programs of users of pika, kombu, aio-pika and aiokafka, each of which publishes or handles one message."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import aio_pika
import kombu
import pika
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from opentelemetry import baggage, context, trace

from integration.aiokafka.programs import create_topic
from integration.brokers.kafka import addresses
from integration.contract.telemetry import DEADLINE, ambient_span
from integration.live import current
from queueprop.adapters.aio_pika import AioPikaInstrumentor
from queueprop.adapters.aiokafka import AIOKafkaInstrumentor
from queueprop.adapters.kombu import KombuInstrumentor
from queueprop.adapters.pika import PikaInstrumentor

BAGGAGE = {"user": "Jürgen M, 100%", "sum": "1+1", "path": "a/b;c=d", "sushi": "寿司"}
CALLER = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
"""The trace and the span of whoever called the service that publishes."""
TRACESTATE = {"rojo": "00f067aa0ba902b7", "congo@vendor": "t61rcWkgMzE a/b"}
BODY = b'\x00\xff {"order": "\xc3\xa9"}'


class Handled:
    """What the Python side's handler noted."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.context = current()
        self.baggage = dict(baggage.get_all())
        self.tracestate = dict(trace.get_current_span().get_span_context().trace_state)


class Python(ABC):
    """A program of a user of one library, on a broker."""

    instrumentor: ClassVar[Any]
    broker = "rabbitmq"

    def __init__(self, url: str) -> None:
        self.url = url

    def make(self, queue: str) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            connection.channel().queue_declare(queue, durable=True)

    def remove(self, queue: str) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            connection.channel().queue_delete(queue)

    @abstractmethod
    def publish(self, queue: str, body: bytes) -> None: ...

    @abstractmethod
    def consume(self, queue: str, forward_to: str | None = None) -> Handled:
        """Handles one message, and may publish it again from its handler, with the headers that it came with."""


class Pika(Python):
    instrumentor = PikaInstrumentor

    def publish(self, queue: str, body: bytes) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            connection.channel().basic_publish("", queue, body)

    def consume(self, queue: str, forward_to: str | None = None) -> Handled:
        handled = []

        def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            handled.append(Handled(body))
            if forward_to:
                channel.basic_publish("", forward_to, body, properties)
            channel.basic_ack(method.delivery_tag)
            channel.stop_consuming()

        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            channel: Any = connection.channel()
            connection.call_later(DEADLINE, channel.stop_consuming)
            channel.basic_consume(queue, handle)
            channel.start_consuming()
        [one] = handled
        return one


class Kombu(Python):
    instrumentor = KombuInstrumentor

    def publish(self, queue: str, body: bytes) -> None:
        with kombu.Connection(self.url) as connection:
            kombu.Producer(connection).publish(body, routing_key=queue)

    def consume(self, queue: str, forward_to: str | None = None) -> Handled:
        handled = []

        def handle(message: Any) -> None:
            handled.append(Handled(bytes(message.body)))
            if forward_to:
                kombu.Producer(connection).publish(
                    message.body, routing_key=forward_to, headers=message.headers
                )
            message.ack()

        with kombu.Connection(self.url) as connection:
            entity = kombu.Queue(queue, no_declare=True)
            with kombu.Consumer(connection, [entity], on_message=handle, prefetch_count=1):
                connection.drain_events(timeout=DEADLINE)
        [one] = handled
        return one


class AioPika(Python):
    instrumentor = AioPikaInstrumentor

    def publish(self, queue: str, body: bytes) -> None:
        async def publish() -> None:
            async with await aio_pika.connect_robust(self.url) as connection:
                channel = await connection.channel()
                await channel.default_exchange.publish(aio_pika.Message(body), queue)

        asyncio.run(asyncio.wait_for(publish(), DEADLINE))

    def consume(self, queue: str, forward_to: str | None = None) -> Handled:
        async def consume() -> Handled:
            handled: asyncio.Future[Handled] = asyncio.get_running_loop().create_future()

            async def handle(message: Any) -> None:
                async with message.process():
                    noted = Handled(message.body)
                    if forward_to:
                        again = aio_pika.Message(message.body, headers=message.headers)
                        await channel.default_exchange.publish(again, forward_to)
                handled.set_result(noted)

            async with await aio_pika.connect_robust(self.url) as connection:
                channel = await connection.channel()
                await (await channel.get_queue(queue)).consume(handle)
                return await handled

        return asyncio.run(asyncio.wait_for(consume(), DEADLINE))


class AioKafka(Python):
    instrumentor = AIOKafkaInstrumentor
    broker = "kafka"

    def make(self, queue: str) -> None:
        asyncio.run(create_topic(addresses(self.url), queue))

    def remove(self, queue: str) -> None:
        pass

    def publish(self, queue: str, body: bytes) -> None:
        async def publish() -> None:
            async with AIOKafkaProducer(bootstrap_servers=addresses(self.url)) as producer:
                await producer.send_and_wait(queue, body)

        asyncio.run(asyncio.wait_for(publish(), DEADLINE))

    def consume(self, queue: str, forward_to: str | None = None) -> Handled:
        async def consume() -> Handled:
            servers = addresses(self.url)
            given: Any = {"bootstrap_servers": servers, "auto_offset_reset": "earliest"}
            async with AIOKafkaConsumer(**given) as consumer:
                consumer.assign([TopicPartition(queue, 0)])
                async for record in consumer:
                    noted = Handled(record.value)
                    if forward_to:
                        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
                            headers = list(record.headers)  # aiokafka takes no tuple
                            await producer.send_and_wait(forward_to, record.value, headers=headers)
                    break
            return noted

        return asyncio.run(asyncio.wait_for(consume(), DEADLINE))


def publish_in_a_request(python: Python, queue: str) -> tuple[str, str]:
    """Inside a span of a caller's trace, with the baggage; gives the span's context."""
    caller = context.Context()
    for key, value in BAGGAGE.items():
        caller = baggage.set_baggage(key, value, caller)
    remote = trace.SpanContext(
        int(CALLER[0], 16),
        int(CALLER[1], 16),
        True,
        trace.TraceFlags(1),
        trace.TraceState([*TRACESTATE.items()]),
    )
    caller = trace.set_span_in_context(trace.NonRecordingSpan(remote), caller)
    with ambient_span(baggage=caller) as request:
        python.publish(queue, BODY)
    return f"{request.trace_id:032x}", f"{request.span_id:016x}"

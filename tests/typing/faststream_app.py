"""FastStream as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaMessage
from faststream.nats import NatsBroker
from faststream.rabbit import RabbitBroker, RabbitRouter
from faststream.redis import RedisBroker
from opentelemetry.trace import Span
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.faststream import FastStreamInstrumentor, QueuepropMiddleware, traced_message

broker = KafkaBroker("localhost:9092", middlewares=[QueuepropMiddleware()])
rabbit = RabbitBroker(middlewares=(QueuepropMiddleware(Settings(propagation="link")),))
nats = NatsBroker(middlewares=[QueuepropMiddleware(settings=None)])
redis = RedisBroker()
redis.add_middleware(QueuepropMiddleware())
router = RabbitRouter(middlewares=[QueuepropMiddleware()])
app = FastStream(broker)


@broker.subscriber("orders")
@broker.publisher("invoices")
async def handle(order: str) -> str:
    await broker.publish(order, "audits")
    return order


async def pull() -> None:
    subscriber = broker.subscriber("orders")
    message = await subscriber.get_one()
    with traced_message(message) as span:
        assert_type(span, Span)
    async for each in subscriber:
        with traced_message(each, Destination("kafka", "orders"), settings=Settings()):
            assert isinstance(each, KafkaMessage)


def instrumented() -> None:
    FastStreamInstrumentor().instrument(
        settings=Settings(trust="none"), consume_hook=lambda span, message: None
    )
    FastStreamInstrumentor().uninstrument()

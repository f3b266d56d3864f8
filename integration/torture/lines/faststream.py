"""FastStream: what it hands a middleware around a publish and around a handler, on Kafka's messages."""

from __future__ import annotations

from typing import Any

from aiokafka import ConsumerRecord
from faststream import ContextRepo
from faststream.kafka.message import KafkaMessage
from faststream.kafka.publisher.producer import AioKafkaFastProducerImpl
from faststream.kafka.response import KafkaPublishCommand
from faststream.response.publish_type import PublishType

from integration.torture.lines import AsyncHandler, AsyncLine
from queueprop import Settings
from queueprop.adapters.faststream import QueuepropMiddleware


class _Producer(AioKafkaFastProducerImpl):
    latest: Any = None

    async def publish(self, cmd: Any) -> Any:
        self.latest = cmd.headers_to_publish()


class FastStream(AsyncLine):
    library = "faststream"
    carrier = "dict"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        nothing: Any = None
        self._producer = _Producer(nothing, nothing)
        self._context = ContextRepo()
        self._middleware = None if settings is None else QueuepropMiddleware(settings)

    async def publish_async(self, headers: Any, body: str = "", name: str = "orders") -> object:
        cmd: Any = KafkaPublishCommand(body, topic=name, headers=headers, _publish_type=PublishType.PUBLISH)
        if self._middleware is None:
            await self._producer.publish(cmd)
        else:
            middleware = self._middleware(None, context=self._context)
            await middleware.publish_scope(self._producer.publish, cmd)
        return self._producer.latest

    async def deliver_async(
        self, headers: Any, handler: AsyncHandler, body: str = "", name: str = "orders"
    ) -> object:
        raw: Any = headers
        if type(headers) is dict:  # as a broker has them
            raw = [(key, value.encode() if type(value) is str else value) for key, value in headers.items()]
        record: Any = ConsumerRecord(name, 0, 7, 0, 0, None, body.encode(), None, -1, len(body), raw)
        message: Any = KafkaMessage(record, record.value, headers=headers, correlation_id="1", consumer=None)  # type: ignore[arg-type]

        async def handle(given: Any) -> object:
            return await handler(given.body.decode())

        if self._middleware is None:
            return await handle(message)
        async with self._middleware(record, context=self._context) as it:
            return await it.consume_scope(handle, message)


make = FastStream

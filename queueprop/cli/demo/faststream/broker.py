"""RabbitMQ, as the demo runs it with FastStream."""

from __future__ import annotations

from queueprop.cli.demo.rabbitmq.broker import RabbitMQ


class FastStream(RabbitMQ):
    title = "FastStream"
    needs = (*RabbitMQ.needs, "aio_pika", "faststream")
    order_service = "queueprop.cli.demo.faststream.order_service"
    notification_service = "queueprop.cli.demo.faststream.notification_service"

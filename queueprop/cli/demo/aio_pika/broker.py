"""RabbitMQ, as the demo runs it with aio-pika."""

from __future__ import annotations

from queueprop.cli.demo.rabbitmq.broker import RabbitMQ


class AioPika(RabbitMQ):
    title = "aio-pika"
    needs = (*RabbitMQ.needs, "aio_pika")
    order_service = "queueprop.cli.demo.aio_pika.order_service"
    notification_service = "queueprop.cli.demo.aio_pika.notification_service"

"""BullMQ, as the demo runs it: on Redis, which needs no installation."""

from __future__ import annotations

from queueprop.cli.demo.brokers import DEMO_NEEDS
from queueprop.cli.demo.dramatiq.broker import Dramatiq


class BullMQ(Dramatiq):
    title = "BullMQ"
    needs = (*DEMO_NEEDS, "bullmq", "redis")
    order_service = "queueprop.cli.demo.bullmq.order_service"
    notification_service = "queueprop.cli.demo.bullmq.notification_service"

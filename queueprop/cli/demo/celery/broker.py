"""Celery, as the demo runs it: on Redis, which needs no installation."""

from __future__ import annotations

from queueprop.cli.demo.brokers import DEMO_NEEDS
from queueprop.cli.demo.dramatiq.broker import Dramatiq


class Celery(Dramatiq):
    title = "Celery"
    needs = (*DEMO_NEEDS, "celery", "redis")
    order_service = "queueprop.cli.demo.celery.order_service"
    notification_service = "queueprop.cli.demo.celery.notification_service"
    further = 5
    """A copy of each of the four mails that were sent, and the report that a beat asks for."""
    untold = 1
    """The copy whose process is killed."""

"""What the demo asks of a broker, and which ones there are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes

# name -> the Broker; what it needs is imported only when it runs
BROKERS = {
    "aio-pika": "queueprop.cli.demo.aio_pika.broker:AioPika",
    "bullmq": "queueprop.cli.demo.bullmq.broker:BullMQ",
    "celery": "queueprop.cli.demo.celery.broker:Celery",
    "confluent-kafka": "queueprop.cli.demo.confluent_kafka.broker:ConfluentKafka",
    "dramatiq": "queueprop.cli.demo.dramatiq.broker:Dramatiq",
    "faststream": "queueprop.cli.demo.faststream.broker:FastStream",
    "kafka": "queueprop.cli.demo.kafka.broker:Kafka",
    "kombu": "queueprop.cli.demo.kombu.broker:Kombu",
    "rabbitmq": "queueprop.cli.demo.rabbitmq.broker:RabbitMQ",
    "rq": "queueprop.cli.demo.rq.broker:RQ",
}

# What the demo itself needs, whatever the broker.
DEMO_NEEDS = (
    "rich",
    "fastapi",
    "uvicorn",
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.http",
)

READY = "waiting for messages"
"""What the worker side logs when it is ready."""


class Server(NamedTuple):
    """A broker that runs."""

    what: str
    """For people: which program it is."""

    environment: Mapping[str, str]
    """How the two services find it."""


class NoServer(Exception):
    """There is no server to be had; the message is one line that says what to do."""


class Broker(Protocol):
    """One broker, as the demo runs it. Both services are modules, started with ``python -m``.

    The producer side listens on 127.0.0.1 and the port in PORT, and answers ``POST /orders`` (``item``,
    ``email``, ``retries``: how often a delivery is tried again, ``delay``: in seconds) with 202. The worker
    side makes one span named ``send mail`` for each delivery, logs READY, and ends on SIGTERM. With WITHOUT_QUEUEPROP
    in their environment, both work without it.
    """

    title: str
    needs: Sequence[str]
    """Modules that must be there."""

    order_service: str
    notification_service: str

    further: int = 0
    """Deliveries besides those of the mails: a chain's next tasks, what a schedule sends."""

    untold: int = 0
    """Those of them that leave no span without queueprop, since the process that works is killed."""

    def server(self, processes: Processes, environ: Mapping[str, str]) -> AbstractContextManager[Server]:
        """The server, from its start to its stop. Raises NoServer."""
        ...


def load(name: str) -> Broker:
    """The broker of that name, one of BROKERS."""
    module, _, attribute = BROKERS[name].partition(":")
    return cast(Broker, getattr(importlib.import_module(module), attribute)())

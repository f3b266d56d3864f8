"""What users write by mistake, and type checkers see: mypy and pyright fail here where they see nothing."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

import queueprop
from queueprop import Destination, Settings
from queueprop.adapters import pika, rq
from queueprop.adapters.aiokafka import AIOKafkaInstrumentor
from queueprop.adapters.dramatiq import DramatiqInstrumentor, QueuepropMiddleware
from queueprop.adapters.kombu import KombuInstrumentor
from queueprop.adapters.pika import PikaInstrumentor
from queueprop.adapters.rq import RQInstrumentor

ORDERS = Destination("my-queue", "orders")


def handle(job: Any) -> None: ...


def options() -> None:
    queueprop.instrument("rq", propagation="link")  # type: ignore[call-arg]
    queueprop.instrument(publsh_hook=print)  # type: ignore[call-arg]
    queueprop.instrument(["rq", "pika"])  # type: ignore[arg-type]
    queueprop.instrument(settings={"trust": "none"})  # type: ignore[arg-type]
    queueprop.instrument(publish_hook="x")  # type: ignore[arg-type]
    AIOKafkaInstrumentor().instrument(trust="none")  # type: ignore[call-arg]
    DramatiqInstrumentor().instrument(trust="none")  # type: ignore[call-arg]
    KombuInstrumentor().instrument(trust="none")  # type: ignore[call-arg]
    PikaInstrumentor().instrument(trust="none")  # type: ignore[call-arg]
    RQInstrumentor().instrument(trust="none")  # type: ignore[call-arg]
    RQInstrumentor().instrument(settings={})  # type: ignore[arg-type]
    QueuepropMiddleware({})  # type: ignore[arg-type]
    Settings(propagation="both")  # type: ignore[arg-type]
    Settings(propogation="link")  # type: ignore[call-arg]


def words() -> None:
    queueprop.traced_consumer(handle)  # type: ignore[arg-type]
    queueprop.traced_consumer("orders")  # type: ignore[arg-type]
    queueprop.traced_consumer(ORDERS)("handle")  # type: ignore[type-var]
    queueprop.traced_consumer(ORDERS, headers={})  # type: ignore[arg-type]
    queueprop.send_span("orders")  # type: ignore[arg-type]
    queueprop.process_span(ORDERS, {})  # type: ignore[arg-type]
    queueprop.carry_context(42)  # type: ignore[type-var]
    pika.traced_publish(7)  # type: ignore[arg-type]
    rq.traced_consumer("jobs.work")  # type: ignore[call-overload]

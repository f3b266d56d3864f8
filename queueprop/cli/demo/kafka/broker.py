"""Kafka, as the demo runs it with aiokafka."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from queueprop.cli.demo.brokers import DEMO_NEEDS, Broker, Server

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes


class Kafka(Broker):
    title = "aiokafka"
    needs = (*DEMO_NEEDS, "aiokafka")
    order_service = "queueprop.cli.demo.kafka.order_service"
    notification_service = "queueprop.cli.demo.kafka.notification_service"

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        from queueprop.cli.demo.kafka_server import kafka_server

        with kafka_server(processes, environ) as found:
            yield Server(found.what, {"KAFKA_SERVERS": found.servers, "TOPIC": found.topic})

"""Kafka, as the demo runs it with confluent-kafka."""

from __future__ import annotations

from queueprop.cli.demo.brokers import DEMO_NEEDS
from queueprop.cli.demo.kafka.broker import Kafka


class ConfluentKafka(Kafka):
    title = "confluent-kafka"
    needs = (*DEMO_NEEDS, "confluent_kafka")
    order_service = "queueprop.cli.demo.confluent_kafka.order_service"
    notification_service = "queueprop.cli.demo.confluent_kafka.notification_service"

"""The contract, through FastStream: on a live RabbitMQ and a live Kafka."""

from __future__ import annotations

import pytest

pytest.importorskip("faststream._internal.broker", reason="before FastStream 0.6: tests/adapters shows 0.5")

from integration.contract.suite import Contract
from integration.drivers import faststream as drivers

# A consumer is forked to be killed while the SDK has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestRabbitmq(Contract):
    driver = drivers.RabbitDriver


class TestKafka(Contract):
    driver = drivers.KafkaDriver

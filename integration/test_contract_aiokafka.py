"""The contract, through aiokafka on a live Kafka, or on librdkafka's mock cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("aiokafka")

from integration.contract.suite import Contract
from integration.drivers.aiokafka import AIOKafkaDriver

# A process that forks to be killed has the SDK's threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestAIOKafka(Contract):
    driver = AIOKafkaDriver

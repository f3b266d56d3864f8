"""The contract, through aiokafka: on a live Kafka, and one column on librdkafka's mock cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("aiokafka")

from integration.contract.suite import Contract
from integration.drivers.aiokafka import AIOKafkaDriver, MockClusterDriver

# A process that forks to be killed has the SDK's threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestAIOKafka(Contract):
    driver = AIOKafkaDriver


class TestMockCluster(Contract):
    driver = MockClusterDriver

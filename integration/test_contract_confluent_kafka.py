"""The contract, through confluent-kafka: on a live Kafka, and one column on librdkafka's mock cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka")

from integration.contract.suite import Contract
from integration.drivers.confluent_kafka import ConfluentKafkaDriver, MockClusterDriver
from integration.drivers.confluent_kafka_aio import AIODriver

# A process that forks to be killed has the SDK's threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestConfluentKafka(Contract):
    driver = ConfluentKafkaDriver


class TestAIO(Contract):
    driver = AIODriver


class TestMockCluster(Contract):
    driver = MockClusterDriver

"""The contract, through pika on a live RabbitMQ."""

from __future__ import annotations

import pytest

pytest.importorskip("pika")

from integration.contract.suite import Contract
from integration.drivers.pika import PikaDriver, PikaLoopDriver

# A process that forks to be killed has the SDK's threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestPika(Contract):
    driver = PikaDriver


class TestPikaLoops(Contract):
    driver = PikaLoopDriver

"""The contract, through BullMQ on a live Redis."""

from __future__ import annotations

import pytest

pytest.importorskip("bullmq")

from integration.contract.suite import Contract
from integration.drivers.bullmq import BullMQDriver

# A process that forks to be killed has the SDK's threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestBullMQ(Contract):
    driver = BullMQDriver

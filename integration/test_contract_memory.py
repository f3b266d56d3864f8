"""The contract, on a queue in this process through the core API alone."""

from __future__ import annotations

from integration.contract.suite import Contract
from integration.drivers.memory import MemoryDriver


class TestMemory(Contract):
    driver = MemoryDriver

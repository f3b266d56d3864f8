"""The contract, through kombu: on a live RabbitMQ and a live Redis, in memory, and in folders."""

from __future__ import annotations

import pytest

pytest.importorskip("kombu")

from integration.contract.suite import Contract
from integration.drivers import kombu as drivers

# A consumer is forked to be killed while the SDK has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestAmqp(Contract):
    driver = drivers.AmqpDriver


class TestAmqpBuffer(Contract):
    driver = drivers.AmqpBufferDriver


class TestRedis(Contract):
    driver = drivers.RedisDriver


class TestRedisBuffer(Contract):
    driver = drivers.RedisBufferDriver


class TestMemory(Contract):
    driver = drivers.MemoryDriver


class TestMemoryBuffer(Contract):
    driver = drivers.MemoryBufferDriver


class TestFilesystem(Contract):
    driver = drivers.FilesystemDriver


class TestFilesystemBuffer(Contract):
    driver = drivers.FilesystemBufferDriver

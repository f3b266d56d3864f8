"""The contract, through Dramatiq: on a live Redis, a live RabbitMQ, and in memory."""

from __future__ import annotations

import pytest

pytest.importorskip("dramatiq")

from integration.contract.suite import Contract
from integration.drivers import dramatiq as drivers

# Workers fork while the SDK has threads, as they do wherever they are traced.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestRedis(Contract):
    driver = drivers.RedisDriver


class TestRabbitmq(Contract):
    driver = drivers.RabbitmqDriver


class TestStub(Contract):
    driver = drivers.StubDriver

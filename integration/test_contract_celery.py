"""The contract, through Celery on live brokers."""

from __future__ import annotations

import pytest

pytest.importorskip("celery")

from integration.contract.suite import Contract
from integration.drivers.celery import RabbitmqDriver, RedisDriver


class TestCeleryRedis(Contract):
    driver = RedisDriver


class TestCeleryRabbitmq(Contract):
    driver = RabbitmqDriver

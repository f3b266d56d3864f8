"""The contract, through aio-pika on a live RabbitMQ."""

from __future__ import annotations

import pytest

pytest.importorskip("aio_pika")

from integration.contract.suite import Contract
from integration.drivers.aio_pika import AioPikaDriver

# A process that forks to be killed has the SDK's threads; and a callback that is no coroutine function is a style.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*non.(coroutine|awaitable):DeprecationWarning"),
]


class TestAioPika(Contract):
    driver = AioPikaDriver

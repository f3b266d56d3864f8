"""A consumer that is polled: as where messages come from, and as what a loop can be over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from queueprop.adapters.confluent_kafka.clients import keep_beneath, referable
from queueprop.kit.library import Source


def source_of(consumer: Any, gives_several: bool = False) -> Source:
    keep_beneath(consumer)
    return Source(referable(consumer), gives_several=gives_several)


class Polls(Iterator[Any]):
    def __init__(self, consumer: Any, timeout: float) -> None:
        self._consumer = consumer
        self._timeout = timeout

    def __next__(self) -> Any:
        return self._consumer.poll(self._timeout)


class AIOPolls(AsyncIterator[Any]):
    def __init__(self, consumer: Any, timeout: float) -> None:
        self._consumer = consumer
        self._timeout = timeout

    async def __anext__(self) -> Any:
        return await self._consumer.poll(self._timeout)

"""Dramatiq, all of it: its broker in memory, and a worker with one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class Dramatiq(Stub):
    system = "dramatiq"
    cut = "nothing: its broker in memory"

    def __init__(self) -> None:
        self._handler: Handler = lambda: None
        self._producer = StubBroker()
        self._actor = self._declare(self._producer)
        self._consumer = StubBroker()
        self._declare(self._consumer)
        self._worker = dramatiq.Worker(self._consumer, worker_threads=1)
        self._worker.start()

    def _declare(self, broker: StubBroker) -> Any:
        declare: Any = dramatiq.actor
        return declare(self._work, broker=broker, actor_name="work", queue_name="orders")

    def _work(self) -> None:
        self._handler()

    def publishes(self, count: int) -> Callable[[], None]:
        self._producer.flush("orders")
        send = self._actor.send

        def run() -> None:
            for _ in range(count):
                send()

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        self._handler = handler
        options = {"queueprop": {"traceparent": TRACEPARENT}}
        messages = [self._actor.message_with_options(**options).encode() for _ in range(count)]
        queue = self._consumer.queues["orders"]

        def run() -> None:
            for message in messages:
                queue.put(message)
            self._consumer.join("orders", timeout=60_000)

        return run

    def written(self) -> Mapping[str, str]:
        queue = self._producer.queues["orders"]
        message = dramatiq.Message.decode(queue.get())
        queue.task_done()
        return texts(message.options.get("queueprop"))


make = Dramatiq

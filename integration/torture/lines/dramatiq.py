"""Dramatiq: its broker in memory, and the method of a worker's thread that performs one message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import _WorkerThread

from integration.torture.lines import Handler, Line
from queueprop import Settings


class Dramatiq(Line):
    library = "dramatiq"
    carrier = "dict"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._broker = StubBroker()
        self._broker.emit_after("process_boot")
        self._handlers: dict[str, Handler] = {}
        declare: Any = dramatiq.actor

        def work(message_id: str, body: str) -> None:
            self._handlers.pop(message_id)(body)

        self._actor = declare(work, broker=self._broker, actor_name="work", queue_name="orders")
        consumers: Any = _AnyQueue()
        queue: Any = SimpleNamespace(task_done=lambda: None)
        self._worker: Any = _WorkerThread(
            broker=self._broker, consumers=consumers, work_queue=queue, worker_timeout=100
        )

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        """``headers`` are what the option holds where a context travels, as one who forwards a message has it."""
        message = self._actor.message_with_options(
            args=("", body), **({} if headers is None else {"queueprop": headers})
        )
        if name != "orders":
            message = message.copy(queue_name=name)
            self._broker.queues.setdefault(name, self._broker.queues["orders"])
        self._broker.enqueue(message)
        sent = dramatiq.Message.decode(self._broker.queues["orders"].get())
        self._broker.queues["orders"].task_done()
        return sent.options.get("queueprop")

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        message = self._actor.message_with_options(args=("", body))
        message = message.copy(
            args=(message.message_id, body),
            queue_name=name,
            options={} if headers is None else {"queueprop": headers},
        )
        self._handlers[message.message_id] = handler
        try:
            return self._worker.process_message(MessageProxy(message))
        finally:
            self._handlers.pop(message.message_id, None)

    def close(self) -> None:
        self._broker.close()


class _AnyQueue:
    """The consumer of every queue: it forgets what was processed."""

    def __getitem__(self, queue: str) -> Any:
        return SimpleNamespace(post_process_message=lambda message: None)


make = Dramatiq

"""Celery: ``apply_async`` over kombu's transport in memory, and the tracer of a task, which every pool calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery as App
from celery.app import trace

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts
from benchmarks.stubs.by_hand import ByHand, injected


class Celery(Stub):
    system = "celery"
    cut = "the worker above its tracer; publishes go into kombu's transport in memory"

    def __init__(self) -> None:
        self._handler: Handler = lambda: None
        self._app: Any = App("orders", broker="memory://")
        self._app.conf.update(task_default_queue="orders", task_ignore_result=True)

        def work() -> None:
            self._handler()

        self._app.task(work, name="work")
        self._task = self._app.tasks["work"]  # what `task` gives stands for it, and takes calls to say so
        # By its module: what instruments it may have put another in its place.
        self._tracer = trace.build_tracer("work", self._task, app=self._app)
        self._channel = self._app.connection_for_write().default_channel
        self._task.apply_async()  # declares the queue, the first time

    def publishes(self, count: int) -> Callable[[], None]:
        send = self._task.apply_async
        self._channel.queue_purge("orders")

        def run() -> None:
            for _ in range(count):
                send()

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], None]:
        self._handler = handler
        requests = [self._request() for _ in range(count)]
        tracer = self._tracer

        def run() -> None:
            for request in requests:
                tracer(request["id"], (), {}, request)

        return run

    def publishes_by_hand(self, count: int) -> Callable[[], None]:
        send, by_hand = self._task.apply_async, ByHand(self.system)
        self._channel.queue_purge("orders")

        def run() -> None:
            for _ in range(count):
                with by_hand.sending():
                    send(headers=injected())

        return run

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], None]:
        task, handle = self._task, ByHand(self.system).around(handler)
        return self.deliveries(count, lambda: handle(task.request.headers))

    def _request(self) -> dict[str, Any]:
        """As a pool is given it: the message's headers, and what the worker adds."""
        task_id = str(uuid.uuid4())
        headers, *_ = self._app.amqp.as_task_v2(task_id, "work")
        return {
            **headers,
            "traceparent": TRACEPARENT,
            "delivery_info": {"exchange": "", "routing_key": "orders", "priority": 0, "redelivered": False},
            "hostname": "worker@host",
            "reply_to": None,
            "correlation_id": task_id,
        }

    def written(self) -> Mapping[str, str]:
        return texts(self._channel._get("orders")["headers"])


make = Celery

"""Celery: ``apply_async`` over kombu's transport in memory, and the tracer of a task, which every pool calls."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from celery import Celery as App
from celery.app import trace
from kombu.transport import memory

from integration.torture.lines import Handler, Line
from queueprop import Settings

_numbers = itertools.count()


class Celery(Line):
    library = "celery"
    carrier = "dict"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._queue = f"celery-{next(_numbers)}"
        self._app: Any = App("orders", broker="memory://", set_as_current=False)
        self._app.conf.update(task_default_queue=self._queue, task_ignore_result=True)
        self._handlers: dict[str, Handler] = {}

        def work(task_id: str, body: str) -> None:
            self._handlers.pop(task_id)(body)

        self._task = self._app.task(work, name="work", shared=False)
        # By its module: what instruments it may have put another in its place.
        self._tracer = trace.build_tracer("work", self._task, app=self._app)
        self._channel = self._app.connection_for_write().default_channel
        self._task.apply_async(("", ""))  # declares the queue, the first time
        self._channel.queue_purge(self._queue)

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        """To a queue of this name, which nobody declared but the first, so that nothing is kept."""
        if name != "orders":
            self._task.apply_async((body, ""), headers=headers, routing_key=name, exchange=self._queue)
            return None
        self._task.apply_async((body, ""), headers=headers)
        return self._channel._get(self._queue)["headers"]

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        task_id = str(uuid.uuid4())
        request = self._request(task_id, headers, name)
        self._handlers[task_id] = handler
        try:
            return self._tracer(task_id, (task_id, body), {}, request)
        finally:
            self._handlers.pop(task_id, None)

    def _request(self, task_id: str, headers: Any, name: str) -> dict[str, Any]:
        """As a pool is given it: the message's headers, and what the worker adds. Where the headers are no mapping of
        text it is one of the first protocol, which has them beside its own.
        """
        known, *_ = self._app.amqp.as_task_v2(task_id, "work")
        info = {"exchange": "", "routing_key": name, "priority": 0, "redelivered": False}
        own = {**known, "delivery_info": info, "hostname": "worker@host", "id": task_id, "task": "work"}
        own.update(reply_to=None, correlation_id=task_id)
        if type(headers) is dict and all(type(name) is str for name in headers):
            return {**headers, **own}
        return {**own, "headers": headers}

    def close(self) -> None:
        memory.Channel.queues.pop(self._queue, None)
        self._app.close()


make = Celery

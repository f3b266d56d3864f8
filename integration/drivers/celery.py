"""Celery on live brokers: workers of every pool, each a program of its own, through both APIs."""

from __future__ import annotations

import atexit
import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import celery.app.amqp
import celery.app.log
import celery.app.trace
import celery.backends.base
import celery.beat
import celery.loaders.default
import celery.utils.deprecated
import celery.worker.consumer  # what a worker has loaded, so that scenario 18 sees it before and after
import kombu
import pika
import redis
from celery import Celery
from celery.app.control import Control

from integration.contract.actions import Handler
from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Driver,
    Failing,
    Need,
    Refusal,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import PATIENCE, RECORDS, SDK, wait_until
from integration.drivers import celery_app
from queueprop import Settings, guard
from queueprop.adapters import celery as adapter

_AT_ONCE = 8
_ROOT = Path(__file__).parents[2]
_PROPAGATORS = "OTEL_PROPAGATORS"
_IMPATIENT = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class CeleryDriver(Driver):
    """A style is a pool. The worker of a pool serves the runs of a whole session; see ``celery_app``."""

    library = "celery"
    system = "celery"
    packages = frozenset({"celery"})
    styles = ("prefork", "solo", "threads")
    ways = ("apply_async", "delay", "send_task", "signature", "chain", "group")
    delayed_ways = ("countdown", "eta")
    refusals = (Refusal("failed"), Refusal("retry", 2), Refusal("reject"))
    tells_attempt = True
    tells_delay = True
    delay_resolution = 0.2  # an eta is a moment, which is said before the publish begins

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "ambient": "a worker is a program of its own, and inherits no context",
            "batch": "Celery sends one message for each task, of a group as well",
            "batch receive": "a worker executes one task at a time",
            "exits": "the loop is the worker's own",
            "redelivery": "a task that is put back by Reject(requeue=True) has not failed",
            "settle": "a worker acks by itself",
        }
        if column.style == "solo":
            lacks["concurrency"] = "one task at a time"
        if column.style != "prefork":
            lacks["worker processes"] = "tasks are executed in the worker's main process"
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        return lacks

    @classmethod
    def many(cls, column: Column) -> int:
        # 5 to 50 ms a task, by the pool and how busy the machine is.
        return 1_000 if column == (cls.library, "solo", "instrumentor") else 200

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        return {15: f"{cls.many(column):,} messages on the threads of a worker"}

    @classmethod
    def tells_killed(cls, style: str) -> bool:
        return style == "prefork"

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._app_class: type[Any] = Celery

    # Life

    def open(self) -> None:
        self.app = self._made(self.url)

    def close(self) -> None:
        self.app.close()

    def reconnect(self) -> None:
        self.app.close()
        self.app = self._made(self.url)
        _stop(self.url or "", self.style, self.api)

    def _made(self, url: str | None, **options: Any) -> Any:
        made = celery_app.make(url, self._app_class, **options)
        made.conf.task_default_queue = self.queue
        return made

    # Publishing

    def publish(
        self,
        body: str,
        headers: Mapping[str, str] | None = None,
        *,
        way: str | None = None,
        delay: float | None = None,
        refusal: str | None = None,
        retries: int = 0,
    ) -> None:
        task = self.app.tasks[celery_app.TASK]
        given = (body, refusal, 1 if refusal == "retry" else retries)
        options: dict[str, Any] = {"headers": dict(headers)} if headers else {}
        if way == "delay":
            send = task.signature((), options=options).delay if headers else task.delay
            self._traced(send)(*given)
        elif way == "send_task":
            self._traced(self.app.send_task)(celery_app.TASK, given, **options)
        elif way == "signature":
            self._traced(task.signature(given, options=options).apply_async)()
        elif way in ("chain", "group"):
            canvas: Any = getattr(celery, way)
            self._traced(canvas([task.signature(given, options=options)], app=self.app).apply_async)()
        elif way == "eta":
            due = datetime.now(timezone.utc) + timedelta(seconds=delay or 0)
            self._traced(task.apply_async)(given, eta=due, **options)
        else:
            countdown = {} if delay is None else {"countdown": delay}
            self._traced(task.apply_async)(given, **countdown, **options)

    def publish_with(self, body: str, container: object) -> None:
        self._traced(self.app.tasks[celery_app.TASK].apply_async)((body,), headers=container)

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {
            "a dict": lambda: {"tenant": "a", "list": [1, 2], "nested": {"headers": {"tenant": "b"}}},
            "an empty dict": dict,
            "None": lambda: None,
            "a read-only mapping": lambda: MappingProxyType({"tenant": "a"}),
            "nested headers": lambda: {
                "tenant": "a",
                "headers": {"sentry-trace": "1", "baggage": "of=sentry"},
            },
            "forwarded headers": lambda: {"tenant": "a", "traceparent": "stale", "tracestate": "a=1"},
        }

    def failing(self) -> Sequence[Failing]:
        gone = self._gone()
        return [
            Failing("no JSON", lambda: self._fail(self.app, object())),
            Failing("the broker is gone", lambda: self._fail(self._made(gone), "lost")),
            Failing(
                "the broker is gone, with results",
                lambda: self._fail(self._made(gone, backend="rpc://"), "lost", ignore_result=False),
            ),
            Failing("no such queue", self._fail_without_queue),
        ]

    def _gone(self) -> str:
        return "redis://127.0.0.1:1/0"

    def _fail(self, app: Any, body: object, **options: Any) -> None:
        app.conf.broker_transport_options = {**app.conf.broker_transport_options, **_IMPATIENT}
        task = app.tasks[celery_app.TASK]
        self._traced(task.apply_async)((body,), retry=False, **options)

    def _fail_without_queue(self) -> None:
        app = self._made(self.url)
        app.conf.task_create_missing_queues = False
        self._traced(app.send_task)(celery_app.TASK, ("lost",), queue="nowhere")

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        self._plant(body, {**(headers or {}), **fields})

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (7, "traceparent", [1, 2], None)

    def plant_junk(self, body: str, junk: object) -> None:
        """Celery's own headers are the message's; junk may stand where the first protocol had them."""
        self._plant(body, {"headers": junk})

    def _plant(self, body: str, headers: Mapping[str, object]) -> None:
        """As another program would, through a client that knows no Celery."""
        task_id = str(uuid.uuid4())
        known = {"lang": "py", "task": celery_app.TASK, "id": task_id, "root_id": task_id, "retries": 0}
        with kombu.Connection(self.url) as connection:
            kombu.Producer(connection).publish(
                ((body,), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
                serializer="json",
                headers={**known, **headers},
                correlation_id=task_id,
                exchange="",
                routing_key=self.queue,
                declare=[kombu.Queue(self.queue, kombu.Exchange(self.queue), self.queue)],
            )

    def kept_publish(self) -> Callable[[str], object]:
        send = self.app.tasks[celery_app.TASK].apply_async
        return lambda body: send((body,))

    def _traced(self, publish: Callable[..., Any]) -> Callable[..., Any]:
        return self._wrapped(adapter.traced_publish, publish)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        worker = _worker(self.url or "", self.style, self.api)
        told = _Told()
        worker.enter(self._wanted(handler))
        with worker.consuming(self.queue):
            for number in range(1, count + 1):  # each has its own time
                worker.wait_for(partial(told.has, celery_app.OVER, number), f"task {number} of {self.queue}")
            # A child tells that its task is over; the process of the pool acknowledges it, once it has heard as much.
            worker.wait_for(lambda: told.is_settled, f"what becomes of the messages of {self.queue}")

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self.consume(handler, count)

    def consume_killed(self, handler: Handler) -> None:
        if self.style == "prefork":
            self.consume(handler, 1)  # of the one that is killed nothing is heard
            return
        worker = _worker(self.url or "", self.style, self.api)
        worker.enter(self._wanted(handler))
        with suppress(AssertionError), worker.consuming(self.queue, leaves=False):
            worker.process.wait(PATIENCE)
        assert worker.process.returncode == -signal.SIGKILL
        self._notice_the_dead()
        self.consume(handler)

    def _notice_the_dead(self) -> None:
        """What a broker does in its own time about a consumer that is gone."""

    def _wanted(self, handler: Handler) -> dict[str, Any]:
        settings = self._settings
        if self.api == "instrumentor":
            instrumentor = self.instrumentor()
            on = instrumentor.is_instrumented_by_opentelemetry and instrumentor.is_active
            settings = instrumentor.engine.settings if on else None
        return {
            "number": next(_numbers),
            "records": os.environ[RECORDS],
            "sdk": os.environ[SDK] == "1",
            "propagators": os.environ.get(_PROPAGATORS),
            "api": self.api,
            "settings": None if settings is None else _plain(settings),
            "handler": handler.dump(),
            "other_queue": self.other_queue,
            "said": guard.environment()["_QUEUEPROP_SAID"].split(","),
        }

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.CeleryInstrumentor:
        return adapter.CeleryInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        class Derived(Celery):  # type: ignore[misc]
            def send_task(self, *args: Any, **kwargs: Any) -> Any:
                return super().send_task(*args, **kwargs)

        self._app_class = Derived
        self.app.close()
        self.open()
        try:
            yield
        finally:
            self._app_class = Celery

    # What is expected

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {
            **super()._attributes(name, kind),
            "messaging.message.id": str,
            "messaging.message.conversation_id": str,
            "celery.task.name": celery_app.TASK,
            "code.function.name": "integration.drivers.celery_app.perform",
        }


class RedisDriver(CeleryDriver):
    broker = "redis"

    def open(self) -> None:
        super().open()
        self._redis: Any = redis.Redis.from_url(self.url or "")

    def close(self) -> None:
        super().close()
        self._redis.delete(self.queue, self.other_queue)
        self._redis.close()

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not isinstance(value, bytes)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        return [_of_redis(json.loads(it)) for it in reversed(self._redis.lrange(queue or self.queue, 0, -1))]

    def counts(self) -> Counts:
        unacked = [json.loads(payload)[-1] for payload in self._redis.hvals("unacked")]
        return Counts(self._redis.llen(self.queue), unacked.count(self.queue))

    def _notice_the_dead(self) -> None:
        def restore() -> bool:
            channel.qos.restore_visible(num=1000, interval=1)
            return self.counts().unacked == 0

        with kombu.Connection(self.url) as connection, connection.channel() as channel:
            channel.visibility_timeout = 0
            wait_until(restore, "an end of another worker's look for the dead")


class RabbitmqDriver(CeleryDriver):
    broker = "rabbitmq"

    def open(self) -> None:
        super().open()
        self._connection: Any = pika.BlockingConnection(pika.URLParameters(self.url))
        self._plain = self._connection.channel()
        for queue in (self.queue, self.other_queue):
            self._plain.queue_declare(queue, durable=True)

    def close(self) -> None:
        super().close()
        with suppress(Exception):
            self._connection.close()
        with suppress(Exception), pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for queue in (self.queue, self.other_queue):
                connection.channel().queue_delete(queue)

    def reconnect(self) -> None:
        super().reconnect()
        with suppress(Exception):
            self._connection.close()
        self.open()

    def _gone(self) -> str:
        return "amqp://127.0.0.1:1//"

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not (isinstance(value, str) and len(value) > 100_000)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        with self._connection.channel() as channel:
            found = list(iter(lambda: channel.basic_get(queue or self.queue), (None, None, None)))
            channel.basic_nack(0, multiple=True, requeue=True)
        return [_of_amqp(properties, body) for _, properties, body in found]

    def counts(self) -> Counts:
        return Counts(left=self._plain.queue_declare(self.queue, passive=True).method.message_count)


# Workers


class Worker:
    """``celery -A integration.drivers.celery_app worker``, for all runs of one pool and API on one broker."""

    def __init__(self, url: str, pool: str, api: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="queueprop-celery-"))
        self._file, self._log = self._folder / "run.json", self._folder / "worker.log"
        self.name = f"contract-{uuid.uuid4().hex[:8]}@localhost"
        self._app = celery_app.make(url)
        self._controls = [Control(self._app)]
        command = [sys.executable, "-m", "celery", "-A", "integration.drivers.celery_app", "worker"]
        command += [f"--pool={pool}", f"--concurrency={_AT_ONCE}", "-n", self.name, "-l", "INFO"]
        command += ["-Q", f"{self.name}-idle", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env={
                    **os.environ,
                    celery_app.BROKER: url,
                    celery_app.API: api,
                    celery_app.RUN: str(self._file),
                    "PYTHONPATH": str(_ROOT),
                },
                stdout=output,
                stderr=output,
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        self.wait_for(lambda: " ready." in self.log, "a worker of Celery")
        # It listens to what it is told a moment after it says that it is ready.
        wait_until(lambda: bool(self._ask("ping", 0.5)), "an answer of a worker of Celery")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: condition() or not self.runs, what)
        assert condition(), self.log

    def enter(self, wanted: Mapping[str, Any]) -> None:
        """From its next message on it is a program of this run."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(wanted))
        new.replace(self._file)

    @contextmanager
    def consuming(self, queue: str, leaves: bool = True) -> Iterator[None]:
        self._tell("add_consumer", queue=queue)
        yield
        if leaves:
            self._tell("leave_queue", queue=queue)

    def _tell(self, command: str, **arguments: Any) -> None:
        answers = self._ask(command, PATIENCE, **arguments)
        assert answers, self.log
        assert "ok" in answers[0][self.name], answers

    def _ask(self, command: str, timeout: float, **arguments: Any) -> Any:
        # By a connection of its own: those of a pool serve every application of this process, and a broker that was
        # stopped leaves dead ones in it.
        with self._app.connection_for_write() as connection:
            answers = self._controls[-1].broadcast(
                command,
                arguments,
                destination=[self.name],
                reply=True,
                timeout=timeout,
                limit=1,
                connection=connection,
            )
        if not answers:
            # What comes late would be taken for the answer to the next question: that is asked from elsewhere. (And
            # this one is kept, since its place for answers is called after its identity.)
            self._controls.append(Control(self._app))
        return answers

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


_workers: dict[tuple[str, str, str], Worker] = {}
_numbers = iter(range(1, sys.maxsize))


def _worker(url: str, pool: str, api: str) -> Worker:
    found = _workers.get((url, pool, api))
    if found is None or not found.runs:
        found = _workers[url, pool, api] = Worker(url, pool, api)
    return found


def _stop(url: str, pool: str, api: str) -> None:
    found = _workers.pop((url, pool, api), None)
    if found is not None:
        found.stop()


@atexit.register
def _stop_all() -> None:
    for worker in _workers.values():
        worker.stop()


class _Told:
    """How often the run's processes have told of a kind since this was made."""

    def __init__(self) -> None:
        self._path = os.environ[RECORDS]
        self._read = os.stat(self._path).st_size
        self._counts: Counter[str] = Counter()

    def has(self, kind: str, number: int) -> bool:
        return self.count(kind) >= number

    def count(self, kind: str) -> int:
        with open(self._path, "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._counts[json.loads(line)["kind"]] += 1
        return self._counts[kind]

    @property
    def is_settled(self) -> bool:
        """Whether the worker has answered the broker for each message that it was given."""
        return self.count(celery_app.RECEIVED) == self.count(celery_app.SETTLED)


def _plain(settings: Settings) -> dict[str, Any]:
    """Those that are text; a run gives no others."""
    values = {it.name: getattr(settings, it.name) for it in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value is not None}


# What a plain client sees

_OF_CELERY = (
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit"),
    *("root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting"),
    *("stamped_headers", "stamps"),
)


def _of_redis(message: Mapping[str, Any]) -> WireMessage:
    return _wire_message(message["headers"], base64.b64decode(message["body"]))


def _of_amqp(properties: Any, body: bytes) -> WireMessage:
    return _wire_message(properties.headers, body)


def _wire_message(headers: Mapping[str, Any], body: bytes) -> WireMessage:
    users = [(name, value) for name, value in headers.items() if name not in (*_OF_CELERY, adapter.SENT_AT)]
    return WireMessage(json.loads(body)[0][0], *split_headers(users))

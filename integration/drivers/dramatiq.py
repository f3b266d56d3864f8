"""Dramatiq on live brokers and in memory: its workers' threads and its command line, through both APIs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import multiprocessing
import os
import select
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, ClassVar

import dramatiq
import pika
import redis
from dramatiq import cli
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import MAINTENANCE_SCALE, RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import AsyncIO, Middleware
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from integration.contract.actions import Delivery, Handler, run, run_async
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
from integration.contract.telemetry import DEADLINE, RECORDS, tell, tell_library_error, wait_until
from queueprop import Settings
from queueprop.adapters import dramatiq as adapter

_WORKER_TIMEOUT = 10
"""Milliseconds that a worker's threads sleep where there is nothing to do."""

_PROCESSES = 2
_REDIS_ID = "redis_message_id"
_COMMAND_LINE = "command line"
_ASYNC = "async actors"

# What a failed attempt is logged with is no concern of the contract's.
logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)


class DramatiqDriver(Driver):
    """A style is a broker with a worker's threads; on some also the command line, and actors that are coroutines."""

    library = "dramatiq"
    system = "dramatiq"
    packages = frozenset({"dramatiq"})
    ways = ("send", "send_with_options", "enqueue", "pipeline.run", "group.run")
    delayed_ways = ("send_with_options",)
    refusals = (Refusal("dead-letter"), Refusal("retry", 2))
    tells_attempt = True
    tells_delay = True
    delay_resolution = 0.002  # Dramatiq counts whole milliseconds

    styles: ClassVar[Sequence[str]]

    @classmethod
    def columns(cls) -> Sequence[Column]:
        return [
            Column(cls.library, style, api) for style in cls.styles for api in ("explicit", "instrumentor")
        ]

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "ambient": "a worker's threads inherit no context",
            "batch": "Dramatiq enqueues one message a call",
            "batch receive": "a worker processes one message at a time",
            "exits": "the loop is the worker's own",
            "redelivery": "Dramatiq gives a message back by its retries alone",
        }
        if column.style.endswith(_COMMAND_LINE):
            lacks["same thread"] = "actors run in threads of other processes"
        else:
            lacks["worker processes"] = "one process; several are the command line's"
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        return lacks

    @classmethod
    def costly(cls, style: str) -> bool:
        return style.endswith(_COMMAND_LINE)

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        if cls.costly(column.style):
            return dict.fromkeys((2, 8, 9), "fewer cases: each starts the command line's three processes")
        return {15: f"{cls.many(column):,} messages on one thread of a worker"}

    @classmethod
    def many(cls, column: Column) -> int:
        # Every broker, and both APIs, run the same code of ours there.
        if column.style != "Stub":
            return 200
        return 10_000 if column.api == "instrumentor" else 1_000

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._derived = False
        self._handler: Handler | None = None
        self._over = threading.Semaphore(0)
        self.rejected = 0
        self.first_messages: Any = None

    # Life

    def open(self) -> None:
        self.app = self._new_broker()
        self._declare(self.app)

    def close(self) -> None:
        self.app.flush_all()
        self.app.close()

    def reconnect(self) -> None:
        self.app.close()
        self.open()

    @contextmanager
    def tracing(self, settings: Settings) -> Iterator[None]:
        if self.api == "explicit":
            self.app.add_middleware(adapter.QueuepropMiddleware(settings))
        with super().tracing(settings):
            yield

    def _new_broker(self) -> Any:
        """What a user makes first."""
        broker_class = self._broker_class()
        if self._derived:
            broker_class = _derived(broker_class)
        broker = self._broker(broker_class)
        broker.add_middleware(_Teller(self))
        if self.style.endswith(_ASYNC):
            broker.add_middleware(AsyncIO())
        if self._is_explicit:
            broker.add_middleware(adapter.QueuepropMiddleware(self._settings))
        return broker

    def _broker_class(self) -> Any:
        raise NotImplementedError

    def _broker(self, broker_class: Any) -> Any:
        raise NotImplementedError

    def _declare(self, broker: Any) -> None:
        def perform(body: str) -> None:
            assert self._handler is not None
            run(self._handler, self._delivery(body))

        async def perform_async(body: str) -> None:
            assert self._handler is not None
            await run_async(self._handler, self._delivery(body))

        chosen: Any = perform_async if self.style.endswith(_ASYNC) else perform
        self._actor: Any = self._declared(broker, chosen, self.queue)
        self._other: Any = self._declared(broker, lambda body: None, self.other_queue)

    @staticmethod
    def _declared(broker: Any, function: Callable[..., Any], queue: str) -> Any:
        # A message's own max_retries=0 is what Dramatiq 1 does not see.
        declare: Any = dramatiq.actor
        return declare(function, broker=broker, queue_name=queue, actor_name=queue, max_retries=0)

    def _delivery(self, body: str) -> Delivery:
        def publish(body: str, options: Mapping[str, Any] | None = None) -> None:
            self._other.send_with_options(args=(body,), **(options or {}))

        options = _in_hand.get().options
        return Delivery(body, {name: options[name] for name in options if name != _REDIS_ID}, publish)

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
        actor = self._actor
        options: dict[str, Any] = dict(headers or {})
        if way == "send":
            options, actor = {}, _with_options(actor, options)
        if refusal == "retry" or retries:
            options |= {"max_retries": retries or 1, "min_backoff": 1, "max_backoff": 1}
        if way == "send":
            actor.send(body)
        elif way in (None, "send_with_options"):
            milliseconds = None if delay is None else round(delay * 1000)
            actor.send_with_options(args=(body,), delay=milliseconds, **options)
        else:
            message = actor.message_with_options(args=(body,), **options)
            if way == "enqueue":
                self.app.enqueue(message)
            else:
                made: Any = dramatiq.pipeline if way == "pipeline.run" else dramatiq.group
                made([message], broker=self.app).run()

    def publish_carrying(self, body: str, fields: Mapping[str, str]) -> None:
        options: Any = {adapter.OPTION: dict(fields)}
        self.publish(body, options)

    def publish_with(self, body: str, container: object) -> None:
        options: Any = container
        self.app.enqueue(dramatiq.Message(self.queue, self.queue, (body,), {}, options))

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {
            "a dict": lambda: {"tenant": "a", "list": [1, 2], "nested": {"queueprop": 1}},
            "an empty dict": dict,
            "forwarded options": lambda: {
                "tenant": "a",
                adapter.OPTION: {"traceparent": "stale", "tracestate": "a=1", "sent_at": "1.0"},
            },
        }

    def failing(self) -> Sequence[Failing]:
        return [Failing("no JSON", lambda: self._actor.send(object()))]

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        self.plant_junk(body, dict(fields), headers) if fields else self._plant(body, dict(headers or {}))

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None, 7, "traceparent", [1, 2], 0.5)

    def plant_junk(self, body: str, junk: object, headers: Mapping[str, str] | None = None) -> None:
        self._plant(body, {**(headers or {}), adapter.OPTION: junk})

    @classmethod
    def can_plant(cls, value: object) -> bool:
        return not isinstance(value, bytes)  # JSON has none

    def _plant(self, body: str, options: dict[str, Any]) -> None:
        """Past ``Broker.enqueue``, as another program would."""
        options[_REDIS_ID] = str(uuid.uuid4())
        self._put(dramatiq.Message(self.queue, self.queue, (body,), {}, options))

    def _put(self, message: Any) -> None:
        raise NotImplementedError

    def kept_publish(self) -> Callable[[str], object]:
        enqueue = self.app.enqueue
        return lambda body: enqueue(self._actor.message(body))

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self._handler = handler
        if self.style.endswith(_COMMAND_LINE):
            self._consume_by_command(count)
        else:
            self._consume_here(count, threads=1)

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self._handler = handler
        if self.style.endswith(_COMMAND_LINE):
            self._consume_by_command(count, prefetch=count // _PROCESSES)
        else:
            self._consume_here(count, threads=count)

    def consume_killed(self, handler: Handler) -> None:
        self._handler = handler
        by_command = self.style.endswith(_COMMAND_LINE)
        pid = self._forked(self._command if by_command else self._work_in_child)
        os.waitpid(pid, 0)
        with self._noticing_the_dead():
            self.consume(handler)

    @contextmanager
    def _noticing_the_dead(self) -> Iterator[None]:
        """Workers that begin inside take over from those that are gone at once."""
        yield

    def _consume_here(self, count: int, threads: int) -> None:
        worker = dramatiq.Worker(
            self.app, queues={self.queue}, worker_timeout=_WORKER_TIMEOUT, worker_threads=threads
        )
        worker.start()
        try:
            for _ in range(count):
                assert self._over.acquire(timeout=DEADLINE), "waited in vain for a delivery"
        finally:
            worker.stop()
            self.app.middleware = [it for it in self.app.middleware if not hasattr(it, "worker")]

    def _work_in_child(self) -> None:
        self.open()
        self._consume_here(1, threads=1)

    def _consume_by_command(self, count: int, prefetch: int = 1) -> None:
        until = _deliveries_over() + count
        listen, tell_ready = os.pipe()
        pid = self._forked(lambda: self._command(prefetch, tell_ready))
        os.close(tell_ready)
        try:
            wait_until(lambda: _deliveries_over() >= until, f"{count} deliveries in {self.queue}")
        finally:
            os.read(listen, 1)  # until it has its handlers a signal kills it, and leaves its workers behind
            os.close(listen)
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)

    def _forked(self, target: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                target()
            os._exit(1)
        return pid

    def _command(self, prefetch: int = 1, tell_ready: int | None = None) -> None:
        """``dramatiq integration.drivers.dramatiq:running -p 2 -t 4``, which sleeps shorter than usual.

        Where there is more than one message, each process gets its share.
        """
        if len(self._waiting(self.queue)) >= _PROCESSES:
            self.first_messages = multiprocessing.get_context("fork").Barrier(_PROCESSES)
        global running
        running = self.app
        module: Any = cli
        main, unblock = os.getpid(), module.try_unblock_signals

        def unblock_and_tell() -> None:
            unblock()
            if os.getpid() == main and tell_ready is not None:
                os.write(tell_ready, b".")

        module.try_unblock_signals = unblock_and_tell
        module.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.02)))
        module.multiprocessing = SimpleNamespace(**vars(multiprocessing))
        module.multiprocessing.Event = _BootEvent  # one that is killed never says that it has started
        module.watch_logs = lambda *args: None
        worker: Any = importlib.import_module("dramatiq.worker")
        worker.QUEUE_PREFETCH = prefetch
        module.Worker = functools.partial(dramatiq.Worker, worker_timeout=_WORKER_TIMEOUT)
        arguments = [
            f"{__name__}:running",
            "-p",
            str(_PROCESSES),
            "-t",
            "4",
            "-Q",
            self.queue,
            "--skip-logging",
        ]
        cli.main(cli.make_argument_parser().parse_args(arguments))

    def end_delivery(self) -> None:
        """Called when a message was acked or rejected, whatever process that is in."""
        self._over.release()
        tell("over", {})

    # What a plain client sees

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        return [_wire_message(json.loads(data)) for data in self._waiting(queue or self.queue)]

    def _waiting(self, queue: str) -> list[bytes]:
        raise NotImplementedError

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.DramatiqInstrumentor:
        return adapter.DramatiqInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        self._derived = True
        self.reconnect()
        try:
            yield
        finally:
            self._derived = False

    # What is expected

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        function = f"{self._actor.fn.__module__}.{self._actor.fn.__qualname__}"
        return {
            **super()._attributes(name, kind),
            "messaging.message.id": str,
            "code.function.name": function,
        }


class RedisDriver(DramatiqDriver):
    """Its keys have a namespace of the run's own."""

    broker = "redis"
    styles = ("Redis", f"Redis {_COMMAND_LINE}")

    def _broker_class(self) -> Any:
        return RedisBroker

    def _broker(self, broker_class: Any) -> Any:
        return broker_class(url=self.url, namespace=self.queue)

    def close(self) -> None:
        super().close()
        client = self.app.client
        for key in client.keys(f"{self.queue}*"):
            client.delete(key)
        client.close()

    def failing(self) -> Sequence[Failing]:
        gone = redis.Redis(host="127.0.0.1", port=1, retry=RedisRetry(NoBackoff(), 0))
        return [*super().failing(), Failing("the broker is gone", lambda: self._publish_through(gone))]

    def _publish_through(self, client: Any) -> None:
        scripts, broker = self.app.scripts, self.app
        broker.scripts = {
            name: client.register_script(script.script) for name, script in broker.scripts.items()
        }
        try:
            self._actor.send("lost")
        finally:
            broker.scripts = scripts

    def _put(self, message: Any) -> None:
        self.app.do_enqueue(message.queue_name, message.options[_REDIS_ID], message.encode())

    def _waiting(self, queue: str) -> list[bytes]:
        client, key = self.app.client, f"{self.queue}:{queue}"
        return [client.hget(f"{key}.msgs", name) for name in client.lrange(key, 0, -1)]

    def counts(self) -> Counts:
        client, key = self.app.client, f"{self.queue}:{self.queue}"
        return Counts(
            left=client.llen(key) + client.llen(dq_name(key)),
            unacked=sum(client.scard(name) for name in client.keys(f"{self.queue}:__acks__*")),
            dead=client.zcard(xq_name(key)),
        )

    @contextmanager
    def _noticing_the_dead(self) -> Iterator[None]:
        # Everybody who was heard of so far was last heard of in 1970.
        heartbeats = f"{self.queue}:__heartbeats__"
        self.app.client.zadd(heartbeats, dict.fromkeys(self.app.client.zrange(heartbeats, 0, -1), 0))
        self.app.maintenance_chance = MAINTENANCE_SCALE
        yield
        self.app.maintenance_chance = 0


class RabbitmqDriver(DramatiqDriver):
    broker = "rabbitmq"
    styles = ("RabbitMQ",)

    def _broker_class(self) -> Any:
        return RabbitmqBroker

    def _broker(self, broker_class: Any) -> Any:
        return broker_class(url=self.url)

    def _declare(self, broker: Any) -> None:
        super()._declare(broker)
        for queue in (self.queue, self.other_queue):
            broker.declare_queue(queue, ensure=True)

    def close(self) -> None:
        for queue in (self.queue, self.other_queue):
            for name in (queue, dq_name(queue), xq_name(queue)):
                self.app.channel.queue_delete(name)
        self.app.close()

    def failing(self) -> Sequence[Failing]:
        return [*super().failing(), Failing("the broker is gone", self._publish_to_nobody)]

    def _publish_to_nobody(self) -> None:
        there = self.app.parameters
        del self.app.connection
        self.app.parameters = pika.ConnectionParameters("127.0.0.1", 1)
        self.app.queues_pending.add(self.queue)
        try:
            self._actor.send("lost")
        finally:
            self.app.parameters = there

    def _put(self, message: Any) -> None:
        properties = pika.BasicProperties(delivery_mode=2)
        self.app.channel.basic_publish("", message.queue_name, message.encode(), properties)

    def _waiting(self, queue: str) -> list[bytes]:
        # A count of what waits overtakes what was just published; a get does not.
        channel = self.app.channel
        found = list(iter(lambda: channel.basic_get(queue), (None, None, None)))
        for method, _, _ in reversed(found):
            channel.basic_nack(method.delivery_tag, requeue=True)
        return [body for _, _, body in found]

    def counts(self) -> Counts:
        wait_until(
            lambda: self.app.get_queue_message_counts(self.queue)[2] >= self.rejected, "the rejected messages"
        )
        left, delayed, dead = self.app.get_queue_message_counts(self.queue)
        return Counts(left=left + delayed, dead=dead)


class StubDriver(DramatiqDriver):
    is_quick = True
    """Messages wait in this process."""

    broker = None
    styles = ("Stub", f"Stub {_ASYNC}")

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        return {
            **super().lacks(column),
            "kill": "what waits in the process goes with it",
            "restart": "there is no server",
        }

    def _broker_class(self) -> Any:
        return StubBroker

    def _broker(self, broker_class: Any) -> Any:
        return broker_class()

    def failing(self) -> Sequence[Failing]:
        message: Any = dramatiq.Message("nowhere", self.queue, ("lost",), {}, {})
        return [*super().failing(), Failing("no such queue", lambda: self.app.enqueue(message))]

    def _put(self, message: Any) -> None:
        self.app.queues[message.queue_name].put(message.encode())

    def _waiting(self, queue: str) -> list[bytes]:
        return list(self.app.queues[queue].queue)

    def counts(self) -> Counts:
        queues = self.app.queues
        return Counts(
            left=queues[self.queue].qsize() + queues[dq_name(self.queue)].qsize(),
            dead=len(self.app.dead_letters_by_queue[self.queue]),
        )


running: Any = None
"""The broker of the command line, which finds it by this name."""

_in_hand: ContextVar[Any] = ContextVar("contract-dramatiq-message")


class _Teller(Middleware):
    """Tells what message is in hand, what became of it, and when it was over."""

    def __init__(self, driver: DramatiqDriver) -> None:
        self._driver = driver

    def after_process_boot(self, broker: Any) -> None:
        broker.broker_id = str(uuid.uuid4())  # a broker is made in each of the command line's processes

    def before_process_message(self, broker: Any, message: Any) -> None:
        _in_hand.set(message)
        together, self._driver.first_messages = self._driver.first_messages, None
        if together is not None:
            together.wait(DEADLINE)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None:
            tell_library_error(exception)

    def after_ack(self, broker: Any, message: Any) -> None:
        if message.queue_name == self._driver.queue:
            self._driver.end_delivery()

    def after_nack(self, broker: Any, message: Any) -> None:
        self._driver.rejected += 1
        self.after_ack(broker, message)

    def before_worker_thread_shutdown(self, broker: Any, thread: Any) -> None:
        if isinstance(broker, RabbitmqBroker):
            del broker.connection  # which first hands over what was published on it


def _with_options(actor: Any, options: Mapping[str, Any]) -> Any:
    """An actor whose ``send`` has options: only the actor itself can have them."""
    if not options:
        return actor

    def send(body: str) -> Any:
        return actor.send_with_options(args=(body,), **options)

    return SimpleNamespace(send=send)


def _derived(broker_class: Any) -> Any:
    class Derived(broker_class):  # type: ignore[misc]
        def enqueue(self, message: Any, *, delay: Any = None) -> Any:
            return super().enqueue(message, delay=delay)

    return Derived


class _BootEvent:
    """By which a worker process tells that it has started; Dramatiq's main process waits for it.

    Without a lock, as multiprocessing's has one: a worker that is killed while it tells keeps that, and the main
    process would wait for ever.
    """

    def __init__(self) -> None:
        self._listen, self._tell = os.pipe()

    def set(self) -> None:
        os.write(self._tell, b".")

    def wait(self, timeout: float) -> bool:
        return bool(select.select([self._listen], [], [], min(timeout, 0.5))[0])


def _deliveries_over() -> int:
    with open(os.environ[RECORDS], "rb") as file:
        return sum(line.startswith(b'{"kind": "over"') for line in file)


def _wire_message(plain: dict[str, Any]) -> WireMessage:
    options = plain["options"]
    fields, _ = split_headers(options.pop(adapter.OPTION, {}).items())
    options.pop(_REDIS_ID, None)
    return WireMessage(plain["args"][0], fields, options)

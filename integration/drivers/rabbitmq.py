"""RabbitMQ as a plain client sees it: what the drivers of its clients share."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import pika
from pika.exceptions import AMQPError

from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Driver,
    Need,
    Refusal,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import wait_until

FRAME_MAX = 131_072


class RabbitmqDriver(Driver):
    """The queue is a classic one, but a quorum queue where redeliveries are counted; what is refused is in another."""

    system = "rabbitmq"
    broker = "rabbitmq"
    refusals: ClassVar[Sequence[Refusal]] = (
        Refusal("dead-letter"),
        Refusal("requeue", 2),
        Refusal("left unacked"),
    )
    tells_attempt = True
    send_time_resolution = 1.0  # AMQP's timestamps are whole seconds
    loops: ClassVar[Collection[str]] = ()
    """Of its styles, those that are loops of the user's over messages."""
    pulls: ClassVar[Collection[str]] = ()
    """Of its styles, those that ask for one message."""
    shown_with_many: ClassVar[Collection[str]] = ()
    """A style for each kind of connection and of code of ours: with ten thousand messages."""

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "batch": f"{cls.library} publishes one message a call",
            "delay": "RabbitMQ delays by expiry and dead-lettering, in queues of the user's",
            "retry": f"{cls.library} has no retries",
            "worker processes": f"{cls.library} starts no processes",
        }
        if column.style not in cls.pulls:
            lacks["batch receive"] = f"{cls.library} hands over one message at a time"
        if not cls.exits(column.style):
            lacks["exits"] = f"the loop is {cls.library}'s own"
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        return lacks

    @classmethod
    def receives(cls, style: str) -> bool:
        return style in cls.pulls

    @classmethod
    def many(cls, column: Column) -> int:
        return 10_000 if column.style in cls.shown_with_many and column.api == "instrumentor" else 1_000

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        remarks = {15: f"{cls.many(column):,} messages on one thread"}
        if column.style in cls.loops:
            told = "a for loop tells no error to its iterator: shown with traced_message() in the loop's body"
            return {**remarks, 9: told, 11: told, 25: told}
        return remarks

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self.dead_queue = f"{self.queue}-dead"
        self._declared = False
        self._declaring = threading.Lock()
        self._refused_by: dict[str, str] = {}
        self._kept: set[str] = set()

    # Life

    def open(self) -> None:
        self.reconnect()
        for queue in (self.dead_queue, self.other_queue):
            self.plain.queue_declare(queue, durable=True)

    def close(self) -> None:
        self.close_consumers()
        self.disconnect()
        with self._untraced(), self._connect() as connection:
            for queue in (self.queue, self.dead_queue, self.other_queue):
                connection.channel().queue_delete(queue)

    def reconnect(self) -> None:
        """Of the plain client; that of the library is the driver's."""
        self.disconnect()
        self._plain_connection = self._connect()
        self.plain = self._plain_connection.channel()

    def disconnect(self) -> None:
        if hasattr(self, "_plain_connection"):
            close(self._plain_connection)

    def _connect(self) -> Any:
        return pika.BlockingConnection(pika.URLParameters(self.url))

    @abstractmethod
    def close_consumers(self) -> None:
        """Closes what the library consumes by: what is unacked goes back."""

    def flush(self) -> None:
        """Returns when all that the library published so far, in handlers too, is at the broker. (``arrive`` then asks
        that.)
        """

    # Queues

    def declare(self, refusal: str | None = None) -> None:
        """Declares the queue, once: ``refusal`` is what shall become of what is refused."""
        with self._declaring:
            if self._declared:
                return
            self._declared = True
            arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self.dead_queue}
            if refusal == "requeue":
                arguments["x-queue-type"] = "quorum"
            self.plain.queue_declare(self.queue, durable=True, arguments=arguments)

    def arrive(self) -> None:
        """Returns when all that was published so far is in its queue."""
        self.declare()
        self.flush()
        self.plain.queue_declare(self.queue, passive=True)

    @contextmanager
    def full_queue(self) -> Iterator[str]:
        """One that takes nothing: the broker answers a confirming publish with a nack."""
        queue = f"{self.queue}-full"
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        self.plain.queue_declare(queue, arguments=full, auto_delete=True)
        try:
            yield queue
        finally:
            self.plain.queue_delete(queue)

    # What becomes of a message whose handler raised

    def will_be_refused(self, body: str, refusal: str | None) -> None:
        self._refused_by[body] = refusal or "dead-letter"
        self._kept.add(body)

    def acked(self, body: str) -> None:
        """The broker is to keep it no longer."""
        self._kept.discard(body)

    def requeues(self, body: str, redelivered: bool) -> bool | None:
        """Whether its nack puts it back into the queue; None where it is left unacked."""
        refusal = self._refused_by[body]
        return None if refusal == "left unacked" else refusal == "requeue" and not redelivered

    # What a plain client sees

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        self._plant(body, {**(headers or {}), **fields} or None)

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None,)  # AMQP has a table there, or nothing

    def plant_junk(self, body: str, junk: object) -> None:
        self._plant(body, junk)

    def _plant(self, body: str, headers: Any) -> None:
        self.declare()
        with self._untraced():
            self.plain.basic_publish("", self.queue, body.encode(), pika.BasicProperties(headers=headers))

    @classmethod
    def can_plant(cls, value: object) -> bool:
        # A table has no floats (of pika's), and no more than fits into a frame.
        return not isinstance(value, float) and not (isinstance(value, str) and len(value) > FRAME_MAX)

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        self.arrive()
        with self._untraced(), self._plain_connection.channel() as channel:
            messages = list(iter(lambda: channel.basic_get(queue or self.queue), (None, None, None)))
            channel.basic_nack(0, multiple=True, requeue=True)
        return [
            WireMessage(body.decode(), *split_headers((properties.headers or {}).items()))
            for _, properties, body in messages
        ]

    def counts(self) -> Counts:
        """Unacked is what comes back once nobody holds it any more."""
        self.arrive()
        held = [body for body in self._kept if self._refused_by[body] == "left unacked"]
        self._await_ready(len(self._kept) - len(held))
        left, dead = self._count(self.queue), self._count(self.dead_queue)
        self.close_consumers()
        self._await_ready(len(self._kept))
        return Counts(left, self._count(self.queue) - left, dead)

    def _await_ready(self, count: int) -> None:
        """What is given up comes back, or goes to the dead, in the broker's own time: a quorum queue writes to disk
        first, and of a connection that was aborted the broker has to hear.
        """
        queues = (self.queue, self.dead_queue)
        wait_until(
            lambda: sum(map(self._ready, queues)) >= count, f"{count} messages in {' and '.join(queues)}"
        )

    def _count(self, queue: str) -> int:
        """The messages that are ready, those that are too many included: these come a moment later."""
        counts = [-1]
        while len(counts) < 4 or len(set(counts[-3:])) > 1:
            counts.append(self._ready(queue))
            time.sleep(0.02)
        return counts[-1]

    def _ready(self, queue: str) -> int:
        return int(self.plain.queue_declare(queue, passive=True).method.message_count)

    # What is expected

    def process_attributes(self) -> dict[str, Any]:
        return {**super().process_attributes(), "messaging.rabbitmq.message.delivery_tag": int}

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {
            **super()._attributes(name, kind),
            "messaging.rabbitmq.destination.routing_key": self.queue,
        }


def close(connection: Any) -> None:
    """Whatever state it is in."""
    with suppress(AMQPError, AssertionError):
        connection.close()

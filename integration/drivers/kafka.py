"""What the drivers of Kafka's clients share: what Kafka has not, the names of topics, what is expected of spans.

Consumers are assigned their partition by hand, so that none waits for a group to gather; what a group has committed
counts all the same. Kafka needs a tenth of a second to make a topic: the runs of one style share theirs, each from
where it ended and with a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from integration.brokers.kafka import addresses
from integration.contract.driver import Api, Column, Driver, Need, Refusal

CLIENT = "contract"
"""What every client of a run calls itself."""


class KafkaDriver(Driver):
    system = "kafka"
    broker = "kafka"
    wire_type = bytes
    refusals: ClassVar[Sequence[Refusal]] = (
        Refusal("committed"),
        Refusal("requeue", 2),
        Refusal("left uncommitted"),
    )
    table: ClassVar[str]
    """The table of the matrix that its columns are in."""
    styles: ClassVar[Sequence[str]]
    pulls_one: ClassVar[str]
    """The style of a pull call that gives one message."""
    pulls_several: ClassVar[str]

    @classmethod
    def columns(cls) -> Sequence[Column]:
        return [Column(cls.table, style, api) for style in cls.styles for api in ("explicit", "instrumentor")]

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "delay": "Kafka has no delays",
            "retry": "Kafka has no retries: a consumer seeks back",
            "worker processes": f"{cls.library} starts no processes",
        }
        if column.style != cls.pulls_several:
            lacks["batch receive"] = "one message at a time"
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        return lacks

    @classmethod
    def many(cls, column: Column) -> int:
        # Every style runs the same code of ours there; a broker needs 1.5 ms a message.
        return 10_000 if column.style == cls.styles[0] and column.api == "instrumentor" else 1_000

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        remarks = {15: f"{cls.many(column):,} messages on one thread"}
        if column.style == cls.pulls_one:
            return remarks
        told = "a for loop tells no error to its iterator: shown with traced_message() in the loop's body"
        return {**remarks, 9: told, 11: told, 25: told}

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._group = self.queue
        shared = f"{os.getpid()}-{style.replace(' ', '-')}"
        self.queue, self.other_queue = f"orders-{shared}", f"shipments-{shared}"
        self._refusals: dict[str, str] = {}
        self._last: Any = None

    @property
    def _servers(self) -> str:
        return addresses(self.url or "")

    # Publishing

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None,)  # Kafka has a list there, or nothing

    def plant_junk(self, body: str, junk: object) -> None:
        self.plant(body, {})

    @classmethod
    def can_plant(cls, value: object) -> bool:
        # Bytes or nothing, and no more than a request takes.
        return value is None or (isinstance(value, (str, bytes)) and len(value) < 900_000)

    # What is expected

    @property
    def knows_clients(self) -> bool:
        """Whether it is told how the clients were configured."""
        return True

    @property
    def settle_name(self) -> str:
        return f"commit {self.queue}"

    def process_attributes(self) -> dict[str, Any]:
        group = {"messaging.consumer.group.name": self._group} if self.knows_clients else {}
        return {**self._attributes("process", "process"), **group, "queueprop.message.queue_time": float}

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        attributes = {
            "messaging.system": self.system,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": self.queue,
            "messaging.destination.partition.id": "0",
            "messaging.kafka.offset": int,
        }
        if not self.knows_clients:
            return attributes
        host, _, port = self._servers.split(",")[0].rpartition(":")
        told = {"messaging.client.id": CLIENT, "server.address": host, "server.port": int(port)}
        return {**attributes, **told}


class OnMockCluster(KafkaDriver):
    """One column on librdkafka's mock cluster, also where there is a Kafka."""

    broker = "kafka_mock"

    @classmethod
    def columns(cls) -> Sequence[Column]:
        return [Column(cls.table, cls.styles[0], "instrumentor")]

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        return {**super().lacks(column), "restart": "the mock cluster cannot be started again where it was"}

    @classmethod
    def many(cls, column: Column) -> int:
        return 1_000


def pairs_of(fields: Mapping[str, Any] | None) -> list[tuple[str, Any]] | None:
    """Headers as Kafka has them."""
    if fields is None:
        return None
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in fields.items()]

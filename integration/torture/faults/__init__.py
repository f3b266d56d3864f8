"""Faults on live brokers, each run twice, plain and instrumented: what becomes of the messages is the same, each
delivery has its span, and none is outside of its trace.

What a run is, is in ``trial``; what of the counts must be equal, in ``comparing``; the faults are in the other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from integration.brokers import KAFKA, RABBITMQ, REDIS, Unavailable, find, kafka_cluster
from integration.torture.report import Row

from .collectors import collectors
from .comparing import PART
from .groups import node_is_killed, rebalanced
from .outages import broker_goes_away, clients_are_cut, connection_is_cut, memory_alarm
from .workers import broken

Fault = Callable[[], Iterable[Row] | Row]

_AMQP = ("pika", "aio_pika", "kombu", "dramatiq", "celery", "faststream")
_REDIS = ("rq", "kombu", "dramatiq", "celery", "bullmq")
_KAFKA = ("aiokafka", "confluent_kafka", "faststream")


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    for make_broker, faults in (_short if is_short else _long)():
        try:
            broker = make_broker()
        except Unavailable as reason:
            yield Row(PART, "", "no broker", False, {"why": reason})
            continue
        say(f"on {broker}")
        with _running(broker):
            for fault in faults(broker):
                rows = fault()
                for row in [rows] if isinstance(rows, Row) else rows:
                    say(f"{row.library}: {row.what}: {'holds' if row.holds else 'FAILS'}")
                    yield row


@contextmanager
def _running(broker: Any) -> Iterator[None]:
    try:
        broker.start()
        yield
    finally:
        broker.close()


Plan = list[tuple[Callable[[], Any], Callable[[Any], list[Fault]]]]


def _short() -> Plan:
    """A pick of the cheap ones."""

    def on_redis(broker: Any) -> list[Fault]:
        return [
            partial(broker_goes_away, "kombu", broker, 150),
            partial(broken, "rq", broker.url, 30, fates={5: "kill", 10: "exit", 15: "fork and close"}),
        ]

    def on_rabbitmq(broker: Any) -> list[Fault]:
        return [
            partial(broken, "pika", broker.url, 40, fates={5: "kill", 15: "terminate", 25: "fork and close"}),
            partial(connection_is_cut, "pika", broker, 60),
        ]

    return [
        (partial(find, REDIS, private=True), on_redis),
        (partial(find, RABBITMQ, private=True), on_rabbitmq),
    ]


def _long() -> Plan:
    def on_rabbitmq(broker: Any) -> list[Fault]:
        return [
            *(partial(broken, library, broker.url, 100) for library in _AMQP),
            *(partial(connection_is_cut, library, broker, 200) for library in _AMQP),
            *(partial(memory_alarm, library, broker, 400) for library in _AMQP),
            *(partial(broker_goes_away, library, broker, 400) for library in _AMQP),
            partial(collectors, "pika", broker.url, 100, 3),
        ]

    def on_redis(broker: Any) -> list[Fault]:
        return [
            *(partial(broken, library, broker.url, 100) for library in _REDIS),
            partial(broken, "rq", broker.url, 100, pool=True),
            *(partial(broker_goes_away, library, broker, 400) for library in _REDIS),
            *(partial(collectors, library, broker.url, 100, 3) for library in ("rq", "dramatiq", "celery")),
        ]

    def on_kafka(broker: Any) -> list[Fault]:
        return [
            *(partial(broken, library, broker.url, 100) for library in _KAFKA),
            *(partial(clients_are_cut, library, broker, 300) for library in _KAFKA),
            *(partial(rebalanced, library, broker.url, 200) for library in _KAFKA),
            *(partial(broker_goes_away, library, broker, 400) for library in _KAFKA),
            partial(collectors, "aiokafka", broker.url, 100, 3),
        ]

    def on_cluster(cluster: Any) -> list[Fault]:
        return [partial(node_is_killed, library, cluster, 400) for library in _KAFKA]

    return [
        (partial(find, REDIS, private=True), on_redis),
        (partial(find, RABBITMQ, "native"), on_rabbitmq),
        (partial(find, KAFKA, "native"), on_kafka),
        (kafka_cluster, on_cluster),
    ]

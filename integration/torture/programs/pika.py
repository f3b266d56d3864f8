"""pika: a BlockingConnection with confirms; a worker by callbacks, which connects again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
from pika.exceptions import AMQPError

from .ledger import at_once, handle, is_over
from .left import Left, of_rabbitmq


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True)
        persistent = pika.BasicProperties(delivery_mode=2)
        yield lambda body: channel.basic_publish("", queue, body.encode(), persistent, mandatory=True)
    finally:
        if connection.is_open:
            connection.close()


def consume(url: str, queue: str) -> None:
    while not is_over():
        try:
            _consume(url, queue)
        except (AMQPError, OSError):
            time.sleep(0.1)


def _consume(url: str, queue: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.basic_qos(prefetch_count=at_once())

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        handle(body.decode())
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, on_message)
    while not is_over():
        connection.process_data_events(time_limit=0.05)
    connection.close()


def counts(url: str, queue: str) -> Left:
    return of_rabbitmq(url, queue)

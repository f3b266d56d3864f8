"""RabbitMQ, as the demo runs it with pika."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from queueprop.cli.demo.brokers import DEMO_NEEDS, Broker, Server

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes


class RabbitMQ(Broker):
    title = "pika"
    needs: Sequence[str] = (*DEMO_NEEDS, "pika")
    order_service = "queueprop.cli.demo.rabbitmq.order_service"
    notification_service = "queueprop.cli.demo.rabbitmq.notification_service"

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        from queueprop.cli.demo.rabbitmq_server import rabbitmq_server

        with rabbitmq_server(processes, environ) as found:
            if found.is_private:
                yield Server(found.what, {"RABBITMQ_URL": found.url})
                return
            # Somebody else's: queues of our own, and nothing is left of them.
            queue = f"emails-{secrets.token_hex(4)}"
            try:
                yield Server(found.what, {"RABBITMQ_URL": found.url, "QUEUE": queue})
            finally:
                _remove(queue, found.url)


def _remove(queue: str, url: str) -> None:
    from pika import BlockingConnection, URLParameters
    from pika.exceptions import AMQPError

    with suppress(AMQPError), BlockingConnection(URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_delete(queue)
        channel.queue_delete(f"{queue}-later")

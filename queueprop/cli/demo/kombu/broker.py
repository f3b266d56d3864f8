"""kombu, as the demo runs it: on Redis, which needs no installation."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from queueprop.cli.demo.brokers import DEMO_NEEDS, Broker, Server

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes


class Kombu(Broker):
    title = "kombu"
    needs = (*DEMO_NEEDS, "kombu", "redis")
    order_service = "queueprop.cli.demo.kombu.order_service"
    notification_service = "queueprop.cli.demo.kombu.notification_service"

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        from queueprop.cli.demo.redis_server import redis_server

        with redis_server(processes, environ) as found:
            # A queue of our own, since the server may be somebody else's; nothing is left in it.
            queue = f"emails-{secrets.token_hex(4)}"
            environment = {"BROKER_URL": found.url, **({} if found.is_private else {"QUEUE": queue})}
            try:
                yield Server(found.what, environment)
            finally:
                if not found.is_private:
                    _remove(queue, found.url)


def _remove(queue: str, url: str) -> None:
    from redis import Redis, RedisError

    with suppress(RedisError), Redis.from_url(url) as connection:
        connection.delete(queue)

"""Dramatiq, as the demo runs it: on Redis, which needs no installation."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from queueprop.cli.demo.brokers import DEMO_NEEDS, Broker, Server

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes


class Dramatiq(Broker):
    title = "Dramatiq"
    needs = (*DEMO_NEEDS, "dramatiq", "redis")
    order_service = "queueprop.cli.demo.dramatiq.order_service"
    notification_service = "queueprop.cli.demo.dramatiq.notification_service"

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        from queueprop.cli.demo.redis_server import redis_server

        with redis_server(processes, environ) as found:
            # Keys of our own, since the server may be somebody else's; nothing is left of them.
            namespace = f"queueprop-demo-{secrets.token_hex(4)}"
            try:
                yield Server(found.what, {"REDIS_URL": found.url, "NAMESPACE": namespace})
            finally:
                if not found.is_private:
                    _remove(namespace, found.url)


def _remove(namespace: str, url: str) -> None:
    from redis import Redis, RedisError

    with suppress(RedisError), Redis.from_url(url) as connection:
        for key in connection.scan_iter(f"{namespace}:*"):
            connection.delete(key)

"""RQ, as the demo runs it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from queueprop.cli.demo.brokers import DEMO_NEEDS, Broker, Server

if TYPE_CHECKING:
    from queueprop.cli.demo.processes import Processes


class RQ(Broker):
    title = "RQ"
    needs = (*DEMO_NEEDS, "rq", "redis")
    order_service = "queueprop.cli.demo.rq.order_service"
    notification_service = "queueprop.cli.demo.rq.notification_service"

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        from queueprop.cli.demo.redis_server import redis_server

        with redis_server(processes, environ) as found:
            if found.is_private:
                yield Server(found.what, {"REDIS_URL": found.url})
                return
            # Somebody else's: a queue of our own, and nothing is left in it.
            queue = f"emails-{secrets.token_hex(4)}"
            try:
                yield Server(found.what, {"REDIS_URL": found.url, "QUEUE": queue})
            finally:
                _remove(queue, found.url)


def _remove(name: str, url: str) -> None:
    """The queue, and every job that was in it."""
    from redis import Redis, RedisError
    from rq import Queue

    with suppress(RedisError), Redis.from_url(url) as connection:
        queue = Queue(name, connection=connection)
        for registry in (
            queue.finished_job_registry,
            queue.failed_job_registry,
            queue.scheduled_job_registry,
            queue.started_job_registry,
        ):
            for job_id in registry.get_job_ids():
                job = queue.fetch_job(job_id)
                if job is not None:
                    job.delete()
        queue.delete(delete_jobs=True)

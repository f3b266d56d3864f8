"""``python -m examples.orders``: starts everything that the example needs, sends some orders, shows their traces.

ORDERS_QUEUE chooses the queue; its server is had as ``queueprop demo`` has it. With OTEL_EXPORTER_OTLP_ENDPOINT the
spans also go there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from queueprop.cli.demo import brokers
from queueprop.cli.demo.processes import Died, Process, Processes, accepts, free_port, until
from queueprop.cli.demo.signals import Stopped, StopSignals
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.receiver import Receiver
from queueprop.testing import orphans, render_tree
from queueprop.testing.tree import SpanRecord

from . import config, queues

CHECKOUT = Path(__file__).absolute().parents[2]

# The embedded servers are those of `queueprop demo`, by the names that it has for them.
SERVERS = {"bullmq": "bullmq", "celery": "celery", "kafka": "kafka", "rabbitmq": "aio-pika", "rq": "rq"}

CUSTOMER = {"x-tenant-id": "acme", "x-user-id": "ada"}
ORDERS = (
    {"item": "coffee", "email": "ada@example.com"},
    {"item": "bread", "email": "ada@example.com", "card": "flaky"},  # paid at the second attempt
    {"item": "tea", "email": "ada@example.com"},  # out of stock
    {"item": "coffee", "email": "ada@example.com", "card": "fails"},
    {"item": "coffee", "email": "nobody@example.com"},  # the worker fails
)
NOTIFICATIONS = 3

STARTUP, PATIENCE = 30.0, 20.0
"""Seconds: for the services to begin, and for the notifications to be tried."""


def main() -> int:
    with StopSignals() as signals:
        try:
            with Receiver(Forward.of(os.environ)) as receiver, Processes(show_log, signals.held) as processes:
                return run(receiver, processes)
        except Stopped as stopped:
            return stopped.status
        except (Died, brokers.NoServer, TimeoutError, OSError) as error:
            print(f"examples.orders: {error}", file=sys.stderr)
            return 1


def run(receiver: Receiver, processes: Processes) -> int:
    with brokers.load(SERVERS[config.QUEUE]).server(processes, os.environ) as server:
        print(f"order-service, notification-service, and {server.what} between them\n")
        with (
            services(processes, {**environment(receiver), **server.environment}) as running,
            httpx.Client(base_url=running.orders_url, headers=CUSTOMER, trust_env=False) as client,
        ):
            answers = [client.post("/orders", json=order) for order in ORDERS]
            wait_for_notifications(receiver, running.processes)
            client.get(f"/orders/{answers[0].json()['order_id']}")
    spans = receiver.spans()
    print(f"\n{render_tree(spans, timeline=30)}")
    lost = orphans(spans)
    print(f"\n{NOTIFICATIONS} messages, {len(processed(spans))} deliveries, {len(lost)} orphans")
    return 0 if len(processed(spans)) == NOTIFICATIONS and not lost else 1


class Services(NamedTuple):
    orders_url: str
    processes: Sequence[Process]


@contextlib.contextmanager
def services(processes: Processes, environ: Mapping[str, str]) -> Iterator[Services]:
    """The three processes, from when they are ready until they have ended, in order and so with their last spans."""

    def start(name: str, module: str, **more: str) -> Process:
        return processes.start(name, [sys.executable, "-m", f"examples.orders.{module}"], {**environ, **more})

    migration = start("migration", "database")
    with contextlib.suppress(Died):  # it ends, as it is to
        until("the tables", lambda: False, STARTUP, migration)
    orders, notifications = free_port(), free_port()
    worker = start("notification-service", "notification_service")
    api = start("notification-service", "notification_api", PORT=str(notifications))
    http = start(
        "order-service",
        "order_service",
        PORT=str(orders),
        ORDERS_NOTIFICATION_URL=f"http://127.0.0.1:{notifications}",
    )
    until(
        "the services",
        lambda: accepts(orders) and accepts(notifications) and worker.has_printed(queues.READY),
        STARTUP,
        *(worker, api, http),
    )
    try:
        yield Services(f"http://127.0.0.1:{orders}", (worker, api, http))
    finally:
        processes.stop(http, worker, api)


def environment(receiver: Receiver) -> dict[str, str]:
    """What the services get besides this process's environment, of which no setting of OpenTelemetry is theirs.

    They run in a folder that is gone afterwards, and so is SQLite's file, the default of ORDERS_DATABASE_URL.
    """
    return {
        **{name: "" for name in os.environ if name.startswith("OTEL_")},
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel,process",  # the process id is shown
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONUNBUFFERED": "1",
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",  # macOS: RQ's worker forks
    }


def wait_for_notifications(receiver: Receiver, running: Sequence[Process]) -> None:
    with contextlib.suppress(TimeoutError):  # the last line says what is missing
        until("notifications", lambda: len(processed(receiver.spans())) >= NOTIFICATIONS, PATIENCE, *running)


def processed(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    return [span for span in spans if span.kind == "CONSUMER"]


def show_log(process: str, line: str) -> None:
    if '"trace_id"' in line:
        print(f"{process:20}  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The services of ``examples/orders``, as processes of a test's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from queueprop.cli.demo.processes import Died, Process, Processes, accepts, free_port, until

from .live import unique

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PATIENCE = 90.0
"""Seconds; everything here waits for conditions."""


def queue_environment(queue: str, url: str) -> dict[str, str]:
    """How the services find the queue: one of this run's own, on the server at ``url``."""
    name = unique("orders")
    of_queue = {
        "rq": {"REDIS_URL": url, "QUEUE": name},
        "rabbitmq": {"RABBITMQ_URL": url, "QUEUE": name},
        "bullmq": {"REDIS_URL": url, "QUEUE": name},
        "celery": {"REDIS_URL": url, "QUEUE": name},
        "kafka": {"KAFKA_SERVERS": url.rpartition("://")[2], "TOPIC": name},
    }
    return {"ORDERS_QUEUE": queue, **of_queue[queue]}


class Services:
    """Those of one run, in a folder of their own: one order-service, and as many workers as are started."""

    def __init__(self, processes: Processes, environ: Mapping[str, str]) -> None:
        """``environ`` is added to what all of them need."""
        # Beside a link in a folder of its own, so that queueprop is the one that is installed, and not the checkout's.
        (processes.folder / "examples").symlink_to(EXAMPLES)
        self._processes = processes
        self._environ = {
            "PYTHONPATH": str(processes.folder),
            "PYTHONSAFEPATH": "",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "",  # else each of a dozen processes would compile SQLAlchemy, for seconds
            "NO_PROXY": "127.0.0.1",
            **environ,
        }
        self.folder = processes.folder
        self.running: list[Process] = []

    def prepare(self) -> None:
        """The tables."""
        migration = self._start("migration", "examples.orders.database")
        with suppress(Died):  # it ends, as it is to; where it failed, the first order says so
            until("the tables", lambda: False, PATIENCE, migration)

    def start_order_service(self, **environ: str) -> Process:
        self._port = free_port()
        return self._start_uvicorn("order_service", self._port, **environ)

    def start_notification_api(self) -> str:
        """Its URL."""
        port = free_port()
        self._start_uvicorn("notification_api", port)
        return f"http://127.0.0.1:{port}"

    def start_worker(self) -> Process:
        worker = self._start("worker", "examples.orders.notification_service")
        self.running.append(worker)
        return worker

    def ready(self) -> None:
        workers = [process for process in self.running if process.name == "worker"]
        self.until(
            "the services",
            lambda: accepts(self._port) and all(it.has_printed("waiting for messages") for it in workers),
        )

    @property
    def orders_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def until(self, what: str, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Raises TimeoutError when it does not hold within so many seconds, Died when a service has ended."""
        until(what, condition, patience, *self.running)

    def stop(self, *processes: Process) -> None:
        """SIGTERM, and SIGKILL when it takes longer than eight seconds."""
        for process in processes:
            self.running.remove(process)
        self._processes.stop(*processes)

    def _start_uvicorn(self, module: str, port: int, **environ: str) -> Process:
        app = f"examples.orders.{module}:create_app"
        options = ("--port", str(port), "--no-access-log", "--log-level", "warning")
        process = self._start(module, "uvicorn", "--factory", app, *options, **environ)
        self.running.append(process)
        return process

    def _start(self, name: str, module: str, *arguments: str, **environ: str) -> Process:
        command = [sys.executable, "-m", module, *arguments]
        return self._processes.start(name, command, {**self._environ, **environ})

"""A Celery application whose worker sets up tracing with ``configure_tracing``, for ``test_celery_ends.py``.

Where it does so, and what its pool is, stands in the environment: a worker is a program of its own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, signals
from opentelemetry import trace

from queueprop.sdk import configure_tracing

FOLDER = "_QUEUEPROP_CELERY_FOLDER"
CONFIGURED = "_QUEUEPROP_CELERY_CONFIGURED"
"""``at import``, ``before celery`` is another module's; ``in each process``, by Celery's signal."""
TASKS_PER_CHILD = "_QUEUEPROP_CELERY_TASKS_PER_CHILD"
START_METHOD = "_QUEUEPROP_CELERY_START_METHOD"


def make(folder: Path) -> Celery:
    """The broker is a folder: ends of processes do not ask for more."""
    made = Celery("integration.celery_ends", broker="filesystem://", task_ignore_result=True)
    made.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder),
            "data_folder_out": str(folder),
            "control_folder": str(folder / "control"),
        },
        worker_max_tasks_per_child=int(os.environ.get(TASKS_PER_CHILD, "0")) or None,
        worker_prefetch_multiplier=1,
        worker_pool_start_method=os.environ.get(START_METHOD, "fork"),
        broker_connection_retry_on_startup=True,
    )
    return made


def _span(name: str) -> None:
    trace.get_tracer("worker").start_span(name).end()


def _configure(**_: object) -> None:
    configure_tracing("worker", exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "20")))


if os.environ.get(CONFIGURED) == "at import":
    _configure()
if os.environ.get(CONFIGURED) == "in each process":
    signals.worker_process_init.connect(_configure, weak=False)


def _at_shutdown(**_: object) -> None:
    (Path(os.environ[FOLDER]) / f"shutdown-{os.getpid()}").touch()
    _span("shutdown")


signals.worker_process_shutdown.connect(_at_shutdown, weak=False)

app = make(Path(os.environ.get(FOLDER, "/nonexistent")))


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(seconds: float = 0.0) -> None:
    _span("task")
    time.sleep(seconds)

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
"""Where a file tells of each process that has begun or come to its end, and of each task that has begun."""
BROKER = "_QUEUEPROP_CELERY_BROKER"
CONFIGURED = "_QUEUEPROP_CELERY_CONFIGURED"
"""``at import``, or ``in each process`` by Celery's signal."""
TASKS_PER_CHILD = "_QUEUEPROP_CELERY_TASKS_PER_CHILD"
START_METHOD = "_QUEUEPROP_CELERY_START_METHOD"
"""Of the pool's processes, where Celery can be told (from 5.7 on)."""


def make(broker: str, folder: Path) -> Celery:
    made = Celery("integration.celery_ends", broker=broker, task_ignore_result=True)
    made.conf.update(
        task_default_queue=folder.name,
        worker_max_tasks_per_child=int(os.environ.get(TASKS_PER_CHILD, "0")) or None,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=60.0,  # a spawned child imports all of this first, which a busy machine does slowly
        broker_connection_retry_on_startup=True,
    )
    if broker.startswith("filesystem"):
        data, control = str(folder / "data"), str(folder / "control")
        made.conf.broker_transport_options = {
            "data_folder_in": data,
            "data_folder_out": data,
            "control_folder": control,
        }
    if START_METHOD in os.environ:
        made.conf.worker_pool_start_method = os.environ[START_METHOD]
    return made


def _folder() -> Path:
    return Path(os.environ.get(FOLDER, "/nonexistent"))


def _tell(what: str, number: int) -> None:
    (_folder() / f"{what}-{number}").touch()


def _span(name: str) -> None:
    trace.get_tracer("worker").start_span(name).end()


def _configure(**_: object) -> None:
    configure_tracing("worker", exit_timeout=20)


if os.environ.get(CONFIGURED) == "at import":
    _configure()
if os.environ.get(CONFIGURED) == "in each process":
    signals.worker_process_init.connect(_configure, weak=False)


def _at_start(**_: object) -> None:
    _tell("start", os.getpid())


def _at_shutdown(**_: object) -> None:
    _tell("shutdown", os.getpid())
    _span("shutdown")


signals.worker_process_init.connect(_at_start, weak=False)
signals.worker_process_shutdown.connect(_at_shutdown, weak=False)

app = make(os.environ.get(BROKER, "memory://"), _folder())


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(number: int, seconds: float) -> None:
    _span("task")
    _tell("task", number)
    time.sleep(seconds)

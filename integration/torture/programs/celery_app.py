"""What ``celery -A integration.torture.programs.celery_app worker`` loads: the tests' application, and a task."""

from __future__ import annotations

import os
from typing import Any

from integration import celery_programs

from . import ledger

VISIBILITY = 5
"""Seconds after which Redis' transport gives back what nobody has acked."""


def make(url: str, queue: str) -> Any:
    made = celery_programs.make(url, None, queue)
    is_redis = url.startswith("redis")
    made.conf.update(
        broker_transport_options={"visibility_timeout": VISIBILITY, "polling_interval": 0.1}
        if is_redis
        else {"confirm_publish": True},
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
    )
    made.task(
        ledger.handle,
        name="deliver",
        shared=False,
        acks_late=True,
        reject_on_worker_lost=True,
        ignore_result=True,
    )
    return made


if ledger.URL in os.environ:
    ledger.begin()
app = make(os.environ.get(ledger.URL, "memory://"), os.environ.get(ledger.QUEUE, "celery"))

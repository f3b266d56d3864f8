"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from bullmq import Worker
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")


async def confirm(job: Any, token: str) -> None:
    # Inside queueprop's span, in the trace of the order.
    log.info("confirming %s to %s", job.data["item"], job.data["email"])
    with tracer.start_as_current_span("send mail"):
        await asyncio.sleep(0.02)  # the mail server's answer
        if job.data["email"].startswith("nobody@"):
            raise ValueError(f"no such mailbox: {job.data['email']}")
        if job.data["email"].startswith("busy@") and job.attemptsMade == 0:
            raise ConnectionError("the mail server is busy")


async def run() -> None:
    processor: Any = confirm  # BullMQ's own types want a function that gives a Future
    options: Any = {
        "connection": os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
        "prefix": os.environ.get("NAMESPACE", "bull"),
        "autorun": False,
    }
    worker = Worker("emails", processor, options)
    worker.on("failed", lambda job, error, *_: log.warning("failed: %s", error))
    log.info("waiting for messages")
    await worker.run()


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("bullmq")

    asyncio.run(run())


if __name__ == "__main__":
    main()

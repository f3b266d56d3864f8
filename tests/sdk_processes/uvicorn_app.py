"""An ASGI application for uvicorn that sets up tracing in its lifespan, as tests/test_exit.py runs it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace

from queueprop.sdk import configure_tracing

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    trace.get_tracer("worker").start_span("request").end()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        if event == "lifespan.startup":
            configure_tracing("worker", exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "20")))
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return

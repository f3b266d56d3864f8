"""A WSGI application for gunicorn, and its configuration: tracing is set up in each worker, patched by then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import trace

from queueprop.sdk import configure_tracing

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    trace.get_tracer("worker").start_span("request").end()
    start_response("200 OK", [("content-length", "0")])
    return [b""]


def post_worker_init(worker: object) -> None:
    configure_tracing("worker", exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "20")))

"""What each process does first: the SDK, and the instrumentations of what it uses."""

from __future__ import annotations

import os

from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

import queueprop
from queueprop.sdk import configure_tracing

from . import config, queues

# What asks every few seconds would be most of all traces, and tell nothing. Regular expressions, sought in the URL.
UNTRACED = "/health$,/metrics$"


def configure(service_name: str) -> None:
    """Where the spans go is said by the standard variables, OTEL_EXPORTER_OTLP_ENDPOINT and the others."""
    # The stable names of attributes (http.request.method, db.query.text), which OpenTelemetry's instrumentations
    # do not yet write by themselves.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    configure_tracing(
        service_name,
        resource_attributes={
            "service.version": config.VERSION,
            "deployment.environment.name": config.ENVIRONMENT,
            "deployment.environment": config.ENVIRONMENT,  # its older name, which many a dashboard still reads
        },
    )
    queueprop.instrument(queues.chosen().LIBRARY)
    HTTPXClientInstrumentor().instrument()
    # Each statement gets a comment with its span's traceparent, so that the database's own log, or its list of what
    # runs now, leads to the trace. (No statement is the same twice then: a cache of prepared ones does not help.)
    SQLAlchemyInstrumentor().instrument(
        enable_commenter=True, commenter_options={"db_driver": False, "db_framework": False}
    )


def trace_requests(app: FastAPI) -> None:
    # Without its spans of ASGI's single events, of which each request has three.
    FastAPIInstrumentor.instrument_app(app, excluded_urls=UNTRACED, exclude_spans=["receive", "send"])

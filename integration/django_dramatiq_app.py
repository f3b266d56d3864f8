"""Django settings of a program with django_dramatiq, which its request and its worker both import."""

from __future__ import annotations

import json
import os

from opentelemetry import trace

from integration.contract.telemetry import set_providers
from queueprop.adapters.dramatiq import DramatiqInstrumentor

_given = json.loads(os.environ["DJANGO_DRAMATIQ_APP"])

if not hasattr(trace.get_tracer_provider(), "force_flush"):
    set_providers()
if _given["through"] == "instrumentor":
    DramatiqInstrumentor().instrument()

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.redis.RedisBroker",
    "OPTIONS": {"url": _given["url"], "namespace": _given["namespace"]},
    "MIDDLEWARE": [
        "dramatiq.middleware.TimeLimit",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
        *(["queueprop.adapters.dramatiq.QueuepropMiddleware"] if _given["through"] == "explicit" else []),
    ],
}
INSTALLED_APPS = ["django.contrib.contenttypes", "django_dramatiq", "integration.django_dramatiq_tasks"]
LOGGING_CONFIG = None
SECRET_KEY = "none"


def send() -> None:
    """What a request does."""
    import django

    django.setup()
    from integration.django_dramatiq_tasks.tasks import work

    with trace.get_tracer("app").start_as_current_span("request"):
        work.send("one")
    provider = trace.get_tracer_provider()
    provider.force_flush()  # type: ignore[attr-defined]

"""A Django program with django-rq, which serves one request: in a span of its middleware's, as an instrumented one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

from opentelemetry import trace

from integration.contract.telemetry import set_providers
from queueprop.adapters import rq as adapter

_served: dict[str, str] = {}


def serve(url: str, queue: str, mode: str, what: str, api: str) -> None:
    """``mode`` is django-rq's, which older ones only have as AUTOCOMMIT; ``api`` is how it is traced, or ``none``."""
    _served.update(queue=queue, what=what, api=api)
    provider = None
    if api != "none":
        provider, _ = set_providers()
    if api == "instrumentor":
        adapter.RQInstrumentor().instrument()  # before django_rq can be imported
    _configure(url, queue, mode)
    from django.core.wsgi import get_wsgi_application

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    response: Any = get_wsgi_application()(environ, lambda *status: None)
    with contextlib.closing(response):  # where django says that the request is over
        list(response)
    trace.get_tracer("app").start_span("after").end()
    if provider is not None:
        provider.force_flush()


def _configure(url: str, queue: str, mode: str) -> None:
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_rq"],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[f"{__name__}.traced_request"],
        ROOT_URLCONF=__name__,
        RQ={"COMMIT_MODE": mode, "AUTOCOMMIT": mode != "request_finished"},
        RQ_QUEUES={queue: {"URL": url}},
        SECRET_KEY="none",
    )


def traced_request(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def middleware(request: Any) -> Any:
        with trace.get_tracer("app").start_as_current_span("request"):
            return get_response(request)

    return middleware


def view(request: Any) -> Any:
    import django_rq
    from django.db import transaction
    from django.http import HttpResponse

    from integration import rq_tasks as tasks

    queue = django_rq.get_queue(_served["queue"])
    enqueue = adapter.traced_publish(queue.enqueue) if _served["api"] == "explicit" else queue.enqueue
    with transaction.atomic():
        for number in range(3 if _served["what"] == "three times" else 1):
            with trace.get_tracer("app").start_as_current_span("order"):
                enqueue(tasks.work, str(number))
        if _served["what"] == "and fail":
            raise ValueError("out of stock")
    return HttpResponse("ok")


def __getattr__(name: str) -> Any:
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import path

    return [path("", view)]

"""Puts the hooks around the methods of every application of Celery's, and of its workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.app.task import Task

from queueprop.adapters.celery import joining
from queueprop.adapters.celery.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.rivals import Rival, Rivals
from queueprop.settings import Settings


class CeleryInstrumentor(Adapter):
    """Traces every application: what it sends, and what its workers execute.

    ``opentelemetry-instrument celery -A shop worker`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_celery``.
    """

    __module__ = "queueprop.adapters.celery"

    library = "celery"
    requires = ("celery >= 5.3",)
    rivals = Rivals(
        "celery",
        Rival.contrib("celery", "CeleryInstrumentor"),
        Rival(
            "ddtrace:patch",
            "ddtrace",
            mark="celery:Celery.__datadog_patch",
            switch="DD_TRACE_CELERY_ENABLED=false",
        ),
    )

    def patches(self) -> Iterable[Patch]:
        # Modules of a worker's, which a program that only sends tasks has no need of before.
        from billiard.pool import TimeoutHandler
        from celery import beat
        from celery.app import trace
        from celery.backends.base import Backend
        from celery.worker.consumer import consumer
        from celery.worker.request import Request

        hooks = self._hooks = Hooks(self.engine, self.is_on)
        yield Patch(Celery, "send_task", hooks.send_task)
        yield Patch(Task, "apply", hooks.apply)
        yield Patch(trace, "build_tracer", hooks.build_tracer)
        yield Patch(consumer, "build_tracer", hooks.build_tracer)
        yield Patch(beat.Scheduler, "apply_async", hooks.fire)
        yield Patch(beat.Service, "start", hooks.run_beat)
        yield Patch(Backend, "mark_as_failure", hooks.mark_as_failure)
        yield Patch(TimeoutHandler, "on_hard_timeout", hooks.on_hard_timeout)
        for name, hook in hooks.of_request():
            yield Patch(Request, name, hook)
        for name, hook in hooks.of_consumer():
            yield Patch(consumer.Consumer, name, hook)

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        super()._instrument(settings, **options)
        for signal, receiver in joining.connections(self._hooks):
            signal.connect(receiver, weak=False, dispatch_uid=(_UID, receiver.__name__))
        for app in joining.known_apps():
            joining.wrap_tracers(app, self._hooks, self._hooks.traced)

    def _uninstrument(self, **options: Any) -> None:
        super()._uninstrument(**options)
        for signal, receiver in joining.connections(self._hooks):
            signal.disconnect(receiver, dispatch_uid=(_UID, receiver.__name__))
        for app in joining.known_apps():
            joining.forget_sender(app)
            joining.unwrap_tracers(app, self._hooks)

    _hooks: Hooks


_UID = "queueprop-instrumentor"

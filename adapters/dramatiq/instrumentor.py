"""Puts the hooks around the methods of every broker and worker of Dramatiq's."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from dramatiq.broker import Broker
from dramatiq.worker import _ConsumerThread, _WorkerThread

from queueprop import guard
from queueprop.adapters.dramatiq.hooks import Hooks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.jobs import AUTO_INSTRUMENTATION, Children, lead_to_launcher
from queueprop.kit.rivals import Rival, Rivals


class DramatiqInstrumentor(Adapter):
    """Traces every broker and worker.

    ``opentelemetry-instrument dramatiq app`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_dramatiq``.
    """

    __module__ = "queueprop.adapters.dramatiq"

    library = "dramatiq"
    requires = ("dramatiq >= 1.17",)
    rivals = Rivals(
        "dramatiq",
        Rival(
            "opentelemetry_instrumentor_dramatiq:DramatiqInstrumentor", "opentelemetry-instrumentor-dramatiq"
        ),
    )

    def patches(self) -> Iterable[Patch]:
        hooks = self._hooks = Hooks(self.engine)
        self._children = Children(self.engine.settings.flush_timeout)
        self._covered: set[type] = set()
        yield Patch(Broker, "__init__", self._cover_another)
        yield Patch(Broker, "emit_after", hooks.performing.emit_after)
        for kind in _subclasses(Broker):
            yield from self._patches_of(kind)
        for name, hook in hooks.of_consumer:
            yield Patch(_ConsumerThread, name, hook)
        for name, hook in hooks.of_worker:
            yield Patch(_WorkerThread, name, hook)
        if AUTO_INSTRUMENTATION in sys.modules:
            yield Patch(importlib.import_module("dramatiq.cli"), "main", _with_launcher_in_path)

    def _uninstrument(self, **options: Any) -> None:
        super()._uninstrument(**options)
        self._children = None

    _children: Children | None = None

    def _cover_another(self, wrapped: Wrapped, broker: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the making of a broker, whose class may have come later than this instrumentor."""
        try:
            for kind in type(broker).__mro__:
                if issubclass(kind, Broker) and kind is not Broker:
                    with _lock:
                        self._undo.extend(map(self._patch, self._patches_of(kind)))
        except Exception as error:
            guard.fault("instrumenting a broker of Dramatiq", error)
        return wrapped(*args, **kwargs)

    def _patches_of(self, kind: type) -> Iterator[Patch]:
        if kind in self._covered:
            return
        self._covered.add(kind)
        for name, hook in self._hooks.of_broker:
            if name in vars(kind):
                yield Patch(kind, name, hook)


_lock = threading.Lock()


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    subclass: type[Any]
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _with_launcher_in_path(wrapped: Wrapped, cli: Any, args: Arguments, kwargs: Options) -> Any:
    """Around the command line's main process, which may spawn workers."""
    lead_to_launcher()
    return wrapped(*args, **kwargs)

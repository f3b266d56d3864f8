"""The facts of a process, read: they come from a program, and may be anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Facts:
    """What ``probe.facts`` found, of which nothing is trusted to be there."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    @property
    def variables(self) -> Mapping[str, str]:
        return _texts(self._found.get("variables"))

    @property
    def versions(self) -> Mapping[str, str]:
        return _texts(self._found.get("versions"))

    @property
    def modules(self) -> frozenset[str]:
        return frozenset(_list_of_texts(self._found.get("modules")))

    @property
    def instrumented(self) -> Mapping[str, bool]:
        """Class -> whether it instruments now, of every instrumentor that was made."""
        found = {}
        for each in _list(self._found.get("instrumentors")):
            if isinstance(each, Mapping) and isinstance(each.get("class"), str):
                found[each["class"]] = bool(each.get("instrumented"))
        return found

    def is_instrumented(self, path: str) -> bool:
        """Whether the instrumentor ``module:Class`` instruments now. Its class may lie in a module below that one."""
        module, _, name = path.partition(":")
        return any(
            is_on and found.startswith(f"{module}.") and found.endswith(f".{name}")
            for found, is_on in self.instrumented.items()
        )

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings that instrumentors of ours were given, as text; of several the first one's."""
        for each in _list(self._found.get("instrumentors")):
            if (
                isinstance(each, Mapping)
                and each.get("instrumented")
                and (found := _texts(each.get("settings")))
            ):
                return found
        return {}

    @property
    def tracing(self) -> Mapping[str, Any]:
        return _mapping(self._found.get("tracing"))

    @property
    def provider(self) -> str | None:
        """The class of the tracer provider that was set; None without one."""
        found = self.tracing.get("provider")
        return found if isinstance(found, str) else None

    @property
    def is_configured_by_queueprop(self) -> bool:
        return self.tracing.get("is_configured_by_queueprop") is True

    @property
    def processors(self) -> list[Mapping[str, Any]]:
        return [each for each in _list(self.tracing.get("processors")) if isinstance(each, Mapping)]

    @property
    def meter_provider(self) -> str | None:
        found = _mapping(self._found.get("metering")).get("provider")
        return found if isinstance(found, str) else None

    @property
    def propagators(self) -> list[str]:
        return _list_of_texts(self._found.get("propagators"))

    @property
    def sigterm(self) -> str:
        return str(self._found.get("sigterm", "unknown"))

    @property
    def green(self) -> str | None:
        """``gevent`` or ``eventlet``, where it has patched threads."""
        found = _mapping(self._found.get("green"))
        return next((name for name in ("gevent", "eventlet") if found.get(name) is True), None)

    @property
    def running(self) -> frozenset[str]:
        return frozenset(_list_of_texts(self._found.get("running")))

    @property
    def is_importing(self) -> bool:
        return self._found.get("importing") is True

    @property
    def worker_hooks(self) -> int:
        found = self._found.get("worker_hooks")
        return found if isinstance(found, int) else 0

    @property
    def uwsgi(self) -> Mapping[str, Any] | None:
        found = self._found.get("uwsgi")
        return found if isinstance(found, Mapping) else None

    @property
    def said(self) -> list[str]:
        return _list_of_texts(self._found.get("said"))

    @property
    def troubles(self) -> list[str]:
        return _list_of_texts(self._found.get("troubles"))

    @property
    def title(self) -> str:
        """``python worker.py (pid 71)``."""
        program = _mapping(self._found.get("program"))
        return f"{' '.join(_list_of_texts(program.get('argv')))} (pid {self._found.get('pid')})"

    @property
    def python(self) -> str:
        program = _mapping(self._found.get("program"))
        return f"{program.get('python')} ({program.get('executable')})"


@contextmanager
def variables_of(facts: Facts) -> Iterator[None]:
    """The environment is that of the facts, for code that reads it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(facts.variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _texts(found: object) -> dict[str, str]:
    return {
        name: value
        for name, value in _mapping(found).items()
        if isinstance(name, str) and isinstance(value, str) and name and "=" not in name
    }


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def _list_of_texts(found: object) -> list[str]:
    return [each for each in _list(found) if isinstance(each, str)]

"""One exporter for each process, of spans and of metrics alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from queueprop import guard
from queueprop.process import flush as flushing


class PerProcess:
    """An exporter of its own for each process, made when a child first needs it.

    A forked child inherits the parent's open connections, and on a shared one each would read the other's
    answers. It also counts failed exports, which the SDK forgets.

    Arguments:
        make: gives an exporter; what it raises in the first process is raised here.
        success: what an export that succeeded answers.
    """

    def __init__(self, make: Callable[[], Any], success: object) -> None:
        self._make = make
        self._success = success
        self._exporter = make()
        self._pid = os.getpid()
        self.failures = 0

    def hand_over(self, batch: Any, **limits: float) -> Any:
        """Exports it, and gives the exporter's answer. Raises what it raises."""
        result = None
        try:
            if self._pid != os.getpid():
                self._exporter = self._make()
                self._pid = os.getpid()
            result = self._export(batch, **limits)
        finally:
            self.failures += result is not self._success
        return result

    def _export(self, batch: Any, **limits: float) -> Any:
        _blocks_from_now_on()
        try:
            result = self._exporter.export(batch, **limits)
        except RuntimeError:
            if not _blocks_from_now_on():
                raise
        else:
            if result is self._success or not _blocks_from_now_on():
                return result
        return self._exporter.export(batch, **limits)  # the end began meanwhile

    def shutdown(self) -> None:
        if self._pid == os.getpid():
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._pid != os.getpid() or self._exporter.force_flush(timeout_millis) is not False


def _blocks_from_now_on() -> bool:
    """Whether gevent's lookup of the Collector's address blocks, and did not before.

    It is done in a thread of gevent's, and from Python 3.12 on none can be started as soon as the interpreter is
    ending, which is when the last spans are exported. Better it blocks then.
    """
    if not flushing.waits_in_gevent():
        return False
    try:
        monkey, hub = import_module("gevent.monkey"), import_module("gevent").get_hub()
        blocking = import_module("gevent.resolver.blocking").Resolver
        if isinstance(hub.resolver, blocking):
            return False
        try:
            monkey.get_original("_thread", "start_new_thread")(int, ())
        except RuntimeError:
            hub.resolver = blocking(hub)
            return True
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        guard.log(logging.DEBUG, "gevent's resolver: %s", error)  # the export may do without
    return False

"""Where the hooks go: around which methods of a broker, of a consumer's thread and of a worker's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from queueprop import guard
from queueprop.adapters.dramatiq.performing import PerformingHooks
from queueprop.adapters.dramatiq.publishing import PublishingHooks
from queueprop.engine.engine import Engine
from queueprop.kit import calls
from queueprop.kit.calls import Hook


class Hooks:
    """Those of one engine, by the names of the methods that they go around."""

    def __init__(self, engine: Engine) -> None:
        self.publishing = publishing = PublishingHooks(engine)
        self.performing = performing = PerformingHooks(engine)
        self.of_broker = (("enqueue", publishing.enqueue), ("consume", performing.consume))
        self.of_consumer = (
            ("handle_message", performing.handle_message),
            ("handle_delayed_messages", publishing.handle_delayed_messages),
            ("post_process_message", performing.post_process_message),
        )
        self.of_worker = (("process_message", performing.process_message),)

    # On the objects of one broker, without patching classes

    def join_broker(self, broker: Any) -> None:
        _join(broker, self.of_broker)

    def join_consumer(self, thread: Any) -> None:
        _join(thread, self.of_consumer)

    def join_worker(self, thread: Any) -> None:
        _join(thread, self.of_worker)


def _join(owner: Any, hooks: Iterable[tuple[str, Hook]]) -> None:
    try:
        calls.hook_methods(owner, hooks)
    except Exception as error:
        guard.fault("putting hooks around a part of Dramatiq", error, about=type(owner).__name__)

"""What RQ's workers import: the contract's one job, its failure callback, and worker classes that are traced.

It also stands for the module in which a user keeps their tasks, in whatever process that is imported. What the run
has set up in the test's process reaches others through the environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import rq
import rq.worker

from integration.contract.actions import HANDLER, Delivery, Handler, run
from integration.contract.telemetry import tell_library_error
from queueprop import Settings
from queueprop.adapters import rq as adapter

OTHER_QUEUE = "_QUEUEPROP_CONTRACT_OTHER_QUEUE"
SETTINGS = "_QUEUEPROP_CONTRACT_SETTINGS"
"""The settings of the explicit API, where it is on."""


def perform(body: str) -> None:
    """The job: hands over to the handler that the run asked for."""
    current = rq.get_current_job()
    assert current is not None

    def publish(body: str, meta: Mapping[str, object] | None = None) -> None:
        queue = rq.Queue(os.environ[OTHER_QUEUE], connection=current.connection)
        settings = explicit_settings()
        enqueue = (
            queue.enqueue if settings is None else adapter.traced_publish(queue.enqueue, settings=settings)
        )
        enqueue(perform, body, meta=meta)

    run(Handler.load(os.environ[HANDLER]), Delivery(body, current.meta, publish))


def perform_decorated(body: str) -> None:
    """The same with the decorator for jobs, for a worker that is not traced."""
    adapter.traced_consumer(settings=explicit_settings())(perform)(body)


def on_failure(job: Any, connection: Any, kind: Any, error: BaseException, traceback: Any) -> None:
    """RQ calls it with the exception that it was given."""
    tell_library_error(error)


def explicit_settings() -> Settings | None:
    text = os.environ.get(SETTINGS)
    if text is None:
        return None
    return here[-1] if here else Settings(**json.loads(text))


here: list[Settings] = []
"""The settings of this process and of those that it forks, which may also be functions."""


def dump_settings(settings: Settings) -> str:
    """Those that are text, for processes that are spawned."""
    values = {setting.name: getattr(settings, setting.name) for setting in dataclasses.fields(settings)}
    return json.dumps(
        {name: value for name, value in values.items() if isinstance(value, (str, int, float, tuple))}
    )


class TracedWorker(adapter.TracedWorker):
    queueprop_settings = explicit_settings()


class TracedSimpleWorker(adapter.TracedSimpleWorker):
    queueprop_settings = explicit_settings()


if hasattr(rq.worker, "SpawnWorker"):

    class TracedSpawnWorker(adapter.TracedSpawnWorker):
        queueprop_settings = explicit_settings()


def __getattr__(name: str) -> Any:
    """``DerivedWorker``, ``DerivedSpawnWorker``...: plain subclasses, which a spawned horse finds here as well."""
    if not name.startswith("Derived"):
        raise AttributeError(name)
    kind = type(name, (getattr(rq.worker, name.removeprefix("Derived")),), {"__module__": __name__})
    globals()[name] = kind
    return kind


def forget_derived() -> None:
    """The next ones are made anew."""
    for name in [name for name in globals() if name.startswith("Derived")]:
        del globals()[name]

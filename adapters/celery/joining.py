"""The hooks on the objects of one application, for those who patch nothing; and on what there is already."""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from billiard import get_start_method
from celery import _state, bootsteps, signals

from queueprop import guard
from queueprop.adapters.celery.hooks import TRACED, Hooks
from queueprop.adapters.celery.ledger import ledger
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.jobs import lead_to_launcher


class Joined:
    """What the hooks on an application's objects do: those of a word of the explicit API, or the application's own."""

    def __init__(self) -> None:
        self._by_app: weakref.WeakKeyDictionary[Any, Hooks] = weakref.WeakKeyDictionary()

    def join(self, app: Any) -> None:
        """Puts hooks around the calls of this application that publish, where there are none yet."""
        calls.hook_methods(app, [("send_task", _found("send_task"))])

    def trace(self, app: Any, hooks: Hooks) -> None:
        """All of this application's, its workers included."""
        self._by_app[app] = hooks
        self.join(app)
        app.steps["consumer"].add(_Step)
        wrap_tracers(app, self, _traced)

    def hooks_of(self, app: Any) -> Hooks | None:
        return self._by_app.get(app)

    def leave(self, app: Any) -> None:
        self._by_app.pop(app, None)


joined = Joined()

explicit: ContextVar[Hooks | None] = ContextVar("queueprop-celery-explicit", default=None)
"""Those of the word of the explicit API that the code at hand runs inside."""


def _found(name: str, app: Any = None) -> Hook:
    """Calls the hook of this name of whoever traces the application now; else the call goes on as it is."""

    def hook(wrapped: Wrapped, owner: Any, args: Arguments, kwargs: Options) -> Any:
        hooks = explicit.get() or joined.hooks_of(app or getattr(owner, "app", None) or owner)
        if hooks is None:
            return wrapped(*args, **kwargs)
        return getattr(hooks, name)(wrapped, owner, args, kwargs)

    return hook


def forget_sender(app: Any) -> None:
    """Takes the hook away, and puts back what was there, where nobody has wrapped it since."""
    amqp = vars(app).get("amqp")
    sender: Any = None if amqp is None else vars(amqp).get("send_task_message")
    if _is_outermost(sender, True):
        amqp.send_task_message = sender.__wrapped__


def known_apps() -> list[Any]:
    return list(_state._get_active_apps())


# Executing


def wrap_tracers(app: Any, by: object, traced: Callable[[Any, Any, Any], Any]) -> None:
    """Puts the tracers that the tasks of an application have by now inside spans, by ``traced(tracer, task, app)``.

    ``by`` is who does it: once.
    """
    for task, tracer in _tracers(app):
        if not any(it is by for it in _marks(tracer)):
            inside = traced(tracer, task, app)
            setattr(inside, TRACED, by)
            task.__trace__ = inside


def unwrap_tracers(app: Any, by: object) -> None:
    """Takes them out again, where nobody has wrapped them since."""
    for task, tracer in _tracers(app):
        if _is_outermost(tracer, by):
            task.__trace__ = tracer.__wrapped__


def _is_outermost(function: Any, by: object) -> bool:
    """Whether this is what we have put around another function, and not somebody's wrapper around that: of one that
    ``functools.wraps`` has made our mark is a copy.
    """
    if getattr(function, TRACED, None) is not by:
        return False
    return getattr(function.__wrapped__, TRACED, None) is not by


def _tracers(app: Any) -> Iterator[tuple[Any, Any]]:
    tasks = getattr(app, "_tasks", None)
    for task in list(tasks.values()) if tasks else ():
        tracer = vars(task).get("__trace__")
        if tracer is not None:
            yield task, tracer


def _marks(tracer: Any) -> Iterator[object]:
    """Who of ours has wrapped a tracer."""
    while tracer is not None:
        yield getattr(tracer, TRACED, None)
        tracer = getattr(tracer, "__wrapped__", None)


def _traced(tracer: Any, task: Any, app: Any) -> Any:
    """A tracer, by the hooks that the application has when it is called."""

    def trace_task(*args: Any, **kwargs: Any) -> Any:
        hooks = joined.hooks_of(app)
        return tracer(*args, **kwargs) if hooks is None else hooks.trace(tracer, task, app, args, kwargs)

    trace_task.__wrapped__ = tracer  # type: ignore[attr-defined]
    return trace_task


class _Step(bootsteps.Step):  # type: ignore[misc]
    """In a worker of a traced application, before it takes its first message."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        try:
            _join_consumer(consumer)
        except Exception as error:
            guard.fault("joining a worker of Celery", error)


def _join_consumer(consumer: Any) -> None:
    calls.hook_methods(consumer, [("update_strategies", _update_strategies)])
    calls.hook_methods(consumer, [(name, _found(name)) for name in _OF_CONSUMER])
    pool = getattr(consumer.pool, "_pool", None)
    for owner in (pool, getattr(pool, "_timeout_handler", None)):
        if hasattr(owner, "on_hard_timeout"):
            calls.hook_methods(owner, [("on_hard_timeout", _found("on_hard_timeout", consumer.app))])


_OF_CONSUMER = ("on_unknown_task", "on_invalid_task", "on_decode_error", "on_unknown_message")


def _update_strategies(wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
    """Around what a consumer does with all tasks when it connects: how they are received, and their tracers."""
    for task in list(consumer.app.tasks.values()):
        _trace_requests(task)
        calls.hook_methods(task.backend, [("mark_as_failure", _found("mark_as_failure"))])
    result = wrapped(*args, **kwargs)
    wrap_tracers(consumer.app, joined, _traced)
    return result


def _trace_requests(task: Any) -> None:
    """Gives a task a class of requests whose methods have hooks: Celery asks a task for it."""
    found = task.Request
    kind = found
    if isinstance(found, str):
        module, _, name = found.partition(":")
        kind = getattr(importlib.import_module(module), name)
    if getattr(kind, TRACED, None) is not None:
        return
    task.Request = _requests_of(kind)


@functools.lru_cache(maxsize=64)
def _requests_of(kind: type) -> type:
    def method(name: str, hook: Hook) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return hook(functools.partial(getattr(kind, name), self), self, args, kwargs)

        return call

    methods = {name: method(name, _found(hook)) for name, hook in _REQUESTS}
    return type(kind.__name__, (kind,), {TRACED: True, **methods})


_REQUESTS = (
    ("on_failure", "on_failure"),
    ("on_timeout", "on_timeout"),
    ("_announce_revoked", "announce_revoked"),
)


# Children of the pool


def on_child_start(**_: Any) -> None:
    """A child has made its tracers, also where it is told of queueprop only now."""
    try:
        # Behind the program's own, which may make spans. They are kept in the order in which they came.
        signals.worker_process_shutdown.receivers.sort(key=_is_ours)
    except Exception as error:
        guard.fault("preparing for the end of a child of a pool", error)
    for app in known_apps():
        if joined.hooks_of(app) is not None:
            wrap_tracers(app, joined, _traced)


def _is_ours(kept: Any) -> bool:
    return isinstance(getattr(kept[1], "__self__", None), Hooks)


def on_worker_start(sender: Any = None, **_: Any) -> None:
    """Before a worker has children."""
    try:
        conf = getattr(getattr(sender, "app", None), "conf", None)
        method = getattr(conf, "worker_pool_start_method", None) or get_start_method()
        ledger.prepare(spawns=method != "fork")
        if method != "fork":
            lead_to_launcher()
    except Exception as error:
        guard.fault("preparing for the children of a worker", error)


def connections(hooks: Hooks) -> Iterable[tuple[Any, Callable[..., Any]]]:
    """Celery's signals, and what is called at them."""
    return (
        (signals.worker_init, on_worker_start),
        (signals.worker_process_init, on_child_start),
        (signals.worker_process_shutdown, hooks.flush),
    )

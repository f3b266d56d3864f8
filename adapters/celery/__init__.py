"""Celery: tasks in their callers' traces. Celery 5.3 and newer, both task protocols, every pool.

The context travels in the message's headers, flat and as text, beside Celery's own. It is that of the moment when a
task is sent, and is written into a copy: the caller's ``headers`` stay as they are.

A retry (``retry``, ``autoretry_for``, a lost worker's, ``chord_unlock``) is no publish: its message keeps the context
of the first one, so that all attempts are siblings, each with a CONSUMER span of its own. What a task leads to (the
next of a chain, callbacks, errbacks, the body of a chord, what replaces it) is a publish inside its span.

Four things shape this file:

- Celery's signals come too late, in no certain order, and not at all when a publish fails. So the two calls that matter
  are wrapped whole: ``send_task_message``, and the tracer of a task.
- A time limit is an ``Exception`` that a signal raises anywhere in a child, code of ours included.
- Children of the prefork pool end in ``os._exit``, or are killed. They hand over their spans when Celery tells them to
  end; the span of a task whose child could not end it is its parent's (``ledger``).
- kombu is below: its own adapter leaves alone what this one sends.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from queueprop import guard
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.handlers import run_inside
from queueprop.kit.libraries import missing_extra
from queueprop.kit.nesting import Mark
from queueprop.kit.on_demand import on_demand
from queueprop.settings import Settings

try:
    from billiard.exceptions import SoftTimeLimitExceeded
    from celery import Celery, current_app, current_task
    from celery.app.task import Task
    from celery.canvas import Signature
except ModuleNotFoundError as error:
    if error.name != "celery":
        raise
    raise missing_extra(__name__, "Celery", "celery") from None

from queueprop.adapters.celery import joining
from queueprop.adapters.celery.hooks import UNKNOWN_MESSAGE as UNKNOWN_MESSAGE
from queueprop.adapters.celery.hooks import Hooks
from queueprop.adapters.celery.joining import explicit, joined
from queueprop.adapters.celery.messages import SENT_AT as SENT_AT
from queueprop.adapters.celery.messages import SYSTEM as SYSTEM
from queueprop.adapters.celery.messages import TASK_NAME as TASK_NAME
from queueprop.adapters.celery.messages import TaskMessage as TaskMessage
from queueprop.adapters.celery.performing import Execution, failure_in, is_executed

if TYPE_CHECKING:
    from queueprop.adapters.celery.instrumentor import CeleryInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, CeleryInstrumentor="instrumentor")

__all__ = [
    "SENT_AT",
    "SYSTEM",
    "TASK_NAME",
    "UNKNOWN_MESSAGE",
    "CeleryInstrumentor",
    "TaskMessage",
    "traced_app",
    "traced_consumer",
    "traced_publish",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

guard.let_through(SoftTimeLimitExceeded)


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a call that sends tasks: ``send = traced_publish(send_mail.delay)``.

    Every task that the call sends has a PRODUCER span: each one of a group, the first one of a chain. A retry has
    none. Tasks that are executed at once (``task_always_eager``) are left to ``CeleryInstrumentor``.

    Args:
        publish: ``delay`` or ``apply_async`` of a task or a signature (a chain, group or chord is one), or an
            application's ``send_task``; also a ``functools.partial`` of one of them.
        settings: instead of those of the environment.

    Raises TypeError for anything else.
    """
    hooks = Hooks(checks.engine_of(settings, "traced_publish"))
    form = "delay or apply_async of a task or a signature, or send_task, as in traced_publish(add.delay)"
    checks.check_call("traced_publish", publish, "celery", _PUBLISHES, form)

    def call(wrapped: Callable[..., Any], owner: Any, args: Arguments, kwargs: Options) -> Any:
        try:
            joined.join(_app_of(owner))
        except Exception as error:
            guard.fault("putting hooks around an application of Celery", error)
        with calls.during(explicit, hooks):
            if isinstance(owner, Celery):  # the method as it was before
                return hooks.send_task(wrapped, owner, args, kwargs)
            return wrapped(*args, **kwargs)

    return calls.hooked(publish, call)


_PUBLISHES = ("apply_async", "delay", "send_task")


@overload
def traced_consumer(function: F) -> F: ...
@overload
def traced_consumer(*, settings: Settings | None = None) -> Callable[[F], F]: ...
def traced_consumer(function: F | None = None, *, settings: Settings | None = None) -> F | Callable[[F], F]:
    """Decorates a task's function, below Celery's decorator, bare or with settings::

        @app.task
        @traced_consumer
        def send_mail(order): ...

    Executed by a worker it runs inside the task's CONSUMER span; called directly it is just the function. This is all
    that a function can do for itself. What Celery does around it (signals, callbacks, the next of a chain, a killed
    child) is seen by ``traced_app`` or by ``CeleryInstrumentor``; together they make one span.
    """
    hooks = Hooks(checks.engine_of(settings, "traced_consumer"))

    def decorate(decorated: F) -> F:
        checks.check_handler("traced_consumer", decorated, "a task's function, as in @traced_consumer")
        traced = run_inside(decorated, functools.partial(_executing, hooks))
        # Celery looks at the arguments of a task without asking what is wrapped.
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            traced.__signature__ = inspect.signature(decorated)  # type: ignore[attr-defined]
        return traced

    return decorate if function is None else decorate(function)


def traced_app(app: Celery, *, settings: Settings | None = None) -> Celery:
    """Traces the tasks that one application sends and that its workers execute, and patches nothing::

        app = traced_app(Celery("shop", broker="redis://localhost"))

    Hooks go around methods of this very object, and of its workers' as they start. Not seen are tasks that are executed
    at once (``task_always_eager``, ``apply``), ``celery beat`` as the beginning of traces, and children of a pool that
    spawns them; ``CeleryInstrumentor`` sees them.

    Returns the application. Once more with other settings, those are the ones. Raises TypeError for anything else.
    """
    engine = checks.engine_of(settings, "traced_app")
    if not isinstance(app, Celery):
        raise checks.refused("traced_app", 'an application, as in traced_app(Celery("shop"))', app)
    hooks = Hooks(engine)
    for signal, receiver in joining.connections(hooks):
        signal.connect(receiver, weak=False, dispatch_uid=(f"queueprop-{receiver.__name__}", id(app)))
    joined.trace(app, hooks)
    return app


def _app_of(owner: Any) -> Any:
    """The application of what sends: itself, a task, a signature; of somebody's own function, the current one."""
    app = owner if isinstance(owner, Celery) else None
    if app is None and isinstance(owner, (Task, Signature)):
        app = owner.app
    app = current_app if app is None else app
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def _executing(hooks: Hooks, args: Arguments, kwargs: Options) -> Any:
    task = current_task
    request = task.request if task else None
    if request is None or request.called_directly:
        return None
    known = {"task": task.name, **vars(request)}
    if is_executed(known, request):
        return None
    return _Executing(Execution(hooks.engine, task.app, task, known, given=request))


class _Executing:
    """The scope of a task's function whose worker is not traced."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._mark = Mark("perform", SYSTEM, work=execution)
        self.detach = execution.process.detach
        self.reattach = execution.process.reattach

    def open(self) -> None:
        self._mark.__enter__()
        self._execution.begin()

    def close(self, error: BaseException | None = None) -> None:
        if not self._mark.is_over:  # a coroutine that was awaited is told to end once more when it is gone
            self._mark.__exit__()
        failure = failure_in(error, self._execution.task) if isinstance(error, Exception) else error
        self._execution.leave(failure)

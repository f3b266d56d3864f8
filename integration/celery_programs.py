"""A Celery application as users write it, for ``test_celery_workers.py``: its workers are programs of their own.

What they are traced with stands in the environment; most are started by ``opentelemetry-instrument``.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import billiard
from celery import Celery, signals
from opentelemetry import trace

BROKER = "_QUEUEPROP_CELERY_BROKER"
BACKEND = "_QUEUEPROP_CELERY_BACKEND"
QUEUE = "_QUEUEPROP_CELERY_QUEUE"
FOLDER = "_QUEUEPROP_CELERY_FOLDER"
"""Where a file tells of each task that has begun."""
IN_EACH_PROCESS = "_QUEUEPROP_CELERY_IN_EACH_PROCESS"
"""Set where it is instrumented by Celery's signal ``worker_process_init``, as others' documentations teach it."""
AT_IMPORT = "_QUEUEPROP_CELERY_AT_IMPORT"
"""Set where it is instrumented by this module."""
EVERY = "_QUEUEPROP_CELERY_EVERY"
"""Seconds between two firings of beat."""
PROTOCOL = "_QUEUEPROP_CELERY_PROTOCOL"
"""``task_protocol``: 2 unless it is set."""
START_METHOD = "_QUEUEPROP_CELERY_START_METHOD"


def make(broker: str, backend: str | None, queue: str, protocol: int = 2) -> Any:
    made = Celery("shop", broker=broker, backend=backend, set_as_current=False)
    made.conf.update(
        task_default_queue=queue,
        task_protocol=protocol,
        # RabbitMQ confirms: whoever looks by another connection would else be there before the message.
        broker_transport_options=(
            {"polling_interval": 0.05} if broker.startswith("redis") else {"confirm_publish": True}
        ),
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=60.0,
        beat_schedule={"every": {"task": "tick", "schedule": float(os.environ.get(EVERY, "0.3"))}},
        beat_schedule_filename=os.path.join(os.environ.get(FOLDER, "."), "beat-schedule"),
        result_expires=600,
        redbeat_key_prefix=f"redbeat-{queue}:",
    )
    for function, options in _TASKS:
        made.task(function, name=function.__name__, shared=False, **options)
    return made


def _tell(what: object) -> None:
    with (Path(os.environ[FOLDER]) / "told").open("ab", buffering=0) as file:
        file.write(f"{what}\n".encode())


def tick() -> None:
    _tell("tick")


def note(what: str, seconds: float = 0.0) -> str:
    _tell(what)
    time.sleep(seconds)
    return what


def hold(what: str) -> None:
    """Ends when there is a file of that name."""
    until = time.monotonic() + 60
    while not (Path(os.environ[FOLDER]) / what).exists():
        assert time.monotonic() < until, "nobody let go"
        time.sleep(0.05)


def meet(what: str, count: int) -> None:
    """Ends when so many of them have begun."""
    _tell(what)
    until = time.monotonic() + 60
    while (Path(os.environ[FOLDER]) / "told").read_text().split("\n").count(what) < count:
        assert time.monotonic() < until, "they were never there at once"
        time.sleep(0.05)


def weigh() -> None:
    """Tells what memory this process has, in kB, and how many objects its garbage collector knows. No span waits then:
    how many do depends on how fast the tasks were.
    """
    provider: Any = trace.get_tracer_provider()
    provider.force_flush()
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    (memory,) = [line.split()[1] for line in status if line.startswith("VmRSS")]
    _tell(f"weigh {os.getpid()} {memory} {len(gc.get_objects())}")


def add(left: int, right: int) -> int:
    return left + right


def total(numbers: list[int]) -> int:
    return sum(numbers)


def fail() -> None:
    raise ValueError("out of stock")


def handle(task_id: str) -> None:
    """An errback; one that takes more is called in place, without a message."""
    _tell("handled")


def replaced(task: Any) -> Any:
    raise task.replace(task.app.tasks["add"].s(20, 22))


def again(task: Any) -> int:
    if task.request.retries < 3:
        raise task.retry(countdown=0, exc=ValueError("not yet"))
    return int(task.request.retries)


def leave() -> None:
    sys.exit(3)


def vanish() -> None:
    os._exit(1)


def die(what: str = "die", times: int = 1) -> None:
    """Killed, so often; then it works."""
    _tell(what)
    told = (Path(os.environ[FOLDER]) / "told").read_text().split()
    if told.count(what) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()


def linger(what: str) -> None:
    _tell(what)
    time.sleep(60)


def resist(what: str) -> None:
    """Takes no notice of SIGTERM, so that it is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tell(what)
    time.sleep(60)


_TASKS: list[tuple[Any, dict[str, Any]]] = [
    *(
        (it, {})
        for it in (tick, note, hold, meet, weigh, add, total, fail, handle, leave, vanish, linger, resist)
    ),
    (die, {"acks_late": True, "reject_on_worker_lost": True}),
    (replaced, {"bind": True}),
    (again, {"bind": True, "max_retries": 5}),
]


def _instrument(**_: Any) -> None:
    import queueprop
    from queueprop.sdk import configure_tracing

    configure_tracing("shop")
    queueprop.instrument("celery")


if AT_IMPORT in os.environ:
    _instrument()

if START_METHOD in os.environ:
    billiard.set_start_method(os.environ[START_METHOD], force=True)

if IN_EACH_PROCESS in os.environ:
    signals.worker_process_init.connect(_instrument, weak=False)


def _at_shutdown(**_: Any) -> None:
    trace.get_tracer("shop").start_span("at shutdown").end()


signals.worker_process_shutdown.connect(_at_shutdown, weak=False)

app = make(
    os.environ.get(BROKER, "memory://"),
    os.environ.get(BACKEND),
    os.environ.get(QUEUE, "celery"),
    int(os.environ.get(PROTOCOL, "2")),
)

"""What an import costs: the CPU time of a whole process that does nothing else, less that of one without it.

queueprop is compared with what it stands on, OpenTelemetry's API; an adapter, whose figure has queueprop's core in it,
with that and its library: what a program has imported anyhow.

Modules are compiled before they are measured, as pip does when it installs them, and a program when it runs first.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from typing import Any

API = "import opentelemetry.baggage, opentelemetry.metrics, opentelemetry.propagate, opentelemetry.trace"
MODULES = {
    "pika": "pika",
    "aio_pika": "aio_pika",
    "aiokafka": "aiokafka",
    "confluent_kafka": "confluent_kafka",
    "faststream": "faststream, faststream.rabbit",  # a broker of some kind: without one there is nothing to trace
    "bullmq": "bullmq",
    # Both give their names on demand. These are what stands behind the names of a program that publishes: an
    # application with a task; a connection, which imports kombu's messages with its transport, and what it is used by.
    "celery": "celery.app.base, celery.app.task",
    "kombu": "kombu.connection, kombu.entity, kombu.message, kombu.messaging",
    "dramatiq": "dramatiq",
    "rq": "rq",
}
"""Each adapter's library, with the parts that every program of its users imports, and no more: what of the library an
adapter alone imports is the adapter's.
"""


def measured(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of CPU: the medians of processes that were started in random order."""
    programs = {"": API, "queueprop": f"{API}, queueprop"}
    for adapter, modules in MODULES.items():
        programs[modules] = f"{API}, {modules}"
        programs[adapter + " adapter"] = f"{API}, {modules}, queueprop.adapters.{adapter}"
    times: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as bytecode:
        for program in programs.values():
            _seconds_of(program, bytecode)
        for _ in range(rounds):
            for name in random.sample(sorted(programs), len(programs)):
                times[name].append(_seconds_of(programs[name], bytecode))
    middle = {name: 1000 * statistics.median(found) for name, found in times.items()}
    rows = [{"import": "queueprop", "beyond": "OpenTelemetry's API", "ms": middle["queueprop"] - middle[""]}]
    for adapter, modules in MODULES.items():
        ms = middle[adapter + " adapter"] - middle[modules]
        rows.append(
            {
                "import": f"queueprop.adapters.{adapter}",
                "beyond": f"OpenTelemetry's API and {adapter}",
                "ms": ms,
            }
        )
    return rows


def _seconds_of(program: str, bytecode: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{program!r} ended with {child.returncode}")
    return used.ru_utime + used.ru_stime

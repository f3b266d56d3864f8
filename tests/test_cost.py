"""What a message costs is held in counts, which are the same on every machine: calls of Python functions, and memory.

Both are what is added to the library's own, OpenTelemetry's part included, so they are of one Python, one SDK and the
newest libraries. Who makes a message cheaper lowers the figures; who has to raise one says in the commit what the
message gets for it. Times are measured by ``make bench``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "cost" / "messages.py"

OF = {
    "opentelemetry-sdk": "1.45",
    "pika": "1.4",
    "aiokafka": "0.14",
    "aio-pika": "10.2",
    "kombu": "5.7",
    "dramatiq": "2.2",
    "rq": "3.0",
}
REACHED = {
    "send": (99, 4328),
    "process": (128, 5116),
    "send ten": (1139, 42148),
    "process ten": (468, 15068),
    "receive": (121, 5012),
    "settle": (116, 4428),
    "send, sampled out": (58, 1260),
    "process, sampled out": (69, 1876),
    "send without an SDK": (47, 1000),
    "process without an SDK": (51, 1826),
    "pika, publish": (139, 5296),
    "pika, delivery": (156, 5868),
    "aiokafka, send": (160, 5348),
    "aiokafka, delivery": (164, 5990),
    "aio-pika, delivery": (158, 6092),
    "kombu, publish and delivery": (312, 5180),
    "Dramatiq, send": (160, 5719),
    "Dramatiq, process": (193, 4962),
    "RQ, enqueue": (137, 4328),
}
"""Calls and bytes of one message."""

MARGIN = 1.02


def is_of(package: str) -> bool:
    return importlib.metadata.version(package).startswith(f"{OF[package]}.")


pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 13) or not is_of("opentelemetry-sdk"),
    reason=f"the counts are of Python 3.13 with OpenTelemetry {OF['opentelemetry-sdk']}",
)


@pytest.fixture(scope="module")
def measured() -> Mapping[str, Mapping[str, int]]:
    """Of all messages, by one process: 10 s."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUEUEPROP_"))
    } | {"PYTHONHASHSEED": "0"}  # else a dict has another size in another process
    printed = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, check=True, capture_output=True, text=True
    ).stdout
    found: Mapping[str, Mapping[str, int]] = json.loads(printed)
    return found


@pytest.mark.parametrize("message", REACHED)
def test_no_message_costs_more_than_it_did(measured: Mapping[str, Mapping[str, int]], message: str) -> None:
    """Within two percent: neither calls nor memory."""
    library = message.partition(",")[0].lower()
    if library in OF and not is_of(library):
        pytest.skip(f"the counts are of {library} {OF[library]}")
    calls, size = REACHED[message]
    assert measured[message]["calls"] <= calls * MARGIN
    assert measured[message]["bytes"] <= size * MARGIN


def test_every_message_has_a_bound(measured: Mapping[str, Mapping[str, int]]) -> None:
    """What is measured is held."""
    assert measured.keys() == REACHED.keys()

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
    "confluent-kafka": "2.16",
    "bullmq": "3.4",
    "celery": "5.7",
    "kombu": "5.7",
    "dramatiq": "2.2",
    "faststream": "0.7",
    "rq": "3.0",
}
REACHED = {
    "send": (99, 4448),
    "process": (126, 5108),
    "send ten": (1139, 42152),
    "process ten": (468, 15284),
    "receive": (121, 5012),
    "settle": (116, 4612),
    "send, sampled out": (58, 1298),
    "process, sampled out": (67, 1868),
    "send without an SDK": (35, 920),
    "process without an SDK": (41, 1818),
    "pika, publish": (124, 5048),
    "pika, delivery": (145, 5628),
    "aiokafka, send": (156, 5292),
    "aiokafka, delivery": (160, 5822),
    "confluent-kafka, produce": (157, 5189),
    "confluent-kafka, delivery": (166, 1089),
    "aio-pika, publish": (137, 4996),
    "aio-pika, delivery": (146, 5852),
    "kombu, publish and delivery": (304, 5092),
    "Dramatiq, send": (143, 5424),
    "Dramatiq, process": (179, 4936),
    "FastStream, publish": (180, 5924),
    "FastStream, delivery": (196, 6108),
    "RQ, enqueue": (128, 4374),
    "BullMQ, add": (152, 5276),
    "BullMQ, process": (176, 5940),
    "Celery, delay": (150, 6017),
    "Celery, task": (177, 5838),
}
"""Calls and bytes of one message; of bytes the most of twenty runs. They vary a little, since what comes from a free
list of Python's is not counted.
"""

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

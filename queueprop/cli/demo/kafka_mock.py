"""librdkafka's mock cluster as a program: one broker that keeps everything in memory, and a topic.

python -I kafka_mock.py ADDRESS_FILE TOPIC
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(address_file: Path, topic: str) -> None:
    """Runs until a signal ends it. Where it listens is in the file when it is ready."""
    from confluent_kafka import Producer

    cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1})
    brokers = cluster.list_topics(topic, timeout=10).brokers.values()  # who asks for a topic makes it
    written = address_file.with_suffix(".new")
    written.write_text(",".join(f"{broker.host}:{broker.port}" for broker in brokers))
    os.replace(written, address_file)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""librdkafka's mock cluster as a program: three brokers, all in memory. Run as ``kafka_mock.py ADDRESS_FILE``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(address_file: Path) -> None:
    from confluent_kafka import Producer

    # Whoever stops us is answered by the default of these signals.
    cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 3})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    written = address_file.with_suffix(".new")
    written.write_text(",".join(f"{broker.host}:{broker.port}" for broker in brokers))
    os.replace(written, address_file)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One way to be concurrent, which gevent and eventlet want to know before anything else is imported.

python -m integration.torture.concurrency_ways WAY LIBRARY MESSAGES      prints a report as JSON
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    way, library, messages = sys.argv[1:]
    if way == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif way == "eventlet":
        import eventlet

        eventlet.monkey_patch()
    from integration.torture import concurrency

    print(json.dumps(concurrency.tried(way, library, int(messages))))


if __name__ == "__main__":
    main()

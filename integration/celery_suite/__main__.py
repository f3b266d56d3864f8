"""``python -m integration.celery_suite [-k WORDS]``: Celery's own integration tests of canvas, on Redis, with a worker
of forked children: with queueprop and without, both at once. It takes half an hour, and is no part of ``make test``.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from integration.brokers import REDIS, find
from integration.celery_suite import Outcomes, Run, differences

FILES = ("t/integration/test_canvas.py",)
PATIENCE = 3600.0
"""Seconds."""


def main(options: list[str]) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [
            _begun(stack, folder / name, traced, options)
            for name, traced in (("plain", ()), ("traced", ("celery", "kombu")))
        ]
        plain, traced = (run.result(PATIENCE) for run in runs)
    return _tell(plain, traced)


def _begun(stack: ExitStack, folder: Path, traced: tuple[str, ...], options: list[str]) -> Run:
    """A run with a broker of its own: some of the tests write to the same keys."""
    broker = find(REDIS, private=True)
    broker.start()
    stack.callback(broker.close)
    server = urlsplit(broker.url)
    folder.mkdir()
    run = Run(
        folder,
        FILES,
        traced=traced,
        options=["-p", "celery.contrib.pytest", *options],
        environ={
            "TEST_BROKER": broker.url,
            "TEST_BACKEND": broker.url,
            "REDIS_HOST": str(server.hostname),
            "REDIS_PORT": str(server.port),
        },
    )
    stack.callback(run.end)
    return run


def _tell(plain: Outcomes, traced: Outcomes) -> int:
    different = differences(plain, traced)
    for name, both in different.items():
        print(name, *both, sep="\n    ")
    failed = sum(any("failed" in it for it in outcome) for outcome in plain.of.values())
    print(
        f"{len(plain.of)} tests, {failed} of them fail without queueprop; {len(different)} end otherwise with it"
    )
    # Those of the pool's children are theirs.
    print(
        "spans of the main process: "
        + ", ".join(f"{count} {name}" for name, count in sorted(traced.spans.items()))
    )
    return 1 if different or not traced.spans else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

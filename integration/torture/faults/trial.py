"""One run of a library's producer and worker, plain or instrumented; what is broken while it lasts; what came of it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.contract.telemetry import SpanRecord
from integration.live import unique
from integration.otlp import OtlpServer
from integration.torture.programs.ledger import LEDGER, SECONDS, TRACED
from integration.torture.programs.left import Left, servers

PATIENCE = 300.0
"""Seconds in which a trial is to come to its end."""

_STILL = 3.0
"""Seconds without a delivery after which nobody is at what a broker keeps: a handler takes milliseconds."""

CHECKOUT = Path(__file__).parents[3]


class NeverMet(Exception):
    """What a trial waited for did not come."""


@dataclass(frozen=True)
class Outcome:
    """Numbers of messages, deliveries and spans."""

    published: int
    """Messages that were confirmed."""
    failed: int
    """Publish calls that raised."""
    attempts: int
    delivered: int
    redelivered: int
    """Deliveries of a message but its first."""
    left: int
    unacked: int
    dead: int
    lost: int
    """Confirmed, never delivered, and nowhere."""
    restarts: int
    """How often the worker's program ended and was started again."""
    producers: int = 0
    consumers: int = 0
    in_killed_batches: int = 0
    """Deliveries without a span, of processes that were killed or left by os._exit."""
    cut_off: int = 0
    """Those of threads that were at work when their process ended in order: their span had no end, either."""
    without_span: int = 0
    """Other deliveries without one."""
    unhandled: int = 0
    """Messages of whom the span tells that the worker could not begin, since the broker had gone: no delivery."""
    orphans: int = 0
    doubles: int = 0


@dataclass
class Trial:
    """``messages`` are published while workers run. ``fates``: what befalls the process that first handles a number."""

    library: str
    url: str
    is_traced: bool
    messages: int
    pause: float = 0.003
    seconds: float = 0.002
    workers: int = 1
    fates: Mapping[int, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    publish_to: str | None = None
    """Where the producer connects, if it is not the worker's address."""
    ends_by_signal: bool = False
    again: int | None = None
    """How many redeliveries are waited for; by default one for each fate."""
    hold: int = -1
    """The number before which the producer waits for ``go_on``."""
    partitions: int = 1
    """Of Kafka's topic, which is made first."""
    may_hang: bool = False
    """Whether what a worker had when the broker went away is kept by the broker for minutes (RQ), or for as long as
    that worker lives (Dramatiq on Redis).
    """

    may_lose: int = 0
    """What the library itself may lose when the broker goes away: kombu takes a message off Redis' list, and then
    notes that it has it.
    """

    def __post_init__(self) -> None:
        self.queue = unique(f"{self.library.replace('_', '-')}-{'traced' if self.is_traced else 'plain'}")
        self._folder = tempfile.TemporaryDirectory(prefix="queueprop-torture-")
        self.ledger = Path(self._folder.name) / "ledger"
        self.ledger.touch()
        self._output = (Path(self._folder.name) / "output").open("ab+")
        self._read = 0
        self._told: list[dict[str, Any]] = []
        self._otlp = OtlpServer()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._producer: subprocess.Popen[bytes] | None = None
        self._is_ending = False
        self._kept: tuple[int, Left] | None = None
        self._kept_since = 0.0
        self._killed: set[int] = set()
        self.restarts = 0
        self.ends: list[float] = []
        """Seconds from its last message to the producer's end, and from being asked to the worker's."""

    # Life

    @contextmanager
    def running(self) -> Iterator[Trial]:
        """Workers and a producer run inside; at the end of it everything is over, or NeverMet is raised."""
        if self.url.startswith("kafka"):
            create_topic(self.url, self.queue, self.partitions)
        try:
            self._workers = [self._start("consume", self.url) for _ in range(self.workers)]
            fates = {str(number): fate for number, fate in self.fates.items()}
            what = {"count": self.messages, "pause": self.pause, "fates": fates, "hold": self.hold}
            self._producer = self._start("publish", self.publish_to or self.url, json.dumps(what))
            yield self
            self._await_end()
        except NeverMet as error:
            raise NeverMet(f"{error}; {self._summary()}; {self._tail()}") from None
        finally:
            for process in (*self._workers, *([self._producer] if self._producer else [])):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self) -> None:
        self._otlp.close()
        self._output.close()
        self._folder.cleanup()

    def _start(self, role: str, url: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "integration.torture.programs", self.library, role, url, self.queue]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=CHECKOUT,
            env=self._environment(),
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        made = {**os.environ, LEDGER: str(self.ledger), SECONDS: str(self.seconds)}
        if self.is_traced:
            made |= {
                TRACED: self.library,
                "OTEL_EXPORTER_OTLP_ENDPOINT": self._otlp.endpoint,
                "OTEL_BSP_MAX_QUEUE_SIZE": "20000",
            }
        return {**made, **self.environment}

    def _await_end(self) -> None:
        self.wait(lambda: self._producer_is_done(), "the producer's end")
        self.ends[:] = [time.monotonic() - max(it["at"] for it in self.told("published"))]
        again = len(self.fates) if self.again is None else self.again
        self.wait(lambda: self._is_all_delivered(again), "every message")
        self.wait(lambda: self._is_worked_off(), "what was sent or given back twice")
        self.wait(lambda: self._is_quiet(), "the end of the last handler")
        if self.ends_by_signal:
            time.sleep(0.5)  # a last settlement, which no ledger tells of
        self._is_ending, asked = True, time.monotonic()
        Path(f"{self.ledger}.over").touch()
        if self.ends_by_signal:
            for process in self._workers:
                process.send_signal(signal.SIGTERM)
        self.wait(lambda: all(it.poll() is not None for it in self._workers), "the workers' end", 60.0)
        self.ends.append(time.monotonic() - asked)

    def _producer_is_done(self) -> bool:
        assert self._producer is not None
        status = self._producer.poll()
        if status:
            raise NeverMet(f"the producer ended with {status}")
        return status == 0

    def add_worker(self) -> None:
        self._workers.append(self._start("consume", self.url))

    def _is_all_delivered(self, again: int) -> bool:
        ids = [it["id"] for it in self.told("delivered")]
        if self.may_hang and len(set(ids)) < self.messages:
            return self._is_kept(len(set(ids)))
        if self.may_lose and self.messages - self.may_lose <= len(set(ids)) < self.messages:
            return not any(self._counts())
        return len(set(ids)) == self.messages and len(ids) >= self.messages + again

    def _is_kept(self, delivered: int) -> bool:
        """Whether the broker keeps all that is missing, and nobody is at it: so for a while, since what a living worker
        has fetched, and will handle, counts as kept, too.
        """
        found = delivered, self._counts()
        if found != self._kept:
            self._kept, self._kept_since = found, time.monotonic()
        left = found[1]
        if left.left or delivered + left.unacked + left.dead < self.messages:
            return False
        return time.monotonic() - self._kept_since >= _STILL

    def _is_worked_off(self) -> bool:
        left = self._counts()
        return not left.left and (self.may_hang or self.library == "rq" or not left.unacked)

    def _is_quiet(self) -> bool:
        dying = {it["who"] for it in self.told("dying")} | self._killed
        open_ones = Counter((it["pid"], it["id"]) for it in self.told("delivered") if it["pid"] not in dying)
        open_ones.subtract((it["pid"], it["id"]) for it in self.told("handled"))
        terminated = {it["pid"] for it in self.told("terminated")}
        return all(n <= 0 or pid in terminated for (pid, _), n in open_ones.items())

    # While it lasts

    def wait(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Supervises the workers meanwhile: one that ends is started again."""
        end = time.monotonic() + patience
        while not condition():
            self._supervise()
            if time.monotonic() > end:
                raise NeverMet(f"waited {patience:.0f} s in vain for {what}")
            time.sleep(0.02)

    def wait_until_published(self, share: float) -> None:
        number = int(self.messages * share)
        self.wait(lambda: len(self.told("published")) >= number, f"{number} messages to be published")

    def wait_until_delivered(self, share: float) -> None:
        number = int(self.messages * share)
        self.wait(lambda: len(self.told("delivered")) >= number, f"{number} deliveries")

    def go_on(self) -> None:
        Path(f"{self.ledger}.on").touch()

    @property
    def producer_pid(self) -> int:
        assert self._producer is not None
        return self._producer.pid

    @property
    def worker_pids(self) -> list[int]:
        return [process.pid for process in self._workers]

    def _supervise(self) -> None:
        if self._is_ending:
            return
        for number, process in enumerate(self._workers):
            if process.poll() is not None:
                self._killed |= _group(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # as a service manager does
                self.restarts += 1
                self._workers[number] = self._start("consume", self.url)

    def told(self, kind: str) -> list[dict[str, Any]]:
        with self.ledger.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._told.append(json.loads(line))
        return [it for it in self._told if it["kind"] == kind]

    # Afterwards

    def outcome(self) -> Outcome:
        deliveries = self.told("delivered")
        published = {it["id"]: it["trace"] for it in self.told("published")}
        times = Counter(it["id"] for it in deliveries)
        left = self._counts()
        counted = Outcome(
            published=len(published),
            failed=len(self.told("failed")),
            attempts=len(self.told("attempt")),
            delivered=len(deliveries),
            redelivered=len(deliveries) - len(times),
            left=left.left,
            unacked=left.unacked,
            dead=left.dead,
            lost=max(len(published.keys() - times.keys()) - sum(left), 0),
            restarts=self.restarts,
        )
        if not self.is_traced:
            return counted
        return Outcome(**{**vars(counted), **self._spans(deliveries, published)})

    def _counts(self) -> Left:
        program = importlib.import_module(f"integration.torture.programs.{self.library}")
        left: Left = program.counts(self.url, self.queue)
        return left

    def _spans(self, deliveries: list[dict[str, Any]], published: Mapping[str, str]) -> dict[str, int]:
        spans = [span for span in list(self._otlp.spans) if span.is_ours]
        consumers = [span for span in spans if span.kind == "CONSUMER"]
        producers = [span for span in spans if span.kind == "PRODUCER"]
        dead = {it["who"] for it in self.told("dying")} | self._killed
        handled = Counter((it["pid"], it["id"]) for it in self.told("handled"))
        of_killed, of_cut_off, of_others = Counter[str](), Counter[str](), Counter[str]()
        for it in deliveries:
            kind = of_killed if it["pid"] in dead else of_others
            if kind is of_others and not handled[it["pid"], it["id"]]:
                kind = of_cut_off
            kind[published[it["id"]]] += 1
        found = Counter(span.trace_id for span in consumers)
        broken = {span.trace_id for span in consumers if self.may_hang and _is_cut_off(span)}
        missing_killed = cut_off = missing = unhandled = doubles = 0
        for trace_id in of_killed.keys() | of_cut_off.keys() | of_others.keys() | found.keys():
            lacking = of_killed[trace_id] + of_cut_off[trace_id] + of_others[trace_id] - found[trace_id]
            by_kill = min(max(lacking, 0), of_killed[trace_id])
            by_end = min(max(lacking, 0) - by_kill, of_cut_off[trace_id])
            missing_killed += by_kill
            cut_off += by_end
            missing += max(lacking, 0) - by_kill - by_end
            if lacking < 0 and trace_id in published.values():
                is_unhandled = found[trace_id] == -lacking == 1 and trace_id in broken
                unhandled += is_unhandled
                doubles += 0 if is_unhandled else -lacking
        doubles += sum(n - 1 for n in Counter(span.span_id for span in spans).values())
        return {
            "producers": len(producers),
            "consumers": len(consumers),
            "in_killed_batches": missing_killed,
            "cut_off": cut_off,
            "without_span": missing,
            "unhandled": unhandled,
            "orphans": self._orphans(deliveries, published, consumers, producers),
            "doubles": doubles,
        }

    def _orphans(
        self,
        deliveries: list[dict[str, Any]],
        published: Mapping[str, str],
        consumers: list[SpanRecord],
        producers: list[SpanRecord],
    ) -> int:
        """Handlers and CONSUMER spans outside of the trace of their message, and handlers' spans outside of those."""
        known = {span.context for span in producers}
        traces = set(published.values())
        wrong = [it["trace"] != published[it["id"]] for it in deliveries].count(True)
        wrong += [(span.trace_id, span.parent_id) in known for span in consumers].count(False)
        work = [span for span in list(self._otlp.spans) if span.name == "work"]
        return wrong + [span.trace_id in traces for span in work].count(False)

    def _summary(self) -> str:
        kinds = Counter(it["kind"] for it in self._told)
        return ", ".join(f"{kind} {number}" for kind, number in kinds.items()) + f", restarts {self.restarts}"

    def _tail(self) -> str:
        self._output.flush()
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        return "the programs printed: " + " | ".join(text.strip().splitlines()[-6:])[-900:]


def _group(leader: int) -> set[int]:
    """The processes of its group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == leader:
                found.add(int(stat.parent.name))
    return found


def create_topic(url: str, topic: str, partitions: int) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": servers(url)})
    for made in admin.create_topics([NewTopic(topic, partitions)]).values():
        made.result(30)


def _is_cut_off(span: SpanRecord) -> bool:
    """Whether it tells that Redis had gone, or was still reading its file."""
    return str(span.attributes.get("error.type")).startswith("redis.exceptions.")

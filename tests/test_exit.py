"""Real processes end in every way, and a small OTLP server tells what they handed over."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from queueprop import guard
from queueprop.cli.demo.processes import free_port
from queueprop.process import exit as exiting
from queueprop.process import flush as flushing
from queueprop.process.exit import HandOver

pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.trace import export

PROGRAMS = Path(__file__).parent / "sdk_processes"
WORKER = PROGRAMS / "worker.py"
A_HANG = 60  # seconds; nothing here takes long unless it hangs
HELD_UP = 25
"""Seconds after the first request to a dead Collector: by then a process that it does not hold up is gone. The SDK by
itself would wait for longer.
"""


class Received(NamedTuple):
    name: str
    trace_id: bytes
    span_id: bytes
    service: str
    client: tuple[str, int]


class Counted(NamedTuple):
    """A point of a counter."""

    name: str
    value: int
    attributes: dict[str, str]
    resource: dict[str, str]


class Collector:
    """An OTLP/HTTP server. ``silent()`` makes it a dead one: it takes the request and never answers."""

    first_asked: float

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.counts: list[Counted] = []
        self.answering = threading.Event()
        self.answering.set()
        self.hold_one = (
            threading.Event()
        )  # the next request with metrics is taken and not answered before the end
        self.holding = threading.Event()
        self.ended = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections open, as a Collector does

            def do_POST(self) -> None:
                if not hasattr(collector, "first_asked"):
                    collector.first_asked = time.monotonic()
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.answering.wait()
                if self.path == "/v1/metrics" and collector.hold_one.is_set():
                    collector.hold_one.clear()
                    collector.holding.set()
                    collector.ended.wait()
                if self.path == "/v1/metrics":
                    collector.counts += counted(body)
                else:
                    collector.spans += decoded(body, self.client_address)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        unwanted = {name for name in os.environ if name.startswith("OTEL_")}
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        return {
            **inherited,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # nothing leaves by itself
            "OTEL_METRIC_EXPORT_INTERVAL": "600000",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600",  # nor gives up by itself
            "QUEUEPROP_FLUSH_TIMEOUT": "20",
        }

    @property
    def names(self) -> Counter[str]:
        return Counter(span.name for span in self.spans)

    def silent(self) -> dict[str, str]:
        self.answering.clear()
        return {"EXIT_TIMEOUT": "0.2", "QUEUEPROP_FLUSH_TIMEOUT": "0.2"}

    @property
    def holds_up(self) -> bool:
        """Whether a process that has just ended did so long after it had asked first. Its start is no matter."""
        return time.monotonic() - self.first_asked > HELD_UP


def decoded(body: bytes, client: tuple[str, int]) -> Iterator[Received]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        attributes = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Received(span.name, span.trace_id, span.span_id, attributes["service.name"], client)


def counted(body: bytes) -> Iterator[Counted]:
    for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        resource = {item.key: item.value.string_value for item in group.resource.attributes}
        for scope_metrics in group.scope_metrics:
            for metric in scope_metrics.metrics:
                for point in metric.sum.data_points:
                    attributes = {item.key: item.value.string_value for item in point.attributes}
                    yield Counted(metric.name, point.as_int, attributes, resource)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.answering.set()
    collector.ended.set()
    collector.server.shutdown()
    collector.server.server_close()


def start(collector: Collector, scenario: str, **environment: str) -> subprocess.Popen[str]:
    return started(collector, [str(WORKER), scenario], environment)


def started(
    collector: Collector, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**collector.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(collector: Collector, scenario: str, **environment: str) -> tuple[int, str, str]:
    return ended(start(collector, scenario, **environment))


def terminated(collector: Collector, scenario: str, **environment: str) -> tuple[int, str, str]:
    return when_ready(start(collector, scenario, **environment))


def when_ready(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    return ended(process)


def terminated_after_main(collector: Collector, **environment: str) -> tuple[int, str, str]:
    """SIGTERM until the process ends: Python does not see one that comes just before its main thread blocks."""
    process = start(collector, "sigterm_after_main", **environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(A_HANG * 10):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    return ended(process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=A_HANG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the process hangs: {out}\n{err}")
    return process.returncode, out, err


@pytest.mark.parametrize(("scenario", "status"), [("normal", 0), ("sys_exit", 3), ("uncaught", 1)])
def test_a_process_that_ends_hands_over_its_spans_and_keeps_its_status(
    collector: Collector, scenario: str, status: int
) -> None:
    """A normal end, sys.exit and an uncaught exception export the last spans; the status is the program's."""
    assert run(collector, scenario)[0] == status
    assert collector.names == {"done": 1}
    assert collector.spans[0].service == "worker"


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_ends_the_process_in_order(collector: Collector, times: int) -> None:
    """Open spans end, finally blocks and exit hooks run, spans are exported, and the status is 143; also when
    a launcher sends the signal a second time.
    """
    process = start(collector, "sigterm")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    collector.answering.clear()  # so that it is still there when the last of them is sent
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    collector.answering.set()
    status, out, err = ended(process)
    assert status == 143
    assert out == "finally\nexit hook\n"
    assert err == ""
    assert collector.names == {"done": 1, "in hand": 1}


@pytest.mark.parametrize("scenario", ["handler_before", "handler_after"])
def test_a_handler_of_the_users_stays_theirs(collector: Collector, scenario: str) -> None:
    """Installed before or after configure_tracing, it alone decides, and what it does is exported as well."""
    status, out, _ = terminated(collector, scenario)
    assert (status, out) == (7, "my handler\n")
    assert collector.names == {"mine": 1}


def test_a_default_that_comes_back_hands_over(collector: Collector) -> None:
    """A server puts back what was there before its own handler and raises the signal again: that ends in order."""
    status, out, err = run(collector, "default_comes_back")
    assert (status, out, err) == (143, "finally\n", "")
    assert collector.names == {"done": 1, "in hand": 1}


def test_a_default_that_is_set_after_a_thread_has_configured_hands_over(collector: Collector) -> None:
    """Only the main thread can set a handler; when it sets the default, ours is there."""
    status, _, err = terminated(collector, "default_in_a_thread")
    assert (status, err) == (143, "")
    assert collector.names == {"done": 1}


def test_sigterm_ends_a_process_whose_main_thread_has_ended(collector: Collector) -> None:
    """A thread that is left keeps the interpreter; SIGTERM kills as by default, after the export."""
    status, _, err = terminated_after_main(collector)
    assert (status, err) == (143, "")
    assert collector.names == {"done": 1}


def test_sigterm_ends_a_process_that_swallows_the_exit(collector: Collector) -> None:
    """A loop that catches BaseException cannot make the process survive SIGTERM."""
    status, out, _ = terminated(collector, "sigterm_swallowed", EXIT_TIMEOUT="3")
    assert status == 143
    assert out == "swallowed SystemExit(143)\n"
    assert collector.names == {"done": 1}


def test_sigterm_during_a_fork_is_not_lost(collector: Collector) -> None:
    """Python swallows exceptions in the hooks of a fork; parent and child end all the same, each for its own."""
    status, out, err = run(collector, "sigterm_in_fork")
    assert (status, out) == (143, "child 143\n")
    assert "SystemExit" not in err
    assert collector.names == {"parent": 1}


def test_forked_children_hand_over_their_own_spans_and_only_them(collector: Collector) -> None:
    """Children of os.fork that end normally or in sys.exit flush by themselves, one that ends in os._exit by
    flush(); the parent's waiting span is exported once.
    """
    status, out, _ = run(collector, "fork")
    assert (status, out) == (0, "flushed True\n")
    assert collector.names == {"parent": 1, "end": 1, "sys.exit": 1, "os._exit": 1}


def test_a_forked_child_opens_connections_of_its_own(collector: Collector) -> None:
    """Parent and child never write on the same connection, where each would read the other's answers."""
    assert run(collector, "fork_after_export")[0] == 0
    connection = {span.name: span.client for span in collector.spans}
    assert sorted(connection) == ["child", "first", "parent"]
    assert connection["child"] != connection["first"]
    assert connection["parent"] == connection["first"]


def test_ids_do_not_repeat_between_children_not_even_after_random_seed(collector: Collector) -> None:
    """Every process draws its own ids, although each job seeds the random module with the same number."""
    assert run(collector, "ids")[0] == 0
    assert collector.names == {"seeded": 8}
    assert len({span.trace_id for span in collector.spans}) == 8
    assert len({span.span_id for span in collector.spans}) == 8


@pytest.mark.parametrize(
    ("scenario", "on_import", "names"),
    [
        ("multiprocessing_inherited", "", {"parent": 1, "fork": 1}),
        ("multiprocessing_configured", "", {"fork": 1, "spawn": 1, "forkserver": 1}),
        ("multiprocessing_imported", "1", {"spawn": 1, "forkserver": 1}),
        ("multiprocessing_finalizers", "", {"fork": 1, "spawn": 1, "forkserver": 1}),
        ("multiprocessing_forks", "", {"spawn, parent": 1, "spawn, child": 1}),
    ],
)
def test_children_of_multiprocessing_hand_over_their_spans(
    collector: Collector, scenario: str, on_import: str, names: dict[str, int]
) -> None:
    """By every start method, configured before the fork, in the child, or by its main module; those of finalizers, too,
    which come after the exit hooks from Python 3.13 on, and those of a process that such a child forks itself."""
    status, out, err = run(collector, scenario, CONFIGURE_ON_IMPORT=on_import)
    assert status == 0, err
    assert set(out.splitlines()) == {"exitcode 0"}
    assert collector.names == names


def test_workers_of_a_pool_lose_no_span_when_it_is_terminated(collector: Collector) -> None:
    """``with Pool()`` ends its workers by SIGTERM; what they had finished is exported."""
    assert run(collector, "multiprocessing_pool")[0] == 0
    assert collector.names == {"a": 1, "b": 1, "c": 1, "d": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who wrote to a socket")
class TestNotNoticed:
    """Python notices no SIGTERM that comes just before its main thread blocks; by default it would have killed."""

    @pytest.mark.parametrize("scenario", ["unnoticed", "unnoticed_after_asyncio"])
    def test_a_child_of_multiprocessing_ends_all_the_same(self, collector: Collector, scenario: str) -> None:
        """In order, with its spans; also where another's descriptor for signals came and went."""
        assert run(collector, scenario)[:2] == (0, "exitcode 143\n")
        assert collector.names == {"done": 1}

    @pytest.mark.parametrize(
        "scenario", ["unnoticed_by_handler_of_program", "unnoticed_by_handler_of_program_early"]
    )
    def test_a_handler_of_the_program_s_is_called_as_without_us(
        self, collector: Collector, scenario: str
    ) -> None:
        """Once, and not before the main thread goes on."""
        assert run(collector, scenario)[:2] == (0, "read b'late'\ncalls 1\nexitcode 0\n")


def test_a_child_that_is_terminated_hands_over_its_spans(collector: Collector) -> None:
    """Process.terminate() ends the child in order, with 143."""
    assert run(collector, "multiprocessing_terminated")[:2] == (0, "exitcode 143\n")
    assert collector.names == {"terminated": 1}


def test_a_dead_collector_does_not_hold_up_the_exit(collector: Collector) -> None:
    """The exit takes exit_timeout and no longer, keeps the status, and one line says what was lost."""
    status, _, err = run(collector, "sys_exit", **collector.silent())
    assert status == 3
    assert not collector.holds_up
    (line,) = err.splitlines()
    assert line.startswith(
        "queueprop, handing over the last spans: 0.2 s were not enough, and they are lost; is the "
    )
    assert line.endswith("ENDPOINT there? If it only needs longer: configure_tracing(exit_timeout=...)")


@pytest.mark.parametrize("scenario", ["sigterm", "sigterm_swallowed"])
def test_a_dead_collector_does_not_hold_up_sigterm(collector: Collector, scenario: str) -> None:
    """Nor does it where SIGTERM ends the process in order, or where that is swallowed."""
    assert terminated(collector, scenario, **collector.silent())[0] == 143
    assert not collector.holds_up


def test_a_dead_collector_does_not_hold_up_sigterm_after_main(collector: Collector) -> None:
    """Nor where the main thread has ended."""
    assert terminated_after_main(collector, **collector.silent())[0] == 143
    assert not collector.holds_up


def test_a_dead_collector_does_not_hold_up_flush(collector: Collector) -> None:
    """flush() gives up at its timeout, although the exporter still waits, and says so."""
    assert run(collector, "bounded_flush", **collector.silent())[:2] == (0, "flushed False\n")
    assert not collector.holds_up


def test_a_dead_collector_holds_up_a_forked_child_for_flush_timeout(collector: Collector) -> None:
    """A child waits for the setting flush_timeout, however long its parent would."""
    collector.silent()
    process = start(collector, "bounded_fork", QUEUEPROP_FLUSH_TIMEOUT="0.2", EXIT_TIMEOUT="600")
    status, out, err = ended(process)
    assert not collector.holds_up
    assert (status, out) == (0, "child ended\n")
    assert "0.2 s were not enough" in err


@pytest.mark.parametrize("scenario", ["sigterm_consumer", "sigterm_executor", "sigterm_hook_of_others"])
def test_after_sigterm_everything_takes_six_seconds_by_default(collector: Collector, scenario: str) -> None:
    """The main thread that does not end, the spans that nobody takes, a flush of the program's, and the exit hooks of
    others have one deadline for all, and not one after the other.
    """
    collector.silent()
    process = start(collector, scenario, QUEUEPROP_FLUSH_TIMEOUT="", EXIT_TIMEOUT="")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    took = seconds_to_end(process)
    assert ended(process)[0] == 143
    assert took < 9.5  # 6, and what a busy machine adds


def seconds_to_end(process: subprocess.Popen[str]) -> float:
    """Without those in which the machine itself stood still: nobody gets on then, and a process that is late is not."""
    seconds = 0.0
    while seconds < A_HANG:
        began = time.monotonic()
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            seconds += min(time.monotonic() - began, 0.5)
            continue
        break
    return seconds


@pytest.mark.parametrize("bad", ["raises", "blocks"])
def test_a_log_handler_cannot_keep_the_process_from_ending(collector: Collector, bad: str) -> None:
    """SIGTERM ends a process that swallows the exit also where the warning of lost spans cannot be logged."""
    status, _, err = terminated(collector, "sigterm_swallowed_logging", LOGGING=bad, **collector.silent())
    assert status == 143
    assert not collector.holds_up
    assert "Traceback" not in err


def test_a_log_handler_that_raises_does_not_change_the_end(collector: Collector) -> None:
    """The status is the program's, and nothing is printed for the handler's error."""
    status, _, err = run(collector, "sys_exit_logging", LOGGING="raises", **collector.silent())
    assert not collector.holds_up
    assert (status, err) == (3, "")


class TestGreenlets:
    """Under gevent and eventlet, patched before or after us: OpenTelemetry's SDK works in each of these orders."""

    every_library = pytest.mark.parametrize("library", ["gevent", "eventlet"])
    every_order = pytest.mark.parametrize("order", ["early", "between", "late", "exported"])

    def start(
        self, collector: Collector, library: str, order: str, scenario: str, **environment: str
    ) -> subprocess.Popen[str]:
        pytest.importorskip(library)
        if library == "eventlet" and order in ("late", "exported") and hasattr(export, "_FlushRequest"):
            pytest.skip(
                "this SDK's own thread, a native one, cannot wake who flushes in a greenlet of eventlet's"
            )
        arguments = ["-W", "ignore", str(PROGRAMS / "green.py"), library, order, scenario]
        return started(collector, arguments, environment)

    @every_library
    @every_order
    def test_flush_and_the_ends_of_parent_and_child(
        self, collector: Collector, library: str, order: str
    ) -> None:
        """Each hands over its spans."""
        if library == "eventlet" and order in ("late", "exported") and hasattr(export, "_FlushRequest"):
            pytest.skip(
                "this SDK's own thread, a native one, cannot wake who flushes in a greenlet of eventlet's"
            )
        status, out, err = ended(self.start(collector, library, order, "normal"))
        assert (status, out) == (0, "flushed True\n"), err
        first = {"first": 1} if order == "exported" else {}
        assert collector.names == {**first, "flushed": 1, "parent": 1, "child": 1}

    @every_library
    @every_order
    def test_sigterm(self, collector: Collector, library: str, order: str) -> None:
        """The process ends in order, whether the signal comes to the main greenlet or to the hub."""
        status, out, _ = when_ready(self.start(collector, library, order, "sigterm"))
        assert (status, out) == (143, "finally\n")
        assert collector.names - Counter(first=1) == {"done": 1, "in hand": 1}

    @pytest.mark.parametrize("scenario", ["sigterm_in_thread", "sigterm_in_greenlet"])
    @pytest.mark.parametrize(
        ("library", "order"), [("gevent", "early"), ("gevent", "late"), ("eventlet", "early")]
    )
    def test_sigterm_while_another_greenlet_runs(
        self, collector: Collector, library: str, order: str, scenario: str
    ) -> None:
        """It is the main one that ends, although a thread would swallow the exit."""
        status, _, _ = when_ready(self.start(collector, library, order, scenario))
        assert status == 143
        assert collector.names == {"done": 1}

    @pytest.mark.parametrize("order", ["late", "exported"])
    def test_first_hubs_are_not_made_at_a_time(self, collector: Collector, order: str) -> None:
        """Where threads are native, a flush makes gevent's hub before it lets another thread export."""
        status, out, err = ended(self.start(collector, "gevent", order, "first_hubs"))
        assert (status, out) == (0, "flushed True\n"), err
        assert collector.names - Counter(first=1) == {"flushed": 1}

    def test_sigterm_while_the_first_hub_is_made(self, collector: Collector) -> None:
        """What waits at the end finds a hub, although the exit is raised where the program was making one."""
        process = self.start(collector, "gevent", "late", "sigterm_in_first_hub")
        assert ended(process)[:2] == (143, "ready\n")
        assert collector.names == {"done": 1}

    @pytest.mark.parametrize("order", ["early", "between", "late"])
    def test_a_dead_collector(self, collector: Collector, order: str) -> None:
        """A flush has its bound, and others run meanwhile; so has the end."""
        process = self.start(collector, "gevent", order, "bounded", **collector.silent())
        status, out, err = ended(process)
        assert not collector.holds_up
        assert (status, out) == (0, "flushed False others ran True\n")
        assert "0.2 s were not enough" in err


class TestServers:
    """uvicorn and gunicorn set up their signals and their patching, and tracing comes with the application."""

    def serve(self, collector: Collector, module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Runs the server until it has answered ten requests, and terminates it."""
        pytest.importorskip(module)
        port = free_port()
        arguments = ["-m", module, *(argument.format(port=port) for argument in arguments)]
        process = started(collector, arguments, {"PYTHONPATH": str(PROGRAMS)})
        answered, until = 0, time.monotonic() + A_HANG
        while answered < 10 and process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=A_HANG).close()
                answered += 1
            except OSError:  # not yet there
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return ended(process)

    @pytest.mark.parametrize(("arguments", "expected"), [([], 143), (["--workers", "2"], 0)])
    def test_uvicorn(self, collector: Collector, arguments: list[str], expected: int) -> None:
        """Configured in the lifespan, with workers as without: uvicorn then puts SIGTERM's default back."""
        # It kills a worker that does not answer it for five seconds, with the spans that that has.
        patience = ["--timeout-worker-healthcheck", str(A_HANG)]
        arguments = ["uvicorn_app:app", "--port", "{port}", *patience, *arguments]
        status, _, err = self.serve(collector, "uvicorn", arguments)
        assert status == expected, err
        assert collector.names == {"request": 10}

    def test_gunicorn_with_gevent(self, collector: Collector) -> None:
        """Configured in ``post_worker_init``, in a worker that is patched after our import."""
        pytest.importorskip("gevent")
        arguments = ["-c", str(PROGRAMS / "gunicorn_app.py"), "-k", "gevent", "-b", "127.0.0.1:{port}"]
        status, _, err = self.serve(collector, "gunicorn", [*arguments, "gunicorn_app:app"])
        assert status == 0, err
        assert collector.names == {"request": 10}


# The same logic in this process, where every branch can be reached.


class Exited(BaseException):
    """Stands for os._exit."""


class Clock:
    """Time that passes only where somebody waits. ``at`` calls a function at a time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [call for call in self._calls if call[0] <= self.now]:
            self._calls.remove(due)
            due[1]()

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        self._calls.append((1000.0 + seconds, call))

    @property
    def passed(self) -> float:
        return round(self.now - 1000.0, 1)


class InProcess(NamedTuple):
    hand_over: HandOver
    clock: Clock
    at_fork: dict[str, Callable[[], None]]
    at_exit: list[Callable[[], None]]
    after_fork: list[Callable[[Any], None]]
    finalizers: list[Callable[[], None]]
    targets: list[Callable[[], None]]
    at_threads_end: list[Callable[[], None]]
    called: list[str]

    def install(self) -> None:
        self.hand_over.install()

    def answer(self) -> None:
        """Runs what was put into the thread's mailbox, as the thread does."""
        while self.hand_over._tasks._items:
            self.hand_over._tasks._items.popleft()()

    def answering(self, seconds: float) -> None:
        """A Collector that answers then."""
        self.clock.at(seconds, self.answer)

    def insist(self) -> None:
        """Runs the thread that SIGTERM wakes, to its end, and the one that it starts to say something."""
        before = threading.enumerate()
        with pytest.raises(Exited) as ended:
            self.hand_over._insist()
        assert ended.value.args == (143,)
        for started in set(threading.enumerate()).difference(before):
            started.join(A_HANG)

    def terminate(self) -> None:
        with pytest.raises(SystemExit) as raised:
            signal.raise_signal(signal.SIGTERM)
        assert raised.value.code == 143

    def fork(self) -> None:
        """Goes on as a child."""
        self.at_fork["before"]()
        self.at_fork["after_in_child"]()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """A HandOver whose hooks are collected and not installed, and whose threads are called by the test."""
    called: list[str] = []
    hand_over = HandOver(lambda: called.append("flush"), lambda: called.append("shutdown"), 5, 2)
    case = InProcess(hand_over, Clock(), {}, [], [], [], [], [], called)
    monkeypatch.setattr(exiting, "time", case.clock)
    monkeypatch.setattr(flushing, "time", case.clock)
    monkeypatch.setattr(flushing.last_in_vain, "_began", bytearray(8))
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: case.at_fork.update(hooks))
    monkeypatch.setattr(atexit, "register", case.at_exit.append)
    monkeypatch.setattr(exiting, "register_after_fork", lambda _, function: case.after_fork.append(function))
    monkeypatch.setattr(exiting, "Finalize", lambda *arguments, **_: case.finalizers.append(arguments[1]))
    daemon = case.targets.append
    monkeypatch.setattr(exiting, "_daemon", daemon)
    hand_over._start_thread = daemon
    monkeypatch.setattr(exiting, "_native_start", lambda: lambda target: case.targets.append(target))

    def at_threads_end(call: Callable[[], None]) -> bool:
        case.at_threads_end.append(call)
        return True

    monkeypatch.setattr(exiting, "_at_threads_end", at_threads_end)
    monkeypatch.setattr(hand_over._wakeup, "install", lambda *_: None)  # see test_wakeup.py

    def _exit(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", _exit)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.MonkeyPatch.context() as restoring:
        for name in ("signal", "getsignal"):
            restoring.setattr(signal, name, getattr(signal, name))
        yield case
    signal.signal(signal.SIGTERM, before)


def test_every_hook_is_installed_once(in_process: InProcess) -> None:
    """The exit hook, those of forked and of multiprocessing's children, and two threads."""
    in_process.install()
    assert in_process.at_exit == [in_process.hand_over.at_exit]
    assert in_process.finalizers == [in_process.hand_over.at_exit]
    assert set(in_process.at_fork) == {"before", "after_in_parent", "after_in_child"}
    assert len(in_process.after_fork) == 1
    assert len(in_process.targets) == 2


def test_without_fork_there_is_no_hook_for_it(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot fork (Windows) gets the other hooks."""
    monkeypatch.delattr(os, "register_at_fork")
    in_process.install()
    assert in_process.at_exit
    assert not in_process.at_fork


def test_a_child_of_multiprocessing_has_no_exit_hook(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come before the finalizers of others from Python 3.13 on; ours is behind them in every version. What it
    forks by itself has one: a finalizer is its parent's alone.
    """
    monkeypatch.setattr(exiting, "parent_process", lambda: object())
    in_process.install()
    assert (in_process.at_exit, in_process.finalizers) == ([], [in_process.hand_over.at_exit])
    in_process.fork()
    assert in_process.at_exit == [in_process.hand_over.at_exit]


def test_the_exit_hook_waits_for_the_shutdown(in_process: InProcess) -> None:
    """When the hook returns, the shutdown has run; later ends call it no second time."""
    in_process.install()
    in_process.answering(0.5)
    in_process.hand_over.at_exit()
    assert (in_process.called, in_process.clock.passed) == (["shutdown"], 0.5)
    in_process.answering(1)
    in_process.hand_over.at_exit()
    assert in_process.called == ["shutdown"]


def test_a_shutdown_that_raises_is_told_and_not_waited_for(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK is somebody else's code: the end goes on."""

    def broken() -> None:
        raise OSError("no such exporter")

    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(guard, "_logged", {})
    monkeypatch.setattr(in_process.hand_over, "_shutdown", broken)
    in_process.install()
    in_process.answering(0.5)
    in_process.hand_over.at_exit()
    assert in_process.clock.passed == 0.5
    [record] = caplog.records
    assert "failed while handing over the last spans" in record.message


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Of each record its level, and how long was too short."""
    return [
        (record.levelname, record.message.partition(": ")[2].partition(",")[0]) for record in caplog.records
    ]


def test_a_shutdown_that_is_late_is_one_warning(
    in_process: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """The hook gives up at the timeout, and whoever comes after it waits no more: multiprocessing calls it again."""
    in_process.install()
    in_process.hand_over.at_exit()
    in_process.hand_over.at_exit()
    assert in_process.clock.passed == 5
    assert told(caplog) == [("WARNING", "5 s were not enough")]
    assert in_process.called == []


class TestOneDeadline:
    """All ends of a process together, when the Collector is dead: the timeout, and a second more after SIGTERM."""

    def test_a_main_thread_that_never_comes(self, in_process: InProcess) -> None:
        """Something swallowed the exit, or a thread keeps the interpreter: five seconds, and one to hand over."""
        in_process.install()
        in_process.terminate()
        in_process.insist()
        assert in_process.clock.passed == 6

    def test_a_main_thread_that_never_comes_with_a_collector_that_answers(
        self, in_process: InProcess
    ) -> None:
        """What there is by SIGTERM is handed over at once, the rest when the time is over."""
        in_process.install()
        in_process.terminate()
        in_process.answering(0.1)
        in_process.clock.at(0.2, lambda: in_process.called.append("handed over"))
        in_process.answering(5.3)
        in_process.insist()
        assert in_process.called == ["flush", "handed over", "shutdown"]
        assert 5 <= in_process.clock.passed < 5.5

    def test_a_main_thread_that_comes_late(self, in_process: InProcess) -> None:
        """It has the last second to hand over."""
        in_process.install()
        in_process.terminate()
        in_process.clock.sleep(4.7)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 5.7

    def test_exit_hooks_of_others(self, in_process: InProcess) -> None:
        """They have what is left of the time, also when ours was done at once."""
        in_process.install()
        in_process.terminate()
        in_process.answering(0.1)
        in_process.hand_over.at_exit()
        in_process.insist()
        assert in_process.clock.passed == 6

    def test_nothing_is_flushed_after_the_shutdown(self, in_process: InProcess) -> None:
        """Where the main thread was faster than the one that SIGTERM wakes: the SDK would complain on stderr."""
        in_process.install()
        in_process.terminate()
        in_process.answering(0.1)
        in_process.hand_over.at_exit()
        in_process.insist()
        in_process.answer()
        assert in_process.called == ["shutdown"]

    def test_sigterm_at_the_exit_hook(self, in_process: InProcess) -> None:
        """The hook's deadline counts, not a new one."""
        in_process.install()
        in_process.clock.at(3, lambda: signal.raise_signal(signal.SIGTERM))
        in_process.hand_over.at_exit()
        in_process.insist()
        assert in_process.clock.passed == 5

    def test_a_flush_in_vain_before_the_end(self, in_process: InProcess) -> None:
        """What the program has waited itself, just before, is counted in."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 2)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 3

    def test_a_flush_behind_the_end_waits_no_more(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor for another second of its own; in a forked child it does again."""
        in_process.install()
        monkeypatch.setattr(flushing, "is_given_up", in_process.hand_over.is_given_up)
        monkeypatch.setattr(flushing, "run_for_spans", lambda task: None)
        monkeypatch.setattr(flushing, "run_for_metrics", lambda task: None)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 5
        assert not flushing.flush(2)
        assert in_process.clock.passed == 5
        in_process.fork()
        assert not flushing.flush(2)
        assert in_process.clock.passed == 7

    def test_a_flush_in_vain_just_before_the_end_leaves_a_second(self, in_process: InProcess) -> None:
        """However long it was: the Collector may be back."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 4.9)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 1

    def test_a_flush_in_vain_long_ago_does_not_count(self, in_process: InProcess) -> None:
        """The Collector may well be back."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 5)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 5

    def test_a_flush_in_vain_before_sigterm_takes_nothing_from_the_program(
        self, in_process: InProcess
    ) -> None:
        """Its ``finally`` blocks have the whole time, which begins with SIGTERM."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 4.9)
        in_process.terminate()
        in_process.insist()
        assert in_process.clock.passed == 6

    def test_a_short_wait_in_vain_says_nothing(self, in_process: InProcess) -> None:
        """``flush(0.1)`` is too short for a Collector that lives, too."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 0.9)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 5

    def test_a_timeout_of_less_than_a_second(self, in_process: InProcess) -> None:
        """Then what comes after it is no longer than the timeout either."""
        in_process.hand_over._timeout = 0.5
        in_process.install()
        in_process.terminate()
        in_process.insist()
        assert in_process.clock.passed == 1

    def test_a_child(self, in_process: InProcess, caplog: pytest.LogCaptureFixture) -> None:
        """A forked child waits for its own timeout."""
        in_process.install()
        in_process.fork()
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 2
        assert told(caplog) == [("WARNING", "2 s were not enough")]

    def test_a_child_after_one_that_waited_in_vain(
        self, in_process: InProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It tries briefly and says nothing more; after half a minute one waits again."""
        caplog.set_level(logging.WARNING)
        in_process.install()
        waited: list[float] = []
        for pause in (0, 0, 20, 20, 0):
            in_process.clock.sleep(pause)
            in_process.fork()
            began = in_process.clock.now
            in_process.hand_over.at_exit()
            waited.append(round(in_process.clock.now - began, 1))
        assert waited == [2, 0.2, 0.2, 2, 0.2]
        assert len(caplog.records) == 2

    def test_a_child_finds_the_collector_back(self, in_process: InProcess) -> None:
        """One answer, and the next child waits its full time again."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 2)
        in_process.fork()
        in_process.answering(0.1)
        in_process.hand_over.at_exit()
        in_process.fork()
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 2.1

    def test_sigterm_leaves_the_program_its_time_in_such_a_child(self, in_process: InProcess) -> None:
        """Brief is the wait for the Collector, not the time for ``finally`` blocks."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 2)
        in_process.fork()
        in_process.terminate()
        in_process.clock.sleep(1.5)
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 1.7
        in_process.insist()
        assert in_process.clock.passed == 3

    def test_a_parent_after_a_child_that_waited_in_vain(self, in_process: InProcess) -> None:
        """A pool's child and then its parent: one timeout for both, from the beginning of the first."""
        in_process.install()
        flushing.last_in_vain.note(in_process.clock.now - 3)  # in memory that they share
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 2


def test_a_forked_child_gets_its_own_signal(in_process: InProcess) -> None:
    """What its parent had seen (a SIGTERM) does not count for the child."""
    in_process.install()
    in_process.terminate()
    in_process.fork()
    in_process.terminate()


class TestThreadsOfAForkedChild:
    """A fork is the slower for each: it starts those that it needs, when it needs them, once."""

    def test_none_at_first(self, in_process: InProcess) -> None:
        """A fork alone starts none."""
        in_process.install()
        in_process.fork()
        assert len(in_process.targets) == 2

    def test_one_at_sigterm(self, in_process: InProcess) -> None:
        """The one that insists."""
        in_process.install()
        in_process.fork()
        in_process.terminate()
        assert in_process.targets[2:] == [in_process.hand_over._insist]

    def test_one_when_something_is_handed_over(self, in_process: InProcess) -> None:
        """The one that may block; it serves the next one, too."""
        in_process.install()
        in_process.fork()
        in_process.hand_over.run(lambda: None)
        in_process.hand_over.run(lambda: None)
        assert in_process.targets[2:] == [in_process.hand_over._work]

    def test_both_when_the_interpreter_begins_to_end(self, in_process: InProcess) -> None:
        """From Python 3.12 on it starts none in its exit hooks."""
        in_process.install()
        in_process.fork()
        in_process.at_threads_end[0]()
        in_process.at_threads_end[0]()
        assert in_process.targets[2:] == [in_process.hand_over._work, in_process.hand_over._insist]

    @pytest.mark.parametrize("what", ["_at_threads_end", "_native_start"])
    def test_both_at_once(self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        """Where the interpreter would not call, and where greenlets stand for threads."""
        monkeypatch.setattr(exiting, what, lambda *_: None)
        in_process.install()
        in_process.fork()
        assert len(in_process.targets) == 4

    def test_one_whose_start_was_interrupted(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A SIGTERM just before it: the exit hook starts it, and the spans are not lost."""
        interruptions = [SystemExit(143)]

        def start(target: Callable[[], None]) -> None:
            if interruptions:
                raise interruptions.pop()
            in_process.targets.append(target)

        monkeypatch.setattr(exiting, "_native_start", lambda: start)
        in_process.install()
        in_process.fork()
        with pytest.raises(SystemExit):
            in_process.hand_over.run(lambda: None)
        in_process.answering(0.1)
        in_process.hand_over.at_exit()
        assert in_process.targets[2:] == [in_process.hand_over._work]

    def test_a_fork_where_no_thread_can_be_started(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where it would start them at once: SIGTERM still ends it."""
        in_process.install()

        def refuse(target: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(exiting, "_native_start", lambda: None)
        monkeypatch.setattr(exiting, "_daemon", refuse)
        in_process.fork()
        in_process.terminate()

    def test_where_none_can_be_started(self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is raised into the user's program, and nothing is waited for."""

        def refuse(target: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(exiting, "_native_start", lambda: refuse)
        in_process.install()
        in_process.fork()
        in_process.at_threads_end[0]()
        in_process.terminate()
        in_process.hand_over.at_exit()
        assert in_process.clock.passed == 0

    def test_what_a_thread_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """gevent's and eventlet's are functions in Python."""
        assert exiting._native_start() is not None
        monkeypatch.setattr("_thread.start_new_thread", lambda *_: None)
        assert exiting._native_start() is None

    def test_a_python_that_has_no_such_hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is CPython's own, and may go."""
        monkeypatch.setattr(exiting, "_CAN_START_AT_THREADS_END", True)
        monkeypatch.delattr(threading, "_register_atexit")
        assert not exiting._at_threads_end(lambda: None)

    def test_a_python_that_has_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told what to call; not where no thread could be started then."""
        monkeypatch.setattr(exiting, "_CAN_START_AT_THREADS_END", True)
        registered: list[object] = []
        monkeypatch.setattr(threading, "_register_atexit", registered.append)
        call = lambda: None  # noqa: E731
        assert exiting._at_threads_end(call)
        assert registered == [call]
        monkeypatch.setattr(exiting, "_CAN_START_AT_THREADS_END", False)
        assert not exiting._at_threads_end(call)


def test_sigterm_in_the_hooks_of_a_fork_waits(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent gets its own once more when the fork is over."""
    in_process.install()
    in_process.at_fork["before"]()
    signal.raise_signal(signal.SIGTERM)
    in_process.at_fork["after_in_parent"]()
    killed: list[tuple[int, int]] = []

    def kill(pid: int, signum: int) -> None:
        killed.append((pid, signum))
        in_process.hand_over._sigterm.put("end now")

    monkeypatch.setattr(os, "kill", kill)
    in_process.insist()
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_sigterm_while_gevent_makes_its_hub_waits(in_process: InProcess) -> None:
    """The exit is raised when that is over."""
    in_process.install()
    stack: dict[str, Any] = {"__name__": "gevent.hub", "hook": lambda: signal.raise_signal(signal.SIGTERM)}
    exec("def __init__(): hook()", stack)
    stack["__init__"]()
    assert list(in_process.hand_over._sigterm._items) == ["again"]
    in_process.hand_over._sigterm.get()
    in_process.terminate()


def test_a_fork_without_sigterm_changes_nothing(in_process: InProcess) -> None:
    """The next SIGTERM raises again."""
    in_process.install()
    in_process.at_fork["before"]()
    in_process.at_fork["after_in_parent"]()
    in_process.terminate()


@pytest.mark.parametrize("of_the_child", [True, False])
def test_a_child_ends_by_its_own_sigterm_only(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, of_the_child: bool
) -> None:
    """One that reached the parent between its hook and the fork is not the child's."""
    in_process.install()
    in_process.at_fork["before"]()
    signal.raise_signal(signal.SIGTERM)
    if not of_the_child:
        monkeypatch.setattr(os, "getpid", lambda: -1)
    in_process.at_fork["after_in_child"]()
    if of_the_child:
        in_process.insist()
    else:
        in_process.terminate()


def test_multiprocessings_hook_registers_the_exit_hook_as_a_finalizer(in_process: InProcess) -> None:
    """It is called in each child, after that has forgotten the finalizers that it inherited."""
    in_process.install()
    in_process.finalizers.clear()
    in_process.after_fork[0](in_process.hand_over)
    assert in_process.finalizers == [in_process.hand_over.at_exit]


class TestBilliard:
    """The workers of billiard's pools, Celery's prefork pool among them, leave by ``os._exit`` after ``on_exit``."""

    class Worker:
        def __init__(self, on_exit: Callable[..., object] | None) -> None:
            self.on_exit = on_exit

    def install(self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, target: object) -> None:
        module = ModuleType("billiard.process")
        process = ModuleType("process") if target is None else SimpleNamespace(_target=target)
        module.__dict__["current_process"] = lambda: process
        monkeypatch.setitem(sys.modules, "billiard.process", module)
        in_process.install()

    def test_a_worker_hands_over_after_its_own_exit(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With what Celery's receivers of ``worker_process_shutdown`` recorded last; they get what they got."""
        given: list[object] = []

        def on_exit(pid: int, exitcode: int) -> None:
            given.append((pid, exitcode, list(in_process.called)))
            raise KeyError("on purpose")

        worker = self.Worker(on_exit)
        self.install(in_process, monkeypatch, worker)
        in_process.answering(0.1)
        assert worker.on_exit is not None
        with pytest.raises(KeyError):
            worker.on_exit(7, 0)
        assert given == [(7, 0, [])]
        assert in_process.called == ["shutdown"]

    def test_a_worker_without_an_exit_of_its_own(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A plain pool's."""
        worker = self.Worker(None)
        self.install(in_process, monkeypatch, worker)
        in_process.answering(0.1)
        assert worker.on_exit is not None
        worker.on_exit(7, 0)
        assert in_process.called == ["shutdown"]

    @pytest.mark.parametrize("target", [None, lambda: None])
    def test_another_process_of_billiards_is_left_alone(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, target: object
    ) -> None:
        """The main one, and one with a function: it runs finalizers."""
        self.install(in_process, monkeypatch, target)
        assert not hasattr(target, "on_exit")

    def test_a_worker_that_is_not_as_we_know_it_is_a_fault_and_no_more(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The child starts all the same."""

        class Sealed:
            @property
            def on_exit(self) -> None:
                return None

        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        self.install(in_process, monkeypatch, Sealed())
        [record] = caplog.records
        assert "preparing for the end of a pool's worker" in record.message


def test_sigterm_raises_once(in_process: InProcess) -> None:
    """The first SIGTERM raises SystemExit(143) where the program stands; the second lets it end."""
    in_process.install()
    in_process.terminate()
    signal.raise_signal(signal.SIGTERM)


def test_a_mailbox_wakes_who_waits() -> None:
    """Whatever was put before, meanwhile, and twice before anybody looked."""
    mailbox: exiting._Mailbox[int] = exiting._Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    got = [mailbox.get(), mailbox.get()]
    thread = threading.Thread(target=lambda: got.append(mailbox.get()))
    thread.start()
    mailbox.put(3)
    thread.join(A_HANG)
    assert got == [1, 2, 3]


def test_the_thread_goes_on_after_each_task(in_process: InProcess) -> None:
    """Also after the last hand-over: a flush in an exit hook of the program's is answered."""
    done: list[int] = []

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    for task in (lambda: done.append(1), lambda: done.append(2), stop):
        in_process.hand_over.run(task)
    with pytest.raises(Stop):
        in_process.hand_over._work()
    assert done == [1, 2]


def test_a_main_thread_that_has_ended_is_past_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on SystemExit would only be printed."""
    frame = sys._getframe()
    assert not exiting._past_the_program(frame)
    assert not exiting._past_the_program(None)
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    assert exiting._past_the_program(frame)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("threading", "_shutdown"),
        ("gevent.monkey._patch_thread_gte313", "_shutdown"),
        ("multiprocessing.util", "_exit_function"),
    ],
)
def test_pythons_last_steps_are_past_the_program(module: str, function: str) -> None:
    """There the main thread still counts as alive, and SystemExit would skip the finalizers that are left."""
    if not module.startswith("gevent."):
        assert callable(getattr(importlib.import_module(module), function))
    stack: dict[str, Any] = {
        "__name__": module,
        "hook": lambda: exiting._past_the_program(sys._getframe()),
    }
    exec(f"def {function}(): return hook()", stack)
    assert stack[function]() is True


class FakeGreenlet:
    def __init__(self, parent: FakeGreenlet | None = None, **attributes: object) -> None:
        self.parent = parent
        self.gr_frame: object = None
        self.__dict__.update(attributes)


class TestFakeGreenlets:
    """Where the handler raises, by what runs when the signal comes."""

    def run(self, monkeypatch: pytest.MonkeyPatch, current: FakeGreenlet) -> None:
        module = ModuleType("greenlet")
        module.__dict__["getcurrent"] = lambda: current
        monkeypatch.setitem(sys.modules, "greenlet", module)

    def test_the_main_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At once."""
        self.run(monkeypatch, FakeGreenlet())
        with pytest.raises(SystemExit):
            exiting._raise_in_main(SystemExit(143))

    def test_under_a_hub_of_gevents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the hub, which passes it on."""
        calls: list[Callable[[], None]] = []
        hub = FakeGreenlet(FakeGreenlet(), loop=SimpleNamespace(run_callback=calls.append))
        self.run(monkeypatch, FakeGreenlet(hub))
        exiting._raise_in_main(SystemExit(143))
        with pytest.raises(SystemExit):
            calls[0]()

    def test_under_a_hub_of_eventlets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Likewise."""
        calls: list[Callable[[], None]] = []
        hub = FakeGreenlet(FakeGreenlet())
        hubs = ModuleType("eventlet.hubs")
        hubs.__dict__["get_hub"] = lambda: SimpleNamespace(
            greenlet=hub, schedule_call_global=lambda seconds, call: calls.append(call)
        )
        monkeypatch.setitem(sys.modules, "eventlet.hubs", hubs)
        self.run(monkeypatch, hub)
        exiting._raise_in_main(SystemExit(143))
        with pytest.raises(SystemExit):
            calls[0]()

    def test_without_a_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A greenlet of another library's (SQLAlchemy's) passes exceptions on to who called it."""
        monkeypatch.delitem(sys.modules, "eventlet.hubs", raising=False)
        self.run(monkeypatch, FakeGreenlet(FakeGreenlet()))
        with pytest.raises(SystemExit):
            exiting._raise_in_main(SystemExit(143))

    def test_a_main_one_that_has_left_the_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its own frames count, and not those of the hub that it waits in."""
        main = FakeGreenlet()
        stack: dict[str, Any] = {"__name__": "threading", "hook": sys._getframe}
        exec("def _shutdown(): return hook()", stack)
        self.run(monkeypatch, FakeGreenlet(main))
        assert not exiting._past_the_program(stack["_shutdown"]())
        main.gr_frame = stack["_shutdown"]()
        assert exiting._past_the_program(None)


def test_a_daemon_thread_runs_its_target() -> None:
    """The threads never hold the interpreter."""
    ran: list[bool] = []
    done = threading.Event()

    def target() -> None:
        ran.append(threading.current_thread().daemon)
        done.set()

    for start in (exiting._daemon, exiting._native_start()):
        assert start is not None
        done.clear()
        start(target)
        assert done.wait(A_HANG)
    assert ran == [True, True]


MISSING = "queueprop.context.missing"
WITH_METRICS = {"OTEL_METRICS_EXPORTER": "otlp"}


def missing(collector: Collector) -> list[Counted]:
    """What was told of messages without a context."""
    return [point for point in collector.counts if point.name == MISSING]


@pytest.mark.parametrize("end", ["at_exit", "at_sigterm", "in_os_exit"])
def test_a_process_hands_over_its_metrics_as_it_does_its_spans(collector: Collector, end: str) -> None:
    """A message without a context is counted by its destination, and the count is handed over in a normal end, after
    SIGTERM, and by flush(), from the same resource as the span.
    """
    process = start(collector, "measured", END=end, **WITH_METRICS)
    status, _, err = when_ready(process) if end == "at_sigterm" else ended(process)
    assert (status, err) == (143 if end == "at_sigterm" else 0, "")
    assert collector.names == {"process orders": 1}
    [point] = missing(collector)
    assert point.value == 1
    assert point.attributes["messaging.destination.name"] == "orders"
    assert point.attributes["messaging.system"] == "memory"
    assert point.resource["service.name"] == collector.spans[0].service == "worker"


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
@pytest.mark.parametrize("method", ["os.fork", "multiprocessing"])
def test_a_forked_child_hands_over_metrics_of_its_own(
    collector: Collector, temporality: str, method: str
) -> None:
    """As an instance of its own. Where differences are exported, what the parent has measured is the parent's alone;
    else a child goes on from there, and its first export is no increase.
    """
    environment = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": temporality, "METHOD": method}
    assert run(collector, "measured_in_children", **environment, **WITH_METRICS)[0] == 0
    assert sorted(point.value for point in missing(collector)) == (
        [1, 1, 2] if temporality == "delta" else [2, 3, 3]
    )
    instances = {point.resource.get("service.instance.id") for point in missing(collector)}
    assert len(instances) == 3


def test_a_child_that_is_forked_while_metrics_are_exported_exports_its_own(collector: Collector) -> None:
    """The parent's export hangs at a Collector that does not answer yet, and holds nothing that a child needs."""
    collector.hold_one.set()
    process = start(collector, "measured_while_exporting", **WITH_METRICS)
    assert collector.holding.wait(A_HANG)
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[:2] == (0, "flushed True\n")


@pytest.mark.parametrize("method", ["os.fork", "multiprocessing"])
def test_a_dead_collector_holds_up_metrics_no_longer_than_spans(collector: Collector, method: str) -> None:
    """One deadline for both, and of children one waits."""
    environment = {"EXIT_TIMEOUT": "2", "QUEUEPROP_FLUSH_TIMEOUT": "2", **WITH_METRICS}
    collector.silent()
    status, _, _ = run(collector, "measured_in_children", METHOD=method, **environment)
    took = time.monotonic() - collector.first_asked
    assert status == 0
    assert took < 10.5  # where each of three waits for both it would be twelve

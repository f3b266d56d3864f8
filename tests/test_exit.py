"""Real processes end in every way, and a small OTLP server tells what they handed over."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from queueprop.process import exit as exiting
from queueprop.process.exit import HandOver

pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)

WORKER = Path(__file__).parent / "sdk_processes" / "worker.py"
A_HANG = 60  # seconds; nothing here takes long unless it hangs


class Received(NamedTuple):
    name: str
    trace_id: bytes
    span_id: bytes
    service: str
    client: tuple[str, int]


class Collector:
    """An OTLP/HTTP server. ``silent()`` makes it a dead one: it takes the request and never answers."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.answering = threading.Event()
        self.answering.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections open, as a Collector does

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.answering.wait()
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
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600",  # nor gives up by itself
            "QUEUEPROP_FLUSH_TIMEOUT": "20",
        }

    @property
    def names(self) -> Counter[str]:
        return Counter(span.name for span in self.spans)

    def silent(self) -> dict[str, str]:
        self.answering.clear()
        return {"EXIT_TIMEOUT": "0.2", "QUEUEPROP_FLUSH_TIMEOUT": "0.2"}


def decoded(body: bytes, client: tuple[str, int]) -> Iterator[Received]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        attributes = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Received(span.name, span.trace_id, span.span_id, attributes["service.name"], client)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.answering.set()
    collector.server.shutdown()
    collector.server.server_close()


def start(collector: Collector, scenario: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), scenario],
        env={**collector.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(collector: Collector, scenario: str, **environment: str) -> tuple[int, str, str]:
    return ended(start(collector, scenario, **environment))


def terminated(
    collector: Collector, scenario: str, times: int = 1, **environment: str
) -> tuple[int, str, str]:
    process = start(collector, scenario, **environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(times):
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
    status, out, err = terminated(collector, "sigterm", times)
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


def test_sigterm_ends_a_process_whose_main_thread_has_ended(collector: Collector) -> None:
    """A thread that is left keeps the interpreter; SIGTERM kills as by default, after the export."""
    status, _, err = terminated_after_main(collector)
    assert (status, err) == (143, "")
    assert collector.names == {"done": 1}


def test_sigterm_ends_a_process_that_swallows_the_exit(collector: Collector) -> None:
    """A loop that catches BaseException cannot make the process survive SIGTERM."""
    status, out, _ = terminated(collector, "sigterm_swallowed", EXIT_TIMEOUT="0.5")
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
    ],
)
def test_children_of_multiprocessing_hand_over_their_spans(
    collector: Collector, scenario: str, on_import: str, names: dict[str, int]
) -> None:
    """By every start method, configured before the fork, in the child, or by its main module."""
    status, out, err = run(collector, scenario, CONFIGURE_ON_IMPORT=on_import)
    assert status == 0, err
    assert set(out.splitlines()) == {"exitcode 0"}
    assert collector.names == names


def test_workers_of_a_pool_lose_no_span_when_it_is_terminated(collector: Collector) -> None:
    """``with Pool()`` ends its workers by SIGTERM; what they had finished is exported."""
    assert run(collector, "multiprocessing_pool")[0] == 0
    assert collector.names == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_a_child_that_is_terminated_hands_over_its_spans(collector: Collector) -> None:
    """Process.terminate() ends the child in order, with 143."""
    assert run(collector, "multiprocessing_terminated")[:2] == (0, "exitcode 143\n")
    assert collector.names == {"terminated": 1}


def test_a_dead_collector_does_not_hold_up_the_exit(collector: Collector) -> None:
    """The exit takes exit_timeout and no longer, keeps the status, and one line says what was lost."""
    status, _, err = run(collector, "sys_exit", **collector.silent())
    assert status == 3
    assert (
        err == "0.2 s were not enough to hand over the last spans; they are lost (is the Collector there?)\n"
    )


@pytest.mark.parametrize("scenario", ["sigterm", "sigterm_swallowed"])
def test_a_dead_collector_does_not_hold_up_sigterm(collector: Collector, scenario: str) -> None:
    """Nor does it where SIGTERM ends the process in order, or where that is swallowed."""
    assert terminated(collector, scenario, 1, **collector.silent())[0] == 143


def test_a_dead_collector_does_not_hold_up_sigterm_after_main(collector: Collector) -> None:
    """Nor where the main thread has ended."""
    assert terminated_after_main(collector, **collector.silent())[0] == 143


def test_a_dead_collector_does_not_hold_up_flush(collector: Collector) -> None:
    """flush() gives up at its timeout, although the exporter still waits, and says so."""
    assert run(collector, "bounded_flush", **collector.silent())[:2] == (0, "flushed False\n")


def test_a_dead_collector_holds_up_a_forked_child_for_flush_timeout(collector: Collector) -> None:
    """A child waits for the setting flush_timeout, however long its parent would."""
    collector.silent()
    process = start(collector, "bounded_fork", QUEUEPROP_FLUSH_TIMEOUT="0.2", EXIT_TIMEOUT="600")
    status, out, err = ended(process)
    assert (status, out) == (0, "child ended\n")
    assert "0.2 s were not enough" in err


# The same logic in this process, where every branch can be reached.


class Exited(BaseException):
    """Stands for os._exit."""


class InProcess(NamedTuple):
    hand_over: HandOver
    at_fork: dict[str, Callable[[], None]]
    at_exit: list[Callable[[], None]]
    after_fork: list[Callable[[Any], None]]
    finalizers: list[Callable[[], None]]
    targets: list[Callable[[], None]]
    shut_down: list[str]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """A HandOver whose hooks are collected and not installed, and whose threads are called by the test."""
    shut_down: list[str] = []
    case = InProcess(HandOver(lambda: shut_down.append("done"), 20, 0.0), {}, [], [], [], [], shut_down)
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: case.at_fork.update(hooks))
    monkeypatch.setattr(atexit, "register", case.at_exit.append)
    monkeypatch.setattr(exiting, "register_after_fork", lambda _, function: case.after_fork.append(function))
    monkeypatch.setattr(exiting, "Finalize", lambda *arguments, **_: case.finalizers.append(arguments[1]))
    monkeypatch.setattr(exiting, "_daemon", case.targets.append)

    def _exit(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", _exit)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield case
    signal.signal(signal.SIGTERM, before)


def test_every_hook_is_installed_once(in_process: InProcess) -> None:
    """The exit hook, those of forked and of multiprocessing's children, the handler where there is none."""
    in_process.hand_over.install()
    assert in_process.at_exit == [in_process.hand_over.at_exit]
    assert set(in_process.at_fork) == {"before", "after_in_parent", "after_in_child"}
    assert len(in_process.after_fork) == 1
    assert in_process.finalizers == []
    assert signal.getsignal(signal.SIGTERM) == in_process.hand_over.on_sigterm
    assert len(in_process.targets) == 2


def test_without_fork_there_is_no_hook_for_it(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot fork (Windows) gets the other hooks."""
    monkeypatch.delattr(os, "register_at_fork")
    in_process.hand_over.install()
    assert in_process.at_exit
    assert not in_process.at_fork


def test_in_a_child_of_multiprocessing_a_finalizer_is_registered_at_once(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """configure_tracing inside such a child comes after the hook for new children."""
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    in_process.hand_over.install()
    assert in_process.finalizers == [in_process.hand_over.at_exit]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_handler_that_is_there_is_left(in_process: InProcess, handler: Any) -> None:
    """Who ignores SIGTERM goes on ignoring it, a handler is not replaced, and no thread waits for it."""
    signal.signal(signal.SIGTERM, handler)
    in_process.hand_over.install()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len(in_process.targets) == 1


def test_another_thread_may_configure(in_process: InProcess) -> None:
    """Only the main thread can set a handler: elsewhere SIGTERM stays as it is, and the rest is installed."""
    thread = threading.Thread(target=in_process.hand_over.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert in_process.at_exit == [in_process.hand_over.at_exit]


def test_the_exit_hook_waits_for_the_shutdown(in_process: InProcess) -> None:
    """When the hook returns, the shutdown has run."""
    in_process.hand_over.install()
    thread = threading.Thread(target=in_process.targets[0])
    thread.start()
    in_process.hand_over.at_exit()
    assert in_process.shut_down == ["done"]
    thread.join()


def test_a_shutdown_that_is_late_is_one_warning(
    in_process: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """The hook gives up at the timeout: here a forked child's, which is 0."""
    in_process.hand_over.install()
    in_process.at_fork["after_in_child"]()
    in_process.hand_over.at_exit()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert in_process.shut_down == []


def test_a_forked_child_has_threads_of_its_own_and_gets_its_own_signal(in_process: InProcess) -> None:
    """What its parent had seen (a SIGTERM) does not count for the child."""
    in_process.hand_over.install()
    with pytest.raises(SystemExit):
        in_process.hand_over.on_sigterm(signal.SIGTERM, None)
    in_process.at_fork["after_in_child"]()
    assert len(in_process.targets) == 4
    with pytest.raises(SystemExit):
        in_process.hand_over.on_sigterm(signal.SIGTERM, None)


def test_sigterm_in_the_hooks_of_a_fork_waits(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent gets its own once more when the fork is over."""
    in_process.hand_over.install()
    in_process.at_fork["before"]()
    signal.raise_signal(signal.SIGTERM)
    in_process.at_fork["after_in_parent"]()
    killed: list[tuple[int, int]] = []

    def kill(pid: int, signum: int) -> None:
        killed.append((pid, signum))
        in_process.hand_over._handed_over.set()
        in_process.hand_over._sigterm.put("end now")

    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(Exited):
        in_process.targets[1]()
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_a_fork_without_sigterm_changes_nothing(in_process: InProcess) -> None:
    """The next SIGTERM raises again."""
    in_process.hand_over.install()
    in_process.at_fork["before"]()
    in_process.at_fork["after_in_parent"]()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("of_the_child", [True, False])
def test_a_child_ends_by_its_own_sigterm_only(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, of_the_child: bool
) -> None:
    """One that reached the parent between its hook and the fork is not the child's."""
    in_process.hand_over.install()
    in_process.at_fork["before"]()
    signal.raise_signal(signal.SIGTERM)
    if not of_the_child:
        monkeypatch.setattr(os, "getpid", lambda: -1)
    in_process.at_fork["after_in_child"]()
    if of_the_child:
        with pytest.raises(Exited):
            in_process.targets[3]()
    else:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


def test_multiprocessings_hook_registers_the_exit_hook_as_a_finalizer(in_process: InProcess) -> None:
    """It is called in each child, after that has forgotten the finalizers that it inherited."""
    in_process.hand_over.install()
    in_process.after_fork[0](in_process.hand_over)
    assert in_process.finalizers == [in_process.hand_over.at_exit]


def test_sigterm_raises_once(in_process: InProcess) -> None:
    """The first SIGTERM raises SystemExit(143) where the program stands; the second lets it end."""
    in_process.hand_over.install()
    with pytest.raises(SystemExit) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_at_the_exit_hook_raises_nothing(in_process: InProcess) -> None:
    """There the process ends already; an exception would only cut the flush short."""
    in_process.hand_over.install()
    in_process.hand_over._reached.set()
    signal.raise_signal(signal.SIGTERM)
    in_process.hand_over._handed_over.set()
    with pytest.raises(Exited):
        in_process.targets[1]()


def test_whoever_ends_in_order_gets_time_for_the_other_hooks(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ours, the exit hooks of others have the timeout once more; then the process ends."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    in_process.hand_over.install()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    in_process.hand_over._reached.set()
    in_process.hand_over._handed_over.set()
    with pytest.raises(Exited) as ended:
        in_process.targets[1]()
    assert ended.value.args == (143,)
    assert slept == [20]


def test_a_main_thread_that_never_comes_is_not_waited_for_twice(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the timeout the spans are handed over and the process ends, with no time for other hooks."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("there is nothing to wait for"))
    in_process.hand_over.install()
    in_process.at_fork["after_in_child"]()  # whose timeout is 0
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Exited):
        in_process.targets[3]()


def test_a_main_thread_that_has_ended_is_past_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on SystemExit would only be printed."""
    frame = sys._getframe()
    assert not exiting._past_the_program(frame)
    assert not exiting._past_the_program(None)
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    assert exiting._past_the_program(frame)


@pytest.mark.parametrize(
    ("module", "function"), [("threading", "_shutdown"), ("multiprocessing.util", "_exit_function")]
)
def test_pythons_last_steps_are_past_the_program(module: str, function: str) -> None:
    """There the main thread still counts as alive, and SystemExit would skip the finalizers that are left."""
    assert callable(getattr(importlib.import_module(module), function))
    stack: dict[str, Any] = {
        "__name__": module,
        "hook": lambda: exiting._past_the_program(sys._getframe()),
    }
    exec(f"def {function}(): return hook()", stack)
    assert stack[function]() is True


def test_a_daemon_thread_runs_its_target() -> None:
    """The threads never hold the interpreter."""
    ran: list[bool] = []
    done = threading.Event()

    def target() -> None:
        ran.append(threading.current_thread().daemon)
        done.set()

    exiting._daemon(target)
    assert done.wait(A_HANG)
    assert ran == [True]

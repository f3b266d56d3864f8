"""``queueprop demo`` as a person runs it: its verdict, its exit status, and that nothing of it is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis import Redis

from queueprop.cli.demo.brokers import BROKERS, Broker, load

from .brokers import in_ci

for _module in ("click", "rich", "fastapi", "uvicorn", "opentelemetry.instrumentation.fastapi"):
    pytest.importorskip(_module, reason='pip install "queueprop[demo]"')

COMMAND = [sys.executable, "-c", "import sys; from queueprop.cli import main; sys.exit(main())", "demo"]
MARK = "QUEUEPROP_TEST_OF_THE_DEMO"


class _Demo:
    """The demo in a process, whose children are known by a variable in their environment."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._folder = folder
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith("OTEL_") or (name.startswith("QUEUEPROP_") and name.endswith("_URL")))
        }
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env={
                **inherited,
                MARK: self._mark,
                "TMPDIR": str(folder),
                "PYTHONUNBUFFERED": "1",
                "PYTHONIOENCODING": "utf-8",
                **environ,
            },
        )

    def lines_until(self, text: str) -> list[str]:
        """What it prints, up to the line with that text."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError(f"{text!r} did not come:\n{''.join(lines)}")

    def end(self, timeout: float = 180) -> tuple[int, str]:
        """Its exit status and what it printed since."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def assert_nothing_is_left(self, timeout: float = 60) -> None:
        """No process that it started, directly or not, and no file."""
        deadline = time.monotonic() + timeout
        while (left := self._running()) or any(self._folder.iterdir()):
            assert time.monotonic() < deadline, f"left: {left}, {list(self._folder.iterdir())}"
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def _running(self) -> list[str]:
        mark = f"{MARK}={self._mark}".encode()
        return [
            (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            for folder in Path("/proc").glob("[0-9]*")
            if mark in _environment(folder)
        ]


def _environment(folder: Path) -> list[bytes]:
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is somebody else's
        return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo has its temporary files; a short path, which a socket's name may need."""
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


@pytest.fixture
def demo(folder: Path) -> Iterator[_Demo]:
    running = _Demo(folder)
    yield running
    running.kill()


@pytest.fixture(scope="module", params=sorted(BROKERS))
def broker_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    _skip_without_broker(name)
    return name


@pytest.fixture(scope="module")
def broker(broker_name: str) -> Broker:
    return load(broker_name)


@pytest.fixture(scope="module")
def whole_run(broker_name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """Exit status and output of one run to the end, which left nothing."""
    demo = _Demo(tmp_path_factory.mktemp("demo"), "--broker", broker_name)
    try:
        result = demo.end()
    finally:
        demo.kill()
    demo.assert_nothing_is_left()
    return result


def _skip_without_broker(name: str) -> None:
    """What no package of the extra brings; in CI everything is there."""
    if in_ci():
        return
    if name in ("rabbitmq", "aio-pika", "faststream") and shutil.which("rabbitmq-server") is None:
        pytest.skip("rabbitmq-server is not on the PATH")
    if name == "confluent-kafka" and not find_spec("confluent_kafka"):
        pytest.skip("confluent-kafka is not installed")
    if name == "kafka" and not (shutil.which("kafka-server-start.sh") or find_spec("confluent_kafka")):
        pytest.skip("confluent-kafka is not installed, and kafka-server-start.sh not on the PATH")


def test_whole_traces_beside_broken_ones(whole_run: tuple[int, str], broker: Broker) -> None:
    """With queueprop there is no orphan, without it all are; the status is 0."""
    status, output = whole_run
    assert status == 0, output
    with_queueprop, without = output.split("The same without queueprop")
    told = 6 + broker.further
    assert (
        f"5 messages, {told} deliveries, 0 orphans: every delivery is in the trace of its order."
        in with_queueprop
    )
    untold = told - broker.untold
    assert f"5 messages, {untold} deliveries, {untold} orphans" in without
    assert with_queueprop.count("SERVER POST /orders") == 5
    assert with_queueprop.count("PRODUCER publish emails") == 5
    assert with_queueprop.count("CONSUMER process emails") == 6
    assert with_queueprop.count("CONSUMER") == told
    assert with_queueprop.count("INTERNAL send mail") == 6
    assert "CONSUMER" not in without


def test_log_lines_carry_the_trace_id(whole_run: tuple[int, str]) -> None:
    """A trace in the tree is found in the log lines of both services; without queueprop in those of one."""
    _, output = whole_run
    with_queueprop, without = output.split("The same without queueprop")
    traces = [
        block.split()[0].rstrip(":")
        for block in with_queueprop.split("\ntrace ")[1:]
        if "SERVER POST /orders" in block
    ]
    assert len(traces) == 5
    for trace in traces:
        logs = [line for line in with_queueprop.splitlines() if f"trace_id={trace} " in line]
        assert {line.split()[0] for line in logs} == {"order-service", "notification-service"}
    assert "notification-service  INFO trace_id= confirming" in without


@pytest.mark.parametrize("broker_name", ["celery"], indirect=True)
def test_chain_killed_child_and_beat(whole_run: tuple[int, str]) -> None:
    """A chain goes on in the order's trace, also where the process of its second task is killed; the beat's firing is
    a trace of its own.
    """
    _, output = whole_run
    with_queueprop, _ = output.split("The same without queueprop")
    traces = with_queueprop.split("\ntrace ")[1:]
    [fired] = [trace for trace in traces if "SERVER" not in trace]
    assert "\nPRODUCER publish reports" in fired
    assert "CONSUMER process reports" in fired
    chains = [trace for trace in traces if "CONSUMER process copies" in trace]
    assert [trace.count("SERVER POST /orders") for trace in chains] == [1] * 4
    killed = [line for trace in chains for line in trace.splitlines() if "WorkerLostError" in line]
    assert len(killed) == 1
    assert "CONSUMER process copies" in killed[0]


def test_plain_text_without_a_terminal(whole_run: tuple[int, str]) -> None:
    """Into a pipe nothing but text is written."""
    _, output = whole_run
    assert "\x1b" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "moment", ["starting both services", "sending 5 orders", "waiting for the deliveries"]
)
def test_stopped_in_the_middle(demo: _Demo, number: int, moment: str) -> None:
    """Ctrl-C and SIGTERM end it soon, wherever it is, in order, with the status of such a death."""
    demo.lines_until(moment)
    began = time.monotonic()
    demo.process.send_signal(number)
    status, output = demo.end()
    assert status == 128 + number
    assert time.monotonic() - began < 30
    assert "Stopped; nothing is left running." in output
    assert "Traceback" not in output
    demo.assert_nothing_is_left()


def test_killed_in_the_middle(demo: _Demo) -> None:
    """Even SIGKILL leaves nothing behind."""
    demo.lines_until("waiting for the deliveries")
    demo.process.kill()
    demo.end()
    demo.assert_nothing_is_left()


def test_redis_that_is_given(folder: Path, redis_url: str) -> None:
    """QUEUEPROP_REDIS_URL is used, and nothing of the demo stays there."""
    with Redis.from_url(redis_url) as connection:
        before = set(connection.keys())
        demo = _Demo(folder, QUEUEPROP_REDIS_URL=redis_url)
        try:
            status, output = demo.end()
        finally:
            demo.kill()
        assert status == 0, output
        assert "the Redis of QUEUEPROP_REDIS_URL" in output
        # RQ leaves a few keys that expire by themselves.
        assert [key for key in set(connection.keys()) - before if connection.ttl(key) == -1] == []
    demo.assert_nothing_is_left()


def test_redis_that_does_not_answer(folder: Path) -> None:
    """One clear line, and the status 1."""
    demo = _Demo(folder, QUEUEPROP_REDIS_URL="redis://127.0.0.1:1")
    status, output = demo.end()
    assert status == 1
    assert output == "queueprop demo: the Redis that QUEUEPROP_REDIS_URL names does not answer\n"
    demo.assert_nothing_is_left()

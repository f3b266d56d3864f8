"""``queueprop doctor`` on live brokers and inside real programs, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
from redis import Redis

from integration.live import unique

for _module in ("click", "rich"):
    pytest.importorskip(_module, reason='pip install "queueprop[cli]"')

COMMAND = [sys.executable, "-c", "import sys; from queueprop.cli import main; sys.exit(main())", "doctor"]
BIN = Path(sys.executable).parent
RIVALS = "aio-pika,aiokafka,celery,confluent_kafka,pika"


class Told(NamedTuple):
    status: int
    output: str
    errors: str

    def findings(self, report: int = -1) -> list[dict[str, Any]]:
        return list(json.loads(self.output)["reports"][report]["findings"])

    def problems(self, report: int = -1) -> list[str]:
        return [each["subject"] for each in self.findings(report) if each["level"] == "problem"]

    def about(self, subject: str, report: int = -1) -> dict[str, Any]:
        (found,) = [each for each in self.findings(report) if each["subject"] == subject]
        return dict(found)


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    """An endpoint that answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def doctor(collector: str, *arguments: str, **variables: str) -> Told:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUEUEPROP_"))
    }
    done = subprocess.run(
        [*COMMAND, "--json", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=180,
        check=False,
        env={
            **inherited,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": RIVALS,
            **variables,
        },
    )
    return Told(done.returncode, done.stdout, done.stderr)


# Brokers


def _assert_in_one_trace(told: Told, libraries: dict[str, str]) -> None:
    """Of each library that is installed."""
    found = {each["subject"].partition(",")[0]: each for each in told.findings()}
    assert found.keys() == {library for library, module in libraries.items() if _is_installed(module)}
    for each in found.values():
        assert each["level"] == "ok", each
        assert "publish and process are one trace" in each["text"]
        assert any("CONSUMER process queueprop-doctor-" in line for line in each["lines"])


def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None  # kombu has no spec, once imported


def test_a_message_through_redis(redis_url: str, collector: str) -> None:
    """By each library that speaks to it; nothing of it stays there."""
    told = doctor(collector, redis_url)
    _assert_in_one_trace(told, {"rq": "rq", "bullmq": "bullmq", "kombu": "kombu"})
    with Redis.from_url(redis_url) as connection:
        assert [key for key in connection.scan_iter("*queueprop-doctor*") if connection.ttl(key) == -1] == []


def test_a_message_through_rabbitmq(rabbitmq_url: str, collector: str) -> None:
    """By each library that speaks to it; its password is not shown."""
    told = doctor(collector, rabbitmq_url)
    _assert_in_one_trace(told, {"pika": "pika", "aio-pika": "aio_pika", "kombu": "kombu"})
    assert "guest:guest" not in told.output


def test_a_message_through_kafka(kafka_broker: Any, collector: str) -> None:
    """By each library that speaks to it; the topic is gone afterwards."""
    if kafka_broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster administers no topics")
    told = doctor(collector, kafka_broker.url)
    _assert_in_one_trace(told, {"aiokafka": "aiokafka", "confluent-kafka": "confluent_kafka"})


def test_settings_are_those_of_the_environment(redis_url: str, collector: str) -> None:
    """A setting that makes two traces of one shows in the trace, and with its variable."""
    told = doctor(collector, redis_url, QUEUEPROP_PROPAGATION="link")
    assert all("two traces, linked" in each["text"] for each in told.findings())
    assert told.about("propagation", 0)["source"] == "QUEUEPROP_PROPAGATION"


# Programs


def test_inside_a_worker_of_rq(redis_url: str, collector: str) -> None:
    """Under the launcher: what it has set up, and that its library is instrumented. The worker itself ends in order."""
    told = doctor(
        collector,
        *("--", str(BIN / "opentelemetry-instrument"), str(BIN / "rq")),
        *("worker", "--url", redis_url, unique("emails")),
        OTEL_SERVICE_NAME="mailer",
    )
    assert told.problems() == [], told
    assert told.status == 0
    assert "instrumented (as queueprop_rq)" in told.about("rq")["text"]
    assert told.about("tracer provider")["source"] == "opentelemetry-instrument"
    assert "service.name=mailer" in told.about("resource")["text"]
    assert told.about("endpoint")["text"].endswith("answers (200)")


def test_a_worker_of_rq_whose_spans_would_be_lost(redis_url: str, collector: str) -> None:
    """Without queueprop's instrumentation a work horse ends in os._exit."""
    told = doctor(
        collector,
        *("--", str(BIN / "opentelemetry-instrument"), str(BIN / "rq")),
        *("worker", "--url", redis_url, unique("emails")),
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=f"{RIVALS},queueprop_rq",
    )
    assert told.problems() == ["RQ's work horses"], told
    assert told.status == 1


@pytest.mark.parametrize(
    ("disabled", "problems"), [("", []), (",queueprop_celery,queueprop_kombu", ["Celery's prefork pool"])]
)
def test_inside_a_worker_of_celery(
    disabled: str, problems: list[str], redis_url: str, collector: str, tmp_path: Path
) -> None:
    """Its prefork pool loses spans where nobody hooks the end of its children."""
    pytest.importorskip("celery")
    (tmp_path / "shop.py").write_text(f"from celery import Celery\napp = Celery(broker={redis_url!r})\n")
    told = doctor(
        collector,
        *("--seconds", "10", "--", str(BIN / "opentelemetry-instrument"), str(BIN / "celery")),
        *(
            "--workdir",
            str(tmp_path),
            "-A",
            "shop",
            "worker",
            "-P",
            "prefork",
            "-c",
            "1",
            "-Q",
            unique("emails"),
        ),
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=RIVALS + disabled,
    )
    assert told.problems(0) == problems, told


def test_inside_a_program_of_two_lines(collector: str, tmp_path: Path) -> None:
    """``configure_tracing`` and ``instrument``: who set it up, with which settings, and that nothing is lost."""
    told = doctor(
        collector,
        *("--", sys.executable, _script(tmp_path, _TWO_LINES)),
    )
    assert (told.status, told.problems()) == (0, []), told
    assert told.about("tracer provider")["source"] == "configure_tracing()"
    assert told.about("propagation") == {
        "section": "settings",
        "subject": "propagation",
        "level": "ok",
        "text": "'link'",
        "source": "the program's code",
    }
    assert "configure_tracing()" in told.about("end of the process")["text"]


_TWO_LINES = """\
import time
import queueprop
from queueprop.sdk import configure_tracing
configure_tracing("shop")
queueprop.instrument("rq", settings=queueprop.Settings(propagation="link"))
time.sleep(60)
"""


def test_gevent_is_patched_late(collector: str, tmp_path: Path) -> None:
    """A batch processor that was made before has native locks, and SIGTERM is nobody's."""
    pytest.importorskip("gevent")
    told = doctor(collector, "--", sys.executable, _script(tmp_path, _LATE))
    assert told.problems() == ["SIGTERM", "gevent"], told


_LATE = """\
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
from gevent import monkey, sleep
monkey.patch_all()
sleep(60)
"""


def test_another_instrumentation_has_it(collector: str, tmp_path: Path) -> None:
    """Inside the program it is seen which one has the library."""
    pytest.importorskip("opentelemetry.instrumentation.pika")
    told = doctor(
        collector,
        *(
            "--",
            str(BIN / "opentelemetry-instrument"),
            sys.executable,
            _script(tmp_path, "import pika, time\ntime.sleep(60)"),
        ),
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=RIVALS.removesuffix(",pika"),
    )
    assert "pika, opentelemetry-instrumentation-pika" in told.problems()
    assert "stands down" in told.about("pika")["text"]


def test_nothing_is_set_up(collector: str, tmp_path: Path) -> None:
    """A program that imports a library and does nothing else: its messages carry no context."""
    told = doctor(collector, "--", sys.executable, _script(tmp_path, "import rq, time\ntime.sleep(60)"))
    assert told.problems() == ["rq", "SDK"], told
    assert told.status == 1


def _script(folder: Path, text: str) -> str:
    path = folder / "worker.py"
    path.write_text(text)
    return str(path)


# What cannot be looked at


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "amqp://127.0.0.1:1", "kafka://127.0.0.1:1", "redi://x"]
)
def test_a_broker_that_is_down(url: str, collector: str) -> None:
    """One line, and the status 2."""
    told = doctor(collector, url)
    assert (told.status, told.output) == (2, "")
    assert told.errors.startswith("queueprop doctor: ")
    assert told.errors.count("\n") == 1

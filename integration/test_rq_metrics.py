"""Metrics of RQ's workers as they leave them: what a forked work horse measures is its worker's to export.

Real workers, set up by ``configure_tracing``, and a small OTLP server that is told when each of them ends: nothing
leaves by itself meanwhile.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rq")
pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric
from redis import Redis
from rq import Queue
from rq.job import Job

from integration import rq_tasks as tasks
from integration.contract.telemetry import PATIENCE, telemetry, wait_until
from queueprop.adapters import rq as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FORKS = [name for name in tasks.WORKERS if "simple" not in name and "spawn" not in name]
SIMPLE = [name for name in tasks.WORKERS if "simple" in name]
SPAWNS = [name for name in tasks.WORKERS if "spawn" in name]

CONSUMED = "messaging.client.consumed.messages"
DURATION = "messaging.process.duration"
SENT = "messaging.client.sent.messages"
PUBLISH = "messaging.client.operation.duration"
QUEUE_TIME = "queueprop.message.queue_time"
MISSING = "queueprop.context.missing"


class Collector:
    """An OTLP server that keeps the requests with metrics."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/metrics":
                    requests.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def scopes(self) -> list[list[str]]:
        """Of each request."""
        return [
            [scope.scope.name for group in request.resource_metrics for scope in group.scope_metrics]
            for request in self.requests
        ]

    def total(self, metric: str, **attributes: str) -> float:
        """Over all instances, of the points that have these attributes (``_`` for ``.``)."""
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        counts: dict[object, float] = {}
        for number, request in enumerate(self.requests):
            for instance, found in _metrics(request):
                if found.name != metric:
                    continue
                is_histogram = found.HasField("histogram")
                data: Any = found.histogram if is_histogram else found.sum
                is_total = data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
                for point in data.data_points:
                    own = {it.key: it.value.string_value for it in point.attributes}
                    if wanted.items() <= own.items():
                        # Of a total the last one counts.
                        series = (instance, *sorted(own.items()), None if is_total else number)
                        counts[series] = point.count if is_histogram else point.as_int
        return sum(counts.values())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _metrics(request: ExportMetricsServiceRequest) -> Iterator[tuple[str, Metric]]:
    """Each with the name of the instance that tells it."""
    for group in request.resource_metrics:
        resource = {it.key: it.value.string_value for it in group.resource.attributes}
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                yield resource.get("service.instance.id", ""), metric


class Rig:
    """A queue of the test's own, and its worker."""

    def __init__(self, url: str, queue: Queue, collector: Collector) -> None:
        self.url = url
        self.queue = queue
        self.collector = collector

    def start(self, worker: str, **options: Any) -> Any:
        options.setdefault("instrumented", "traced" not in worker)
        return tasks.start_worker(
            self.url, self.queue.name, worker, collector=self.collector.endpoint, **options
        )

    def work(self, worker: str, **options: Any) -> None:
        assert self.start(worker, **options).wait(PATIENCE) == 0


@pytest.fixture(params=["cumulative", "delta"])
def rig(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    (tmp_path / "integration").symlink_to(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")  # nothing leaves by itself
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", request.param)
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "20")
    with contextlib.ExitStack() as stack:
        stack.enter_context(telemetry(tmp_path / "records"))
        collector = Collector()
        stack.callback(collector.close)
        connection = Redis.from_url(redis_url)
        stack.callback(connection.close)
        yield Rig(redis_url, Queue(f"jobs-{uuid.uuid4().hex[:8]}", connection=connection), collector)


def publish(rig: Rig, function: Callable[..., Any], *args: Any) -> Job:
    job: Job = adapter.traced_publish(rig.queue.enqueue)(function, *args)
    return job


@pytest.mark.parametrize("worker", FORKS)
def test_a_worker_has_one_set_of_series_for_all_its_horses(rig: Rig, worker: str) -> None:
    """Its own request at the end is the only one, with every job in it once: done, failed, killed, ended hard,
    or come without a context.
    """
    for _ in range(5):
        publish(rig, tasks.work)
    publish(rig, tasks.fail)
    publish(rig, tasks.kill_itself)
    publish(rig, tasks.exit_hard, 0)
    rig.queue.enqueue(tasks.rest)
    rig.work(worker)
    total = rig.collector.total
    assert rig.collector.scopes == [["queueprop"]]
    assert (total(CONSUMED), total(DURATION), total(QUEUE_TIME), total(MISSING)) == (9, 9, 9, 1)
    assert total(CONSUMED, error_type="ValueError") == total(DURATION, error_type="ValueError") == 1
    assert total(DURATION, error_type="work_horse_killed") == 2


def test_what_a_job_publishes_is_measured_with_it(rig: Rig) -> None:
    """In the series of the worker."""
    for _ in range(3):
        publish(rig, tasks.publish_more)
    rig.work("fork")
    assert rig.collector.scopes == [["queueprop"]]
    assert rig.collector.total(SENT, messaging_destination_name="more") == 3
    assert rig.collector.total(PUBLISH, messaging_destination_name="more") == 3
    assert rig.collector.total(DURATION) == 3


@pytest.mark.parametrize("worker", SIMPLE)
def test_a_worker_without_horses_is_as_it_was(rig: Rig, worker: str) -> None:
    """One request, too."""
    for _ in range(3):
        publish(rig, tasks.work)
    rig.work(worker)
    assert rig.collector.scopes == [["queueprop"]]
    assert rig.collector.total(CONSUMED) == rig.collector.total(DURATION) == 3


@pytest.mark.skipif(not SPAWNS, reason="no SpawnWorker, or it does not go with this redis")
@pytest.mark.parametrize("worker", SPAWNS)
def test_a_spawned_horse_without_an_sdk_is_measured_by_its_worker(rig: Rig, worker: str) -> None:
    """As its span is made there: once, with the outcome that it has told."""
    publish(rig, tasks.work)
    publish(rig, tasks.fail)
    publish(rig, tasks.kill_itself)
    rig.work(worker)
    total = rig.collector.total
    # RQ 2 forks to spawn, and what has been counted by then is a delta of its own.
    assert {tuple(scopes) for scopes in rig.collector.scopes} == {("queueprop",)}
    assert (total(CONSUMED), total(DURATION)) == (3, 3)
    assert total(DURATION, error_type="ValueError") == total(DURATION, error_type="work_horse_killed") == 1


@pytest.mark.parametrize("worker", FORKS)
def test_each_worker_of_a_pool_has_its_own(rig: Rig, worker: str) -> None:
    """Told at the end of its work and at its own: not for each job."""
    for _ in range(12):
        publish(rig, tasks.work)
    rig.work(worker, pool=2)
    assert len(rig.collector.requests) <= 4
    assert rig.collector.total(CONSUMED) == rig.collector.total(DURATION) == 12


def test_an_application_s_own_metrics_are_the_horse_s(rig: Rig) -> None:
    """It hands them over when it ends, and nothing of queueprop's with them."""
    publish(rig, tasks.work)
    publish(rig, tasks.count_mails)
    publish(rig, tasks.count_mails)
    rig.work("fork")
    assert sorted(rig.collector.scopes) == [["app"], ["app"], ["queueprop"]]
    assert rig.collector.total("mails") == 2
    assert rig.collector.total(DURATION) == 3


def test_a_child_that_a_job_forks_tells_of_itself_alone(rig: Rig) -> None:
    """It has a series of its own for what it publishes, and inherits no count of the worker's or of its horse's."""
    for _ in range(3):
        publish(rig, tasks.work)
    publish(rig, tasks.fork_publisher)
    publish(rig, tasks.work)
    rig.work("fork")
    assert len(rig.collector.requests) == 2
    assert rig.collector.total(CONSUMED) == rig.collector.total(DURATION) == 5
    assert rig.collector.total(SENT, messaging_destination_name="more") == 1


def test_a_stopped_worker_hands_over_what_its_horses_have_left(rig: Rig) -> None:
    """A warm shutdown by SIGTERM."""
    process = rig.start("fork", burst=False)
    jobs = [publish(rig, tasks.work) for _ in range(3)]
    wait_until(lambda: all(job.get_status() == "finished" for job in jobs), "the jobs are done")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert rig.collector.scopes == [["queueprop"]]
    assert rig.collector.total(CONSUMED) == 3

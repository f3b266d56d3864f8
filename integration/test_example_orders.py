"""``examples/orders`` from end to end: its services as processes, over HTTP, and the spans that they send by OTLP."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from queueprop.cli.demo.processes import Processes, accepts
from queueprop.cli.watch.receiver import Receiver
from queueprop.testing import orphans, render_tree
from queueprop.testing.tree import SpanRecord

from .brokers import Unavailable, in_ci
from .example import EXAMPLES, PATIENCE, Services, queue_environment
from .live import unique
from .postgresql import postgresql

for _module in ("fastapi", "uvicorn", "loguru", "psycopg", "sqlalchemy", "structlog"):
    pytest.importorskip(_module, reason="the dependency group `examples` is not installed")
for _module in ("fastapi", "httpx", "sqlalchemy"):
    pytest.importorskip(f"opentelemetry.instrumentation.{_module}", reason="of the group `examples`")

TENANT = "acme, Inc."  # what the header of baggage has to encode


class Example(Services):
    """The services of one run, and what they have told so far."""

    def __init__(self, processes: Processes, receiver: Receiver, environ: Mapping[str, str]) -> None:
        super().__init__(processes, environ)
        self._receiver = receiver
        self.log: list[dict[str, Any]] = []

    def order(
        self, user: str, *, item: str = "coffee", email: str = "ada@example.com", card: str = "ok"
    ) -> int:
        """The status of the answer. The user is what its trace is found by."""
        content = {"item": item, "email": email, "card": card}
        return self.request(user, "POST", "/orders", json=content).status_code

    def request(self, user: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"x-tenant-id": TENANT, "x-user-id": user}
        with httpx.Client(base_url=self.orders_url, trust_env=False, timeout=PATIENCE) as client:
            return client.request(method, path, headers=headers, **options)

    def spans(self) -> list[SpanRecord]:
        return self._receiver.spans()

    def trace(self, user: str, *awaited: str) -> list[SpanRecord]:
        """The one trace of the user's request, once it has spans of each of these names or kinds."""

        def is_there() -> bool:
            spans = self._trace_of(user)
            return set(awaited) <= {span.name for span in spans} | {span.kind for span in spans}

        try:
            self.until(f"the spans {', '.join(awaited)}", is_there)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{render_tree(self.spans())}") from error
        return self._trace_of(user)

    def notified(self, user: str) -> list[tuple[str, str]]:
        """Tenant and user, as the worker has written them into SQLite."""
        query = "SELECT tenant_id, user_id FROM notifications WHERE user_id = ?"
        with closing(sqlite3.connect(self.folder / "orders.sqlite")) as connection:
            return connection.execute(query, (user,)).fetchall()

    def logged(self, event: str, **fields: object) -> list[dict[str, Any]]:
        return [line for line in self.log.copy() if {**line, **fields, "event": event} == line]

    def show(self, process: str, line: str) -> None:
        """Of all that is printed, what is JSON."""
        with suppress(ValueError):
            if isinstance(parsed := json.loads(line), dict):
                self.log.append(parsed)

    def _trace_of(self, user: str) -> list[SpanRecord]:
        spans = self.spans()
        ids = {span.trace_id for span in spans if span.attributes.get("user.id") == user}
        assert len(ids) < 2, render_tree([span for span in spans if span.trace_id in ids])
        return [span for span in spans if span.trace_id in ids]


@contextmanager
def example(**environ: str) -> Iterator[Example]:
    """One with its tables and no service yet, in a folder of its own. All of it ends with the block."""
    found: list[Example] = []
    with Receiver() as receiver, Processes(lambda *line: found[0].show(*line)) as processes:
        common = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "ORDERS_ENVIRONMENT": "test",
        }
        found.append(Example(processes, receiver, {**common, **environ}))
        found[0].prepare()
        yield found[0]


@contextmanager
def whole_example(**environ: str) -> Iterator[Example]:
    """One whose three processes run."""
    with example(**environ) as made:
        url = made.start_notification_api()
        made.start_worker()
        made.start_order_service(ORDERS_NOTIFICATION_URL=url)
        made.ready()
        made.until("the second service", lambda: accepts(int(url.rpartition(":")[2])))
        yield made


BROKERS = {
    "rq": "redis_broker",
    "rabbitmq": "rabbitmq_broker",
    "kafka": "kafka_broker",
    "bullmq": "redis_broker",
    "celery": "redis_broker",
}
"""The fixtures of the session's servers, by queue."""


def environ_of(queue: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """How the services find the queue: one of this run's own, on the session's server."""
    return queue_environment(queue, request.getfixturevalue(BROKERS[queue]).url)


@pytest.fixture(scope="module", params=BROKERS)
def on_queue(request: pytest.FixtureRequest) -> Iterator[Example]:
    """A run on each of the queues."""
    if request.param == "rq":
        yield request.getfixturevalue("on_rq")
        return
    with whole_example(**environ_of(request.param, request)) as made:
        yield made


@pytest.fixture(scope="module")
def on_rq(request: pytest.FixtureRequest) -> Iterator[Example]:
    with whole_example(**environ_of("rq", request)) as made:
        yield made


IN_BOTH = ("SERVER", "CONSUMER")
"""The last spans of each service: the others have come before."""

WHOLE = (
    *IN_BOTH,
    "order.process",
    "order.checkInventory",
    "payment.charge",
    "notification.send",
    "SELECT orders.sqlite",
    "INSERT orders.sqlite",
)


def test_one_trace_from_the_request_to_the_workers_statement(on_queue: Example) -> None:
    """HTTP, business, SQL, queue, worker and its SQL are one tree, of which no span is an error."""
    user = unique("ada")
    assert on_queue.order(user) == 202
    spans = on_queue.trace(user, *WHOLE)

    (statement,) = [
        span for span in named("INSERT orders.sqlite", spans) if service(span) == "notification-service"
    ]
    assert "INSERT INTO notifications" in statement.attributes["db.query.text"]
    (consumer,) = of_kind("CONSUMER", spans)
    assert path_to(statement, spans) == [
        "SERVER POST /orders",
        "INTERNAL order.process",
        f"PRODUCER {of_kind('PRODUCER', spans)[0].name}",
        f"CONSUMER {consumer.name}",
        "INTERNAL notification.send",
        "CLIENT INSERT orders.sqlite",
    ]
    assert {span.status for span in spans} == {"UNSET"}
    assert_whole(spans)


def test_baggage_is_on_the_workers_spans(on_queue: Example) -> None:
    """Tenant and user come from the headers of the request, and reach the worker's spans and its table as they were."""
    user = unique("ada")
    on_queue.order(user)
    spans = on_queue.trace(user, *IN_BOTH)
    for span in (
        *of_kind("SERVER", spans),
        *named("order.process", spans),
        *of_kind("CONSUMER", spans),
        *named("notification.send", spans),
    ):
        assert (span.attributes["tenant.id"], span.attributes["user.id"]) == (TENANT, user), span.name
    assert on_queue.notified(user) == [(TENANT, user)]


def test_worker_that_fails(on_queue: Example) -> None:
    """What the handler raises is an error of its spans, and of none of those of the order, which was taken."""
    user = unique("ada")
    assert on_queue.order(user, email="nobody@example.com") == 202
    spans = on_queue.trace(user, *IN_BOTH)
    failed = [span for span in spans if span.status == "ERROR"]
    assert {span.kind for span in failed} == {"CONSUMER", "INTERNAL"}
    assert {service(span) for span in failed} == {"notification-service"}
    assert all("knows no such mailbox" in span.status_description for span in failed)


@pytest.mark.parametrize("queue", BROKERS)
def test_sigterm_in_the_middle_loses_no_span(queue: str, request: pytest.FixtureRequest) -> None:
    """SIGTERM in the middle of a request, and then of a message: both are finished, and their trace is whole."""
    user = unique("ada")
    statuses: list[int] = []
    with example(**environ_of(queue, request)) as made:
        worker = made.start_worker()
        http = made.start_order_service()
        made.ready()
        slow = {"email": "slow@example.com", "card": "slow"}
        asking = threading.Thread(target=lambda: statuses.append(made.order(user, **slow)))
        asking.start()
        made.until(
            "the order to be in its payment", lambda: bool(named("order.checkInventory", made.spans()))
        )
        made.stop(http)
        asking.join(PATIENCE)
        made.until("the worker to be in its message", lambda: bool(made.logged("notifying customer")))
        made.stop(worker)
    spans = made.trace(user)  # what has come by now, since both processes have ended
    assert statuses == [202]
    assert set(WHOLE) <= {span.name for span in spans} | {span.kind for span in spans}
    assert {span.status for span in spans} == {"UNSET"}
    assert_whole(spans)


def test_out_of_stock_is_an_outcome(on_rq: Example) -> None:
    """An order that cannot be fulfilled says so in an attribute: no span of it is an error, and nothing is queued."""
    user = unique("ada")
    assert on_rq.order(user, item="tea") == 409
    spans = on_rq.trace(user, "SERVER")
    (process,) = named("order.process", spans)
    assert process.attributes["order.outcome"] == "out_of_stock"
    assert {span.status for span in spans} == {"UNSET"}
    assert {span.kind for span in spans} == {"SERVER", "INTERNAL", "CLIENT"}


def test_payment_that_fails_is_an_error(on_rq: Example) -> None:
    """It is an error of the charge, of the order and of the request, with what happened; the inventory's is none."""
    user = unique("ada")
    assert on_rq.order(user, card="fails") == 502
    spans = on_rq.trace(user, "SERVER")
    assert {span.name for span in spans if span.status == "ERROR"} == {
        "POST /orders",
        "order.process",
        "payment.charge",
    }
    (charge,) = named("payment.charge", spans)
    assert charge.status_description == "PaymentFailed: no answer in 2 attempts"
    (process,) = named("order.process", spans)
    assert process.attributes["order.outcome"] == "payment_failed"


def test_payment_that_is_tried_again_is_no_error(on_rq: Example) -> None:
    """A failure that was dealt with leaves no error behind."""
    user = unique("ada")
    assert on_rq.order(user, card="flaky") == 202
    (charge,) = named("payment.charge", on_rq.trace(user, "SERVER"))
    assert charge.status == "UNSET"
    assert charge.attributes["payment.attempts"] == 2


def test_http_into_the_second_service(on_rq: Example) -> None:
    """The path that goes over HTTP is one trace, too, down to the second service's statement, with the baggage."""
    user, reader = unique("ada"), unique("grace")
    content = {"item": "bread", "email": "ada@example.com"}
    order_id = on_rq.request(user, "POST", "/orders", json=content).json()["order_id"]
    on_rq.trace(user, *IN_BOTH)
    answer = on_rq.request(reader, "GET", f"/orders/{order_id}").json()
    assert answer == {"order_id": order_id, "item": "bread", "is_notified": True}

    spans = on_rq.trace(reader, "GET /orders/{order_id}", "GET /notifications/{order_id}")
    (statement,) = [
        span for span in named("SELECT orders.sqlite", spans) if service(span) == "notification-service"
    ]
    assert path_to(statement, spans) == [
        "SERVER GET /orders/{order_id}",
        "CLIENT GET",
        "SERVER GET /notifications/{order_id}",
        "CLIENT SELECT orders.sqlite",
    ]
    (second,) = named("GET /notifications/{order_id}", spans)
    assert (second.attributes["tenant.id"], second.attributes["user.id"]) == (TENANT, reader)
    assert {span.status for span in spans} == {"UNSET"}
    assert_whole(spans)


def test_not_yet_is_no_error(on_rq: Example) -> None:
    """Who asks for an order whose customer could not be reached gets an answer, and a trace without an error."""
    user, reader = unique("ada"), unique("grace")
    content = {"item": "bread", "email": "nobody@example.com"}
    order_id = on_rq.request(user, "POST", "/orders", json=content).json()["order_id"]
    assert on_rq.request(reader, "GET", f"/orders/{order_id}").json()["is_notified"] is False
    spans = on_rq.trace(reader, "GET /orders/{order_id}", "GET /notifications/{order_id}")
    assert {span.status for span in spans} == {"UNSET"}


def test_health_and_metrics_are_untraced(on_rq: Example) -> None:
    """What is asked every few seconds leaves no span: none had come when that of a later order did."""
    user = unique("ada")
    assert on_rq.request(user, "GET", "/health").status_code == 200
    on_rq.order(user, item="tea")
    metrics = on_rq.request(user, "GET", "/metrics")
    assert 'orders_total{outcome="out_of_stock"}' in metrics.text
    later = unique("ada")
    on_rq.order(later, item="tea")
    on_rq.trace(later, "SERVER")
    paths = {str(span.attributes.get("url.path")) for span in on_rq.spans() if span.kind == "SERVER"}
    assert "/orders" in paths
    assert not paths & {"/health", "/metrics"}
    roots = {span.name for span in on_rq.spans() if span.parent is None}
    assert roots <= {"POST /orders", "GET /orders/{order_id}"}


def test_resource(on_rq: Example) -> None:
    """Every span says of which service it is, of which version of it, and where that runs."""
    user = unique("ada")
    on_rq.order(user)
    spans = on_rq.trace(user, *IN_BOTH)
    assert {service(span) for span in spans} == {"order-service", "notification-service"}
    for span in spans:
        assert span.resource["service.version"] == "1.4.0"
        assert span.resource["deployment.environment.name"] == "test"
        assert span.resource["deployment.environment"] == "test"


@pytest.mark.parametrize("logger", ["stdlib", "structlog", "loguru"])
def test_log_lines_carry_the_ids_of_their_spans(logger: str, request: pytest.FixtureRequest) -> None:
    """Each line is JSON, with the ids of the span that it was written in; so it is in the worker, in the same trace."""
    user = unique("ada")
    with example(ORDERS_LOGGER=logger, **environ_of("rq", request)) as made:
        made.start_worker()
        made.start_order_service()
        made.ready()
        made.order(user)
        spans = made.trace(user, *IN_BOTH)
        expected = {"order processed": "order.process", "customer notified": "notification.send"}
        # A service's lines come by another way than its spans.
        made.until("the lines", lambda: all(made.logged(event) for event in expected))
        for event, name in expected.items():
            (line,) = made.logged(event)
            (span,) = named(name, spans)
            assert (line["trace_id"], line["span_id"]) == (span.trace_id, span.span_id)
            assert int(line["trace_flags"], 16) & 1  # sampled
            assert line["level"] == "info"
        (outside,) = made.logged("waiting for messages")
        assert not {"trace_id", "span_id", "trace_flags"} & outside.keys()


def test_postgresql_logs_the_traceparent(request: pytest.FixtureRequest) -> None:
    """In PostgreSQL's own log the statements of both services end with the traceparent of their very spans."""
    user = unique("ada")
    try:
        with (
            postgresql() as server,
            example(ORDERS_DATABASE_URL=server.url, **environ_of("rq", request)) as made,
        ):
            made.start_worker()
            made.start_order_service()
            made.ready()
            assert made.order(user) == 202
            spans = made.trace(user, *IN_BOTH)
            for span in named("INSERT postgres", spans):
                comment = f"traceparent='00-{span.trace_id}-{span.span_id}-"
                (line,) = [line for line in server.log().splitlines() if comment in line]
                table = "orders" if service(span) == "order-service" else "notifications"
                assert f"INSERT INTO {table}" in line
            assert {service(it) for it in named("INSERT postgres", spans)} == {
                "order-service",
                "notification-service",
            }
    except Unavailable as reason:
        if in_ci():
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("ORDERS_QUEUE", "ORDERS_QUEUE is one of rq, rabbitmq, kafka, bullmq, celery, not 'sqs'\n"),
        ("ORDERS_LOGGER", "ORDERS_LOGGER is one of stdlib, structlog, loguru, not 'sqs'\n"),
    ],
)
def test_choice_that_there_is_not(variable: str, line: str, tmp_path: Path) -> None:
    """One clear line, and no service is started."""
    result = run_command(tmp_path, **{variable: "sqs"})
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)


def test_the_one_command(tmp_path: Path) -> None:
    """It starts everything, shows what there is to see, and stops everything; the status says that nothing was lost."""
    result = run_command(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\n3 messages, 3 deliveries, 0 orphans\n")
    assert result.stdout.count("SERVER POST /orders") == 5
    assert "ERROR PaymentFailed" in result.stdout
    assert '"event": "customer notified"' in result.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "examples"]


def run_command(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """``python -m examples.orders`` in that folder."""
    (folder / "examples").symlink_to(EXAMPLES)
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ORDERS_"))
    }
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [sys.executable, "-m", "examples.orders"],
        cwd=folder,
        env={
            **inherited,
            "PYTHONSAFEPATH": "",
            "PYTHONIOENCODING": "utf-8",
            "TMPDIR": str(folder),
            **environ,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )


def assert_whole(spans: list[SpanRecord]) -> None:
    """One trace with one root, of which every other span has its parent in it."""
    known = {span.span_id for span in spans}
    assert len({span.trace_id for span in spans}) == 1
    assert [span.kind for span in spans if span.parent is None] == ["SERVER"]
    assert [span.name for span in spans if span.parent and span.parent.span_id not in known] == []
    assert orphans(spans) == []


def path_to(span: SpanRecord, spans: list[SpanRecord]) -> list[str]:
    """From the root: kind and name of each span."""
    by_id = {it.span_id: it for it in spans}
    path = [span]
    while (parent := path[0].parent) is not None:
        path.insert(0, by_id[parent.span_id])
    return [f"{it.kind} {it.name}" for it in path]


def named(name: str, spans: list[SpanRecord]) -> list[SpanRecord]:
    return [span for span in spans if span.name == name]


def of_kind(kind: str, spans: list[SpanRecord]) -> list[SpanRecord]:
    return [span for span in spans if span.kind == kind]


def service(span: SpanRecord) -> str:
    return str(span.resource["service.name"])

"""The whole demo on a broker of the tests: a folder, with a file for each message."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from queueprop.cli.demo import run
from queueprop.cli.demo.brokers import NoServer, Server
from queueprop.cli.demo.processes import Processes
from queueprop.cli.demo.run import EXPECTED, ORDERS, Order
from queueprop.cli.watch.receiver import Receiver

COMMON = """
import contextlib, json, logging, os, pathlib, sys, time, uuid
import queueprop
from opentelemetry import trace
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

ON = "WITHOUT_QUEUEPROP" not in os.environ
FOLDER = pathlib.Path(os.environ["FOLDER"])
EMAILS = queueprop.Destination(system="folder", name="emails")
handler = logging.StreamHandler()
handler.addFilter(TraceContextFilter())
logging.basicConfig(level="INFO", format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler])
"""

ORDER_SERVICE = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        if "REFUSE" in os.environ:
            return self.send_error(500)
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with trace.get_tracer("http").start_as_current_span("POST /orders"):
            logging.info("ordered")
            order["headers"] = {}
            with queueprop.send_span(EMAILS, headers=order["headers"]) if ON else contextlib.nullcontext():
                file = FOLDER / uuid.uuid4().hex
                file.write_text(json.dumps(order))
                file.rename(file.with_suffix(".json"))
        self.send_response(202)
        self.end_headers()

configure_tracing("order-service")
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

NOTIFICATION_SERVICE = """
def work(order):
    lost = "LOSE" in os.environ and order["delay"]
    for attempt in range(0 if lost else 1 + order["retries"]):
        with queueprop.process_span(EMAILS, headers=order["headers"]) if ON else contextlib.nullcontext():
            with trace.get_tracer("mail").start_as_current_span("send mail"):
                logging.info("confirming")

configure_tracing("notification-service")
logging.info("waiting for messages")
while True:
    for file in FOLDER.glob("*.json"):
        work(json.loads(file.read_text()))
        file.unlink()
    time.sleep(0.05)
"""


class Folder:
    """The broker; ``variables`` go to both services."""

    title = "files"
    needs: Sequence[str] = ()
    order_service = "folder_order_service"
    notification_service = "folder_notification_service"
    further = untold = 0

    def __init__(self, path: Path, **variables: str) -> None:
        self._path = path
        self._variables = variables
        (path / "messages").mkdir()
        (path / f"{self.order_service}.py").write_text(COMMON + ORDER_SERVICE)
        (path / f"{self.notification_service}.py").write_text(COMMON + NOTIFICATION_SERVICE)

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        environment = {
            "PYTHONPATH": str(self._path),
            "FOLDER": str(self._path / "messages"),
            **self._variables,
        }
        yield Server("a folder", environment)


class _Fails(Folder):
    def __init__(self, path: Path, error: Exception | None) -> None:
        super().__init__(path)
        self._error = error

    @contextmanager
    def server(self, processes: Processes, environ: Mapping[str, str]) -> Iterator[Server]:
        if self._error is not None:
            raise self._error
        os.kill(os.getpid(), signal.SIGTERM)
        yield Server("never", {})


def _run(broker: Folder, **environ: str) -> tuple[int, str]:
    output = io.StringIO()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    status = run.main(broker, {**clean, **environ}, Console(file=output, width=200))
    return status, output.getvalue()


def test_traffic_is_what_was_promised() -> None:
    """A few orders, of which one is tried again and one is delayed."""
    assert [order.deliveries for order in ORDERS if order.retries] == [2]
    assert len([order for order in ORDERS if order.delay]) == 1
    assert len(ORDERS) + 1 == EXPECTED


def test_both_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With queueprop all is whole, without it all is orphaned, and the status is 0. A Collector gets all spans."""
    with Receiver() as collector:
        status, output = _run(Folder(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        spans = collector.spans()
    assert status == 0, output
    with_queueprop, without = output.split("The same without queueprop")
    assert f"{len(ORDERS)} messages, {EXPECTED} deliveries, 0 orphans: every delivery" in with_queueprop
    assert f"{len(ORDERS)} messages, {EXPECTED} deliveries, {EXPECTED} orphans: the messages carry" in without
    assert "CONSUMER process emails" in with_queueprop
    assert "CONSUMER" not in without
    assert f"spans also go to {collector.endpoint}/v1/traces" in output
    assert {str(span.resource["queueprop.demo"]) for span in spans} == {"with queueprop", "without queueprop"}
    assert sum(span.name == "send mail" for span in spans) == 2 * EXPECTED
    assert capfd.readouterr().out == ""


def test_deliveries_that_follow_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker's own are waited for, too, and those that leave no span without queueprop only with it."""
    is_delivered = run._Run._is_delivered

    def until_all_has_come(one: run._Run, expected: int) -> bool:
        if not is_delivered(one, EXPECTED):
            return False
        if not is_delivered(one, expected):
            raise TimeoutError  # as at the end of the patience, which a slow machine may need for what does come
        return True

    monkeypatch.setattr(run._Run, "_is_delivered", until_all_has_come)
    broker = Folder(tmp_path)
    broker.further = broker.untold = 1
    status, output = _run(broker)
    assert status == 1
    with_queueprop, without = output.split("The same without queueprop")
    assert f"({EXPECTED + 1} deliveries expected)" in with_queueprop
    assert f"{EXPECTED} deliveries, {EXPECTED} orphans: the messages carry" in without


def test_collector_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line tells it at the end; the demo is the same."""
    monkeypatch.setattr(run, "ORDERS", (Order("tea", "ada@example.com"),))
    monkeypatch.setattr(run, "EXPECTED", 1)
    status, output = _run(Folder(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert status == 0
    assert output.count("no spans went to http://127.0.0.1:1/v1/traces") == 1


def test_lost_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a delivery does not come, the verdict says so, and the status is 1."""
    monkeypatch.setattr(run, "PATIENCE", 1)
    status, output = _run(Folder(tmp_path, LOSE="1"))
    assert status == 1
    assert f"({EXPECTED} deliveries expected): this should not be" in output


def test_order_that_is_refused(tmp_path: Path) -> None:
    """A service that takes no order ends the demo, with what the service printed."""
    status, output = _run(Folder(tmp_path, REFUSE="1"))
    assert status == 1
    assert "order-service did not take an order: HTTP Error 500" in output
    assert '"POST /orders HTTP/1.1" 500' in output


def test_service_that_does_not_start(tmp_path: Path) -> None:
    """It ends the demo at once, with the last lines of the service."""
    broker = Folder(tmp_path)
    (tmp_path / f"{broker.notification_service}.py").write_text("raise RuntimeError('no luck')")
    status, output = _run(broker)
    assert status == 1
    assert "queueprop demo: notification-service ended with status 1" in output
    assert "RuntimeError: no luck" in output


def test_without_a_server(tmp_path: Path) -> None:
    """One line, and the status 1."""
    status, output = _run(_Fails(tmp_path, NoServer("no Redis to be had")))
    assert (status, output) == (1, "queueprop demo: no Redis to be had\n")


def test_stopped_by_a_signal(tmp_path: Path) -> None:
    """The status is that of a death by the signal."""
    status, output = _run(_Fails(tmp_path, None))
    assert status == 128 + signal.SIGTERM
    assert "Stopped" in output


def test_terminal_without_the_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a console of the caller's, standard output is written, also where it has not all characters."""
    assert run.main(_Fails(tmp_path, NoServer("no Redis"))) == 1
    assert "no Redis" in capsys.readouterr().out

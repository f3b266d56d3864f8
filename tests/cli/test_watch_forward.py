"""What goes on to a Collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from queueprop.cli.demo.processes import until
from queueprop.cli.watch import forward as module
from queueprop.cli.watch.forward import Forward, Forwarder

HEADERS = {"Content-Type": "application/x-protobuf"}


class Collector:
    """Answers with the statuses that it is given, in their order, and then with 200; not before it may."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[str, bytes, str]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.got.append((self.path, body, self.headers["Content-Type"]))
                collector.may_answer.wait(60)
                self.send_response(collector.statuses.pop(0) if collector.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def forwarding(*statuses: int, **options: Any) -> Iterator[tuple[Collector, Forwarder]]:
    collector = Collector(*statuses)
    forwarder = Forwarder(Forward.to_collector(collector.url, {}), **options)
    try:
        yield collector, forwarder
    finally:
        collector.may_answer.set()
        forwarder.close()
        collector.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds between two attempts are nobody's matter here."""
    monkeypatch.setattr(module, "_WAITS", (0.01, 0.01))


def test_everything_goes_on_as_it_came() -> None:
    """Each signal to its place, with its own body and headers, in order."""
    with forwarding() as (collector, forwarder):
        forwarder.put("traces", b"one", HEADERS, spans=2)
        forwarder.put("metrics", b"two", {"Content-Type": "application/json"})
        forwarder.put("logs", b"three", HEADERS)
        forwarder.close()
        assert collector.got == [
            ("/v1/traces", b"one", "application/x-protobuf"),
            ("/v1/metrics", b"two", "application/json"),
            ("/v1/logs", b"three", "application/x-protobuf"),
        ]
        assert (forwarder.sent, forwarder.dropped, forwarder.failure) == (2, 0, None)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_collector_that_wants_to_be_asked_later(status: int) -> None:
    """It is asked later, and nothing is lost."""
    with forwarding(status, status) as (collector, forwarder):
        forwarder.put("traces", b"one", HEADERS, spans=2)
        until("the spans", lambda: forwarder.sent == 2, 60)
        assert [body for _, body, _ in collector.got] == [b"one"] * 3
        assert (forwarder.dropped, forwarder.failure) == (0, None)


@pytest.mark.parametrize(("statuses", "attempts"), [([400], 1), ([503, 503, 503], 3)])
def test_collector_that_does_not_take_it(statuses: list[int], attempts: int) -> None:
    """What it refuses, or will not take even later, is dropped, counted, and said; the next one is sent."""
    with forwarding(*statuses) as (collector, forwarder):
        forwarder.put("traces", b"one", HEADERS, spans=2)
        forwarder.put("traces", b"two", HEADERS, spans=3)
        until("the second", lambda: forwarder.sent == 3, 60)
        assert len(collector.got) == attempts + 1
        assert (forwarder.dropped, forwarder.dropped_requests) == (2, 1)
        assert forwarder.failure is not None
        assert forwarder.failure.startswith(
            f"no spans went to {collector.url}/v1/traces: HTTP Error {statuses[0]}"
        )


def test_queue_is_bounded() -> None:
    """While a Collector does not answer, so many bytes wait; what comes then is dropped at once, and said."""
    with forwarding(most_bytes=10) as (collector, forwarder):
        collector.may_answer.clear()
        for spans in (1, 2, 4):
            forwarder.put("traces", b"12345", HEADERS, spans=spans)
        assert forwarder.dropped == 4
        assert forwarder.failure is not None
        assert "too slow: more than 10 bytes waited" in forwarder.failure
        collector.may_answer.set()
        until("the others", lambda: forwarder.sent == 3, 60)
        forwarder.put("traces", b"12345", HEADERS, spans=8)
        until("there is room again", lambda: forwarder.sent == 11, 60)
        assert forwarder.dropped == 4


def test_end_does_not_wait_for_ever() -> None:
    """What is not gone in time counts as dropped: nothing ends unsaid."""
    with forwarding() as (collector, forwarder):
        collector.may_answer.clear()
        forwarder.put("traces", b"one", HEADERS, spans=1)
        until("the first request", lambda: len(collector.got) == 1, 60)
        forwarder.put("traces", b"two", HEADERS, spans=2)
        forwarder.put("metrics", b"three", HEADERS)
        forwarder.close(timeout=0.05)
        assert (forwarder.dropped, forwarder.dropped_requests) == (3, 3)
        assert forwarder.failure is not None
        assert "too slow at the end" in forwarder.failure
        collector.may_answer.set()
        forwarder._thread.join(60)
        assert (forwarder.sent, forwarder.dropped) == (0, 3)


def test_end_interrupts_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits at the end for a Collector that is away: each request has the one attempt."""
    monkeypatch.setattr(module, "_WAITS", (60.0,))
    forwarder = Forwarder(Forward.to_collector("http://127.0.0.1:1", {}))
    forwarder.put("metrics", b"one", HEADERS)
    forwarder.put("traces", b"two", HEADERS, spans=2)
    forwarder.close(timeout=20)
    assert (forwarder.dropped, forwarder.dropped_requests) == (2, 2)
    assert forwarder.failure is not None
    assert forwarder.failure.startswith("no metrics went to http://127.0.0.1:1/v1/metrics: ")


def test_url_of_traces_alone() -> None:
    """A URL that names a place of its own for traces tells no place for the others: they stay."""
    forward = Forward.to("http://127.0.0.1:1/traces-only", {})
    assert (forward.url_of("traces"), forward.url_of("logs")) == ("http://127.0.0.1:1/traces-only", None)
    forwarder = Forwarder(forward)
    forwarder.put("logs", b"one", HEADERS)
    forwarder.close()
    assert (forwarder.dropped_requests, forwarder.failure) == (0, None)


@pytest.mark.parametrize("url", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_urls(url: str) -> None:
    """With or without the path of traces; headers and certificate by the standard variables."""
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem"}
    forward = Forward.to_collector(url, environ)
    assert forward == Forward("http://c:4318/v1/traces", {"api-key": "a b"}, "/ca.pem")
    assert forward.url_of("metrics") == "http://c:4318/v1/metrics"


def test_no_url() -> None:
    """It is told before anything is received."""
    with pytest.raises(ValueError, match="--forward c:4317: it wants http://host:port"):
        Forward.to_collector("c:4317", {})

"""Whether an endpoint answers, and what is probably wrong where it does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from queueprop.cli.doctor import endpoint
from queueprop.cli.doctor.facts import Facts


class _Collector(ThreadingHTTPServer):
    status = 200

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Handler(BaseHTTPRequestHandler):
    server: _Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[_Collector]:
    with _Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a connection, and closes it: as one of another protocol may."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(10)
                connection.sendall(b"\x00\x00\x18\x04")
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"
        server.shutdown(socket.SHUT_RDWR)


def facts(**variables: str) -> Facts:
    return Facts({"variables": variables})


def test_it_answers(collector: _Collector) -> None:
    """It is sent a request without a span in it, with the headers that an exporter would send."""
    found = endpoint.finding(collector.address, False, facts(OTEL_EXPORTER_OTLP_HEADERS="api-key=secret"))
    assert (found.level, found.text) == ("ok", f"{collector.address} answers (200)")
    ((path, headers, body),) = collector.asked
    assert (path, body) == ("/v1/traces", b"")
    assert headers["api-key"] == "secret"
    assert headers["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "OTEL_EXPORTER_OTLP_HEADERS"),
        (404, "is a base URL"),
        (405, "no OTLP receiver"),
        (503, "own log"),
    ],
)
def test_it_refuses(collector: _Collector, status: int, remedy: str) -> None:
    """The status tells what is probably wrong."""
    collector.status = status
    found = endpoint.finding(collector.address, False, facts())
    assert found.level == "problem"
    assert f"answers {status}" in found.text
    assert remedy in found.remedy


def test_nothing_is_there() -> None:
    """For HTTP and for gRPC."""
    for is_grpc in (False, True):
        found = endpoint.finding("http://127.0.0.1:1", is_grpc, facts())
        assert found.level == "problem"
        assert "does not answer: ConnectionRefusedError" in found.text


def test_the_port_of_another_protocol(silent: str) -> None:
    """OTLP over HTTP to the port of gRPC is a common slip."""
    found = endpoint.finding(silent, False, facts())
    assert found.level == "problem"
    assert "does not speak HTTP" in found.text
    assert "4318" in found.remedy


def test_grpc(collector: _Collector) -> None:
    """It is connected to, with a scheme or without."""
    place = f"127.0.0.1:{collector.server_port}"
    for address in (place, f"http://{place}"):
        assert endpoint.finding(address, True, facts()).level == "ok"


@pytest.mark.parametrize("address", ["collector:4318", "ftp://collector", "http://[", "http://h:port/"])
def test_it_is_no_url(address: str) -> None:
    """One finding, and nothing is raised."""
    assert endpoint.finding(address, False, facts()).level == "problem"


def test_a_password_is_not_shown() -> None:
    """Nor is it in what is said of an address that does not answer."""
    assert endpoint.shown("http://u:pw@h:1/v1/traces") == "http://h:1/v1/traces"
    assert endpoint.shown("h:1") == "h:1"


def test_a_certificate(tmp_path: Path) -> None:
    """One that is given is used, for HTTPS alone; one that cannot be read is a problem."""
    given = facts(OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "gone.pem"))
    found = endpoint.finding("https://127.0.0.1:1", False, given)
    assert "FileNotFoundError" in found.text
    assert endpoint._tls("http://127.0.0.1:1", given) is None

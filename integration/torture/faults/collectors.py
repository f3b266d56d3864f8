"""Collectors that are down, silent, slow, refusing or impostors: what they cost a worker, and its end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from integration.torture.programs.ledger import AT_ONCE
from integration.torture.report import Row

from .comparing import BY_SIGNAL, PART
from .trial import NeverMet, Outcome, Trial

MODES = ("living", "down", "silent", "slow", "refusing", "wrong certificate")
LEAST_RATE = 0.9
LATEST_END = 6.0
HANDLER = 0.05
SLOW = 3.0
WARM = 10
"""Messages that are not counted: a worker finds out about its Collector."""

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class _Run(NamedTuple):
    rate: float
    """Messages a second."""
    end: float
    """Seconds from being asked to end until it has ended: of the producer and the worker, the longer."""
    outcome: Outcome


def collectors(
    library: str, url: str, messages: int, rounds: int, modes: tuple[str, ...] = MODES
) -> Iterator[Row]:
    """A row for each Collector: the medians of some rounds, in which the modes take turns."""
    runs: dict[str, list[_Run]] = {}
    label = f"{library}, {url.partition(':')[0]}"
    try:
        for _ in range(rounds):
            for mode in ("plain", *modes):
                runs.setdefault(mode, []).append(_run(library, url, mode, messages))
    except NeverMet as error:
        yield Row(PART, label, f"Collector {mode}", False, {"why": error})
        return
    for mode in modes:
        yield _row(label, mode, runs)


def _row(label: str, mode: str, runs: Mapping[str, list[_Run]]) -> Row:
    rate = _median(runs[mode], "rate")
    of_plain, of_living = rate / _median(runs["plain"], "rate"), rate / _median(runs["living"], "rate")
    later = _median(runs[mode], "end") - _median(runs["plain"], "end")
    delivered = {one.outcome.delivered for one in runs[mode]}
    missing = sum(it.outcome.without_span + it.outcome.orphans + it.outcome.doubles for it in runs["living"])
    holds = min(of_plain, of_living) >= LEAST_RATE and later <= LATEST_END
    holds = holds and delivered == {one.outcome.delivered for one in runs["plain"]}
    counts: dict[str, object] = {
        "delivered": " ".join(map(str, sorted(delivered))),
        "a second": f"{rate:.1f}",
        "of plain": f"{of_plain:.3f}",
        "of a living one's": f"{of_living:.3f}",
        "end later by": f"{later:.1f} s",
    }
    if mode == "living":
        counts |= {"missing, orphans, doubles": missing}
        holds = holds and not missing
    return Row(PART, label, f"Collector {mode}", holds, counts)


def _median(runs: list[_Run], name: str) -> float:
    found: float = statistics.median(getattr(one, name) for one in runs)
    return found


def _run(library: str, url: str, mode: str, messages: int) -> _Run:
    with _collector(mode) as variables:
        trial = Trial(
            library,
            url,
            mode != "plain",
            messages,
            pause=0.0,
            seconds=HANDLER,
            environment={AT_ONCE: "1", **variables},
            ends_by_signal=library in BY_SIGNAL,
        )
        try:
            with trial.running():
                pass
            handled = sorted(it["at"] for it in trial.told("handled"))
            rate = (len(handled) - WARM) / (handled[-1] - handled[WARM - 1])
            return _Run(rate, max(trial.ends), trial.outcome())
        finally:
            with suppress(OSError):
                trial.close()


@contextmanager
def _collector(mode: str) -> Iterator[dict[str, str]]:
    """What tells the SDK of it. The living one is the trial's own."""
    if mode in ("plain", "living"):
        yield {}
    elif mode in ("down", "silent"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            if mode == "silent":
                taken.listen(4096)  # the kernel accepts; nobody reads
            yield {_ENDPOINT: f"http://127.0.0.1:{taken.getsockname()[1]}"}
    elif mode == "wrong certificate":
        with _server(503, 0.0) as server, tempfile.TemporaryDirectory() as folder:
            server.socket = _tls(Path(folder)).wrap_socket(server.socket, server_side=True)
            _serve(server)
            yield {_ENDPOINT: f"https://127.0.0.1:{server.server_port}"}
    else:
        with _server(*((200, SLOW) if mode == "slow" else (503, 0.0))) as server:
            _serve(server)
            yield {_ENDPOINT: f"http://127.0.0.1:{server.server_port}"}


def _tls(folder: Path) -> ssl.SSLContext:
    """Of a certificate that nobody knows, and of another host."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=elsewhere",
    ]
    subprocess.run(
        [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@contextmanager
def _server(status: int, seconds: float) -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        yield server


def _serve(server: ThreadingHTTPServer) -> None:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

"""What ``queueprop watch`` takes: spans a second, how many of them are lost, and its memory.

    make bench-watch       or: python -m benchmarks.watch [--rate SPANS] [--seconds N] [--senders N] [--batch N]

`queueprop watch --web` runs as users start it, with its page open (a reader of its events). Senders, processes of
their own, post requests as the SDK's exporter makes them, 512 spans each (its default), at a steady rate; a request
that is not taken is not sent again, so that each loss counts. A trace is a request over HTTP, a publish, its delivery
in another service, and what the handler does: 24 spans of the SDK's own making, so that 10,000 traces are more than
the 200,000 spans that are kept. One delivery in twenty is an orphan. After that one sender without any pause tells
what the most is, and another one the most requests of a single span. Senders, receiver and reader share the machine's
cores.

The memory is the process's peak (VmHWM) at the end of all that; it holds its 200,000 spans by then.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.request import urlopen

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import queueprop
from queueprop import Settings
from queueprop.cli.demo.processes import free_port

RATE, SECONDS, BATCH = 5000, 60, 512
MEMORY = 300
"""MB, that it must keep to."""

_QUICK = 10.0
"""Seconds of each of the runs without a pause."""


class Sent(NamedTuple):
    """What a sender has done."""

    spans: int
    taken: int
    seconds: float
    slowest: float
    """Seconds for an answer."""


def main(arguments: argparse.Namespace) -> int:
    with watch() as (process, port, page), reader(page):
        cpu = cpu_of(process.pid)
        begun = time.monotonic()
        sent = run(
            port, arguments.senders, arguments.rate / arguments.senders, arguments.seconds, arguments.batch
        )
        used = (cpu_of(process.pid) - cpu) / (time.monotonic() - begun)
        total, taken = sum(it.spans for it in sent), sum(it.taken for it in sent)
        kept = overview(page)
        lost = total - kept["received"]
        print(
            f"{total:,} spans in {arguments.seconds} s, {arguments.rate:,} a second, {arguments.batch} a request"
        )
        print(f"lost                  {lost:,} ({total - taken:,} not taken)")
        print(f"slowest answer        {max(it.slowest for it in sent) * 1000:.0f} ms")
        print(f"CPU                   {used * 100:.0f} % of a core")
        print(f"memory, peak          {peak_of(process.pid):.0f} MB with {kept['kept']['spans']:,} spans")
        [fast] = run(port, 1, 0, _QUICK, arguments.batch)
        print(f"without a pause       {fast.taken / fast.seconds:,.0f} spans a second")
        [single] = run(port, 1, 0, _QUICK, 1)
        print(f"one span a request    {single.taken / single.seconds:,.0f} a second")
        total += fast.spans + single.spans
        lost = total - overview(page)["received"]
        memory = peak_of(process.pid)
        print(f"all in all            {lost:,} of {total:,} lost, {memory:.0f} MB at the most")
    return 1 if lost or memory > MEMORY else 0


@contextmanager
def watch() -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    port, page = free_port(), free_port()
    command = [
        sys.executable,
        "-c",
        "import queueprop.cli; queueprop.cli.main()",
        "watch",
        "--web",
        "--port",
        str(port),
        "--web-port",
        str(page),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until_it_listens(page)
        yield process, port, page
    finally:
        process.terminate()
        process.wait(30)


def until_it_listens(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextmanager
def reader(page: int) -> Iterator[None]:
    """Somebody who looks at the page: each state of it is read."""
    stream = urlopen(f"http://127.0.0.1:{page}/events", timeout=30)

    def read() -> None:
        try:
            while stream.readline():
                pass
        except (OSError, ValueError, AttributeError):  # it was closed
            return

    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        stream.close()


def overview(page: int) -> dict[str, Any]:
    with urlopen(f"http://127.0.0.1:{page}/events", timeout=30) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found
    raise ValueError("the page told nothing")


def run(port: int, senders: int, rate: float, seconds: float, batch: int) -> list[Sent]:
    """That many processes, each with so many spans a second (0: as many as are taken)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(senders) as pool:
        return pool.starmap(send, [(number, port, rate, seconds, batch) for number in range(senders)])


def send(number: int, port: int, rate: float, seconds: float, batch: int) -> Sent:
    templates = made_of(orders(100), batch)
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    spans = taken = 0
    slowest = 0.0
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        if rate and spans > rate * (now - begun):
            time.sleep(min(batch / rate / 4, 0.05))
            continue
        body = as_of_now(templates[spans // batch % len(templates)])
        asked = time.monotonic()
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
        response = connection.getresponse()
        response.read()
        slowest = max(slowest, time.monotonic() - asked)
        spans += batch
        taken += batch if response.status == 200 else 0
    return Sent(spans, taken, time.monotonic() - begun, slowest)


class Template(NamedTuple):
    """A request, in pieces between the ids of its traces: each time it is sent they are others."""

    pieces: list[bytes]
    ids: list[bytes]


def made_of(spans: list[ReadableSpan], batch: int) -> list[Template]:
    """Requests of so many spans each, and no fewer."""
    spans = spans * (batch // len(spans) + 1) if batch > len(spans) else spans
    groups = [spans[at : at + batch] for at in range(0, len(spans) - batch + 1, batch)]
    return [template_of(encode_spans(group).SerializeToString(), group) for group in groups]


def template_of(body: bytes, spans: list[ReadableSpan]) -> Template:
    ids = {span.context.trace_id.to_bytes(16, "big") for span in spans if span.context is not None}
    pieces = re.split(b"(" + b"|".join(map(re.escape, ids)) + b")", body)
    return Template(pieces[::2], pieces[1::2])


def as_of_now(template: Template) -> bytes:
    fresh: dict[bytes, bytes] = {}
    parts = [template.pieces[0]]
    for trace_id, piece in zip(template.ids, template.pieces[1:], strict=True):
        parts += (fresh.setdefault(trace_id, os.urandom(16)), piece)
    return b"".join(parts)


def orders(count: int) -> list[ReadableSpan]:
    """24 spans each, of two services."""
    exporter = InMemorySpanExporter()
    shop, mailer = (provider_of(name, exporter) for name in ("order-service", "notification-service"))
    emails = queueprop.Destination(
        system="rabbitmq", name="emails", server_address="broker", server_port=5672
    )
    for number in range(count):
        headers: dict[str, str] = {}
        tracer = shop.get_tracer("shop")
        attributes = {"http.request.method": "POST", "http.route": "/orders", "url.path": "/orders"}
        with tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER, attributes=attributes):
            with tracer.start_as_current_span("validate"):
                pass
            query = {
                "db.system.name": "postgresql",
                "db.query.text": "INSERT INTO orders VALUES ($1, $2, $3)",
            }
            with tracer.start_as_current_span("INSERT orders", kind=SpanKind.CLIENT, attributes=query):
                pass
            with queueprop.send_span(emails, headers=headers, settings=Settings(tracer_provider=shop)):
                pass
        with queueprop.process_span(
            emails, headers={} if number % 20 == 0 else headers, settings=Settings(tracer_provider=mailer)
        ):
            for name in ("load template", "render", "sign", *["SMTP send"] * 16):
                with mailer.get_tracer("mail").start_as_current_span(
                    name, attributes={"order.number": number}
                ):
                    pass
    return list(exporter.get_finished_spans())


def provider_of(name: str, exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(resource=Resource.create({"service.name": name, "process.pid": os.getpid()}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def peak_of(pid: int) -> float:
    """MB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        [peak] = [line for line in status if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1000


def cpu_of(pid: int) -> float:
    """Seconds of CPU time so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=RATE, help="spans a second")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--batch", type=int, default=BATCH, help="spans a request")
    sys.exit(main(parser.parse_args()))

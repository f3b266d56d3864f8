"""Jaeger, all in one process and in memory, and what its HTTP API tells."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

from integration.brokers.broker import Protocol
from integration.brokers.program import ProgramBroker


class JaegerSpan(NamedTuple):
    """A span as the API gives it."""

    trace_id: str
    span_id: str
    service: str
    operation: str
    kind: str
    start: int
    """In microseconds."""
    references: Sequence[tuple[str, str, str]]
    """CHILD_OF or FOLLOWS_FROM, trace id and span id."""

    @property
    def parent(self) -> tuple[str, str] | None:
        """Trace id and span id of the span that it is CHILD_OF."""
        parents = [(trace_id, span_id) for kind, trace_id, span_id in self.references if kind == "CHILD_OF"]
        return parents[0] if parents else None


class Jaeger(ProgramBroker):
    """A Jaeger of one's own. ``url`` takes OTLP over HTTP."""

    def __init__(self, program: Path) -> None:
        super().__init__(Protocol("jaeger", self._handshake, patience=30), "native", program.name)
        self._server = program

    def spans(self, *services: str) -> list[JaegerSpan]:
        """Every span of every trace that has a span of one of these services; each once."""
        traces: dict[str, Any] = {}
        for service in services:
            query = urlencode({"service": service, "limit": _ALL, "lookback": "1d"})
            traces.update((trace["traceID"], trace) for trace in self._asked(f"traces?{query}"))
        return [_span(trace, one) for trace in traces.values() for one in trace["spans"]]

    def _asked(self, what: str) -> Sequence[Any]:
        with urlopen(f"{self._api}/{what}", timeout=60) as answer:
            found: Sequence[Any] = json.load(answer)["data"]
        return found or []

    def _prepare(self, folder: Path) -> None:
        ports = {name: self._port() for name in _ADDRESSES}
        self.url = f"http://127.0.0.1:{ports['collector.otlp.http.host-port']}"
        self._api = f"http://127.0.0.1:{ports['query.http-server.host-port']}/api"
        self._options = [f"--{name}=127.0.0.1:{port}" for name, port in ports.items()]

    def _run(self, folder: Path) -> None:
        # It would trace itself, to whatever is on port 4317, and wait ten seconds at its end for that to answer.
        quiet = {"SPAN_STORAGE_TYPE": "memory", "OTEL_TRACES_SAMPLER": "always_off"}
        self._program([str(self._server), *self._options], env={**os.environ, **quiet})

    def _handshake(self, url: str, timeout: float) -> None:
        self._asked("services")


_ALL = 100_000

# Every address that it would listen on, so that two of them, or one of somebody else's, are not in each other's way.
_ADDRESSES = (
    "collector.otlp.http.host-port",
    "collector.otlp.grpc.host-port",
    "query.http-server.host-port",
    "query.grpc-server.host-port",
    "collector.grpc-server.host-port",
    "collector.http-server.host-port",
    "admin.http.host-port",
)


def _span(trace: Any, one: Any) -> JaegerSpan:
    kinds = [tag["value"] for tag in one["tags"] if tag["key"] == "span.kind"]
    return JaegerSpan(
        trace_id=one["traceID"],
        span_id=one["spanID"],
        service=trace["processes"][one["processID"]]["serviceName"],
        operation=one["operationName"],
        kind=kinds[0] if kinds else "internal",
        start=one["startTime"],
        references=[(it["refType"], it["traceID"], it["spanID"]) for it in one["references"]],
    )

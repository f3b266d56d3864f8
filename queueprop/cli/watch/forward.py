"""Everything that came goes on to a Collector: by a thread, over a bounded queue, so that no answer waits for it."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from opentelemetry.util.re import parse_env_headers

MOST_BYTES = 32 << 20
"""Of requests that wait."""

_TRACES = "/v1/traces"
_SCHEMES = ("http://", "https://")

_WAITS = (0.5, 1.0, 2.0)
"""Seconds before each further attempt at a Collector that is not there, or that wants to be asked later."""

_ASK_LATER = (429, 502, 503, 504)

_CLOSING = 10.0
"""Seconds for what still waits at the end."""


class Forward(NamedTuple):
    """Where it goes."""

    url: str
    """Of traces."""
    headers: Mapping[str, str]
    certificate: str | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Forward | None:
        """By the standard variables OTEL_EXPORTER_OTLP_*; None where no endpoint is set."""
        url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
        if not url:
            base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
            if not base:
                return None
            url = base.rstrip("/") + _TRACES
        return cls.to(url, environ)

    @classmethod
    def to(cls, url: str, environ: Mapping[str, str]) -> Forward:
        """To this URL for traces; headers and certificate are those of the standard variables."""

        def variable(name: str) -> str:
            value = environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "")
            return (value or environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")).strip()

        headers = parse_env_headers(variable("HEADERS"), liberal=True)
        return cls(url, headers, variable("CERTIFICATE") or None)

    @classmethod
    def to_collector(cls, url: str, environ: Mapping[str, str]) -> Forward:
        """To a Collector's URL, with or without ``/v1/traces``. Raises ValueError for what is no URL."""
        if not url.startswith(_SCHEMES):
            raise ValueError(f"--forward {url}: it wants http://host:port or https://host:port")
        return cls.to(url.rstrip("/").removesuffix(_TRACES) + _TRACES, environ)

    def url_of(self, signal: str) -> str | None:
        """None where a URL of traces alone does not tell that of another signal."""
        if signal == "traces":
            return self.url
        return f"{self.url.removesuffix(_TRACES)}/v1/{signal}" if self.url.endswith(_TRACES) else None


class _Waiting(NamedTuple):
    signal: str
    body: bytes
    headers: Mapping[str, str]
    spans: int


class Forwarder:
    """Hands requests on, in their order. ``close`` it."""

    def __init__(self, forward: Forward, most_bytes: int = MOST_BYTES) -> None:
        self._forward = forward
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._sending: _Waiting | None = None
        self._is_closing = False
        self.sent = 0
        """Spans that the Collector has taken."""
        self.dropped = 0
        """Spans that it has not got."""
        self.dropped_requests = 0
        self.failure: str | None = None
        """Why something could not be handed on: the first time."""
        self._thread = threading.Thread(target=self._run, name="forwards-spans", daemon=True)
        self._thread.start()

    def put(self, signal: str, body: bytes, headers: Mapping[str, str], spans: int = 0) -> None:
        """Hands a request on, as it came, later; it is dropped where too many wait. Never blocks."""
        one = _Waiting(signal, body, headers, spans)
        with self._changed:
            if self._bytes + len(body) > self._most_bytes:
                self._drop(one, f"it is too slow: more than {self._most_bytes} bytes waited")
                return
            self._waiting.append(one)
            self._bytes += len(body)
            self._changed.notify_all()

    def close(self, timeout: float = _CLOSING) -> None:
        """Sends what waits; what is not gone after so many seconds counts as dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            left = [*([] if self._sending is None else [self._sending]), *self._waiting]
            self._sending = None
            self._waiting.clear()
            for one in left:
                self._drop(one, "it was too slow at the end")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                one = self._sending = self._waiting.popleft()
            failure = self._send(one)
            with self._changed:
                if self._sending is None:
                    return  # nobody has waited for it
                self._sending = None
                self._bytes -= len(one.body)
                if failure is None:
                    self.sent += one.spans
                else:
                    self._drop(one, failure)

    def _send(self, one: _Waiting) -> str | None:
        """Returns why it was not taken."""
        url = self._forward.url_of(one.signal)
        if url is None:
            return None  # the URL is one of traces alone
        waits = iter(_WAITS)
        while True:
            try:
                _post(self._forward, url, one)
                return None
            except (OSError, ValueError) as error:  # ValueError: not a URL
                wait = next(waits, None)
                if wait is None or not _may_be_asked_later(error) or self._closes_within(wait):
                    return str(error)

    def _closes_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closing, seconds)

    def _drop(self, one: _Waiting, why: str) -> None:
        self.dropped += one.spans
        self.dropped_requests += 1
        what = "spans" if one.signal == "traces" else one.signal
        self.failure = self.failure or f"no {what} went to {self._forward.url_of(one.signal)}: {why}"


def _may_be_asked_later(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code in _ASK_LATER
    return isinstance(error, OSError)


def _post(forward: Forward, url: str, one: _Waiting) -> None:
    if not url.startswith(_SCHEMES):
        raise ValueError("it wants http:// or https://")
    secure = url.startswith("https://")
    context = ssl.create_default_context(cafile=forward.certificate) if secure else None
    request = Request(url, one.body, {**one.headers, **forward.headers}, method="POST")
    with urlopen(request, timeout=5, context=context) as response:
        response.read()

"""Whether a Collector answers where an exporter sends to: it is sent what has no spans in it."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from opentelemetry.util.re import parse_env_headers

from queueprop.cli.doctor.facts import Facts
from queueprop.cli.doctor.findings import Finding
from queueprop.cli.refusal import reason

SECTION = "OpenTelemetry"
TIMEOUT = 5.0
"""Seconds that an endpoint may take to answer."""

_SUBJECT = "endpoint"
_GRPC_PORT = 4317
_LONGEST_ANSWER = 10_000


def finding(address: str, is_grpc: bool, facts: Facts) -> Finding:
    """Asks it. An answer that is no success says what is probably wrong."""
    try:
        return _grpc(address) if is_grpc else _http(address, facts)
    except urllib.error.HTTPError as error:
        error.close()
        return _refused(address, error.code)
    except (http.client.HTTPException, ConnectionResetError) as error:
        remedy = (
            "is it the port of gRPC? OTLP over HTTP has 4318: OTEL_EXPORTER_OTLP_ENDPOINT=http://host:4318"
        )
        return _problem(address, f"something is there that does not speak HTTP ({reason(error)})", remedy)
    except (OSError, ValueError) as error:  # of urllib its own, sockets' and TLS's
        cause = getattr(error, "reason", error)
        told = reason(cause) if isinstance(cause, BaseException) else str(cause)
        return _problem(
            address, f"does not answer: {told}", "start the Collector, or set OTEL_EXPORTER_OTLP_ENDPOINT"
        )


def shown(address: str) -> str:
    """Without a password."""
    scheme, separator, rest = address.rpartition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


def _grpc(address: str) -> Finding:
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or _GRPC_PORT
    with socket.create_connection((parts.hostname or "localhost", port), timeout=TIMEOUT):
        return Finding(
            SECTION, _SUBJECT, "ok", f"{shown(address)} takes connections (gRPC is not spoken here)"
        )


def _http(address: str, facts: Facts) -> Finding:
    if urlsplit(address).scheme not in ("http", "https"):
        return _problem(address, "is no URL of HTTP", "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318")
    headers = {**_headers(facts), "Content-Type": "application/x-protobuf"}
    request = urllib.request.Request(address, data=b"", headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls(address, facts)) as answer:
        answer.read(_LONGEST_ANSWER)
        return Finding(SECTION, _SUBJECT, "ok", f"{shown(address)} answers ({answer.status})")


def _headers(facts: Facts) -> dict[str, str]:
    given = _variable(facts, "HEADERS")
    return dict(parse_env_headers(given, liberal=True)) if given else {}


def _tls(address: str, facts: Facts) -> ssl.SSLContext | None:
    certificate = _variable(facts, "CERTIFICATE")
    if not address.startswith("https:") or not certificate:
        return None
    return ssl.create_default_context(cafile=certificate)


def _variable(facts: Facts, name: str) -> str:
    for prefix in ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"):
        if found := facts.variables.get(prefix + name, "").strip():
            return found
    return ""


def _refused(address: str, status: int) -> Finding:
    return _problem(address, f"answers {status}", _REMEDIES.get(status, "look into the Collector's own log"))


_REMEDIES = {
    401: "OTEL_EXPORTER_OTLP_HEADERS gives the key that it wants (headers that are given in code are not sent here)",
    403: "OTEL_EXPORTER_OTLP_HEADERS gives the key that it wants (headers that are given in code are not sent here)",
    404: "OTEL_EXPORTER_OTLP_ENDPOINT is a base URL, to which /v1/traces is appended; is there an OTLP receiver?",
    405: "it is a web server, and no OTLP receiver: is the port right?",
}


def _problem(address: str, text: str, remedy: str) -> Finding:
    return Finding(SECTION, _SUBJECT, "problem", f"{shown(address)} {text}: spans are lost", remedy)

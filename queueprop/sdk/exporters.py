"""Which exporters the variables name, and where they send: the same rules for spans and for metrics.

``otlp`` is OTLP by the protocol of ``OTEL_EXPORTER_OTLP_(TRACES_|METRICS_)PROTOCOL``; any other name is an entry point,
as for the SDK's own configurator.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from queueprop import guard
from queueprop.sdk.environment import variable

HINT = 'queueprop.sdk needs the OpenTelemetry SDK: pip install "queueprop[sdk]"'

WHERE = "configure_tracing()"

OTLP_HTTP = "otlp_proto_http"
OTLP_GRPC = "otlp_proto_grpc"

Factory = Callable[[], Any]


def _console_of_spans() -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter()


def _console_of_metrics() -> Any:
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

    return ConsoleMetricExporter()


class Signal(NamedTuple):
    """What differs between spans and metrics."""

    name: str
    """As it stands in variables, paths and groups of entry points."""
    module: str
    """Where OTLP over HTTP has its exporter."""
    exporter: str
    console: Factory


TRACES = Signal(
    "traces", "opentelemetry.exporter.otlp.proto.http.trace_exporter", "OTLPSpanExporter", _console_of_spans
)
METRICS = Signal(
    "metrics",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "OTLPMetricExporter",
    _console_of_metrics,
)


class Collector(NamedTuple):
    """Where to, as the code says it: over the environment."""

    endpoint: str | None
    headers: Mapping[str, str] | None


def names(signal: Signal, default: str = "otlp") -> list[str]:
    """The exporters that ``OTEL_(TRACES|METRICS)_EXPORTER`` names, each once; none with ``none`` among them."""
    given = variable(f"OTEL_{signal.name.upper()}_EXPORTER", default).split(",")
    named = [name for name in (each.strip().lower() for each in given) if name]
    return [] if "none" in named else list(dict.fromkeys(named))


def factory(signal: Signal, name: str, collector: Collector) -> Factory | None:
    """What makes the exporter of that name, or None, and one warning, where it is not installed.

    Raises ModuleNotFoundError when OTLP over HTTP is wanted and not installed.
    """
    if name == "console":
        return signal.console
    if name == "otlp":
        name = _of_protocol(signal)
    if name == OTLP_HTTP:
        return otlp_http(signal, collector)
    found = next(iter(entry_points(group=f"opentelemetry_{signal.name}_exporter", name=name)), None)
    if found is None:
        return None
    arguments = _arguments(signal, collector) if name == OTLP_GRPC else {}
    return lambda: found.load()(**arguments)


def otlp_http(signal: Signal, collector: Collector) -> Factory:
    try:
        exporter = getattr(import_module(signal.module), signal.exporter)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(HINT, name=error.name) from None
    arguments = _arguments(signal, collector)
    if (
        "endpoint" not in arguments
        and _lacks_scheme(variable(_ENDPOINT))
        and not _has_endpoint_of_its_own(signal)
    ):
        arguments["endpoint"] = variable(_ENDPOINT).rstrip("/")
    if "endpoint" in arguments:
        arguments["endpoint"] = f"{_with_scheme(arguments['endpoint'])}/v1/{signal.name}"
    return lambda: exporter(**arguments)


def say_missing(signal: Signal, name: str, instead: str) -> None:
    """One warning: which exporter is not installed, how it is, and what happens instead."""
    name = _of_protocol(signal) if name == "otlp" else name
    package = _PACKAGES.get(name)
    install = f" (pip install {package})" if package else ""
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near and not install else ""
    guard.mistake(WHERE, f"the exporter {name!r} is not installed{install}{hint}; {instead}")


_KNOWN = ("otlp", "console", "none", "prometheus")

_PACKAGES = {
    OTLP_GRPC: "opentelemetry-exporter-otlp-proto-grpc",
    "prometheus": "opentelemetry-exporter-prometheus",
}


def _of_protocol(signal: Signal) -> str:
    protocol = variable("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = variable(f"OTEL_EXPORTER_OTLP_{signal.name.upper()}_PROTOCOL", protocol).lower()
    return {"http/protobuf": OTLP_HTTP, "grpc": OTLP_GRPC}.get(protocol, protocol)


def _arguments(signal: Signal, collector: Collector) -> dict[str, Any]:
    """Only what an exporter would not read from the environment as it is meant."""
    endpoint = _base(collector.endpoint) if collector.endpoint else _mended_endpoint(signal)
    given = {"endpoint": endpoint, "headers": collector.headers}
    return {name: value for name, value in given.items() if value}


def _mended_endpoint(signal: Signal) -> str | None:
    """The base endpoint of the environment, where somebody has written the path of a signal into it.

    Exporters append that path themselves, so spans would go to ``/v1/traces/v1/traces``, which is a 404. gRPC has no
    path, and Python's exporter ignores one; the line is said all the same, for the programs beside this one.
    """
    given = variable(_ENDPOINT)
    base = _base(given)
    if base == given.rstrip("/") or _has_endpoint_of_its_own(signal):
        return None
    guard.mistake(
        _ENDPOINT,
        f"it is a base URL, and exporters append the path of each signal; {base} is understood here, other "
        f"programs may not: set {_ENDPOINT}={base}, or the whole URL in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    )
    return base


_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def _has_endpoint_of_its_own(signal: Signal) -> bool:
    return bool(variable(f"OTEL_EXPORTER_OTLP_{signal.name.upper()}_ENDPOINT"))


def _lacks_scheme(url: str) -> bool:
    return bool(url) and "://" not in url


def _with_scheme(url: str) -> str:
    """Over HTTP a URL needs a scheme: without one each export would fail, with words of another library's."""
    if not _lacks_scheme(url):
        return url
    guard.mistake(
        WHERE, f"the endpoint {url!r} is no URL; http://{url} is used: write it with http:// or https://"
    )
    return f"http://{url}"


def _base(url: str) -> str:
    return _PATH_OF_SIGNAL.sub("", url.rstrip("/"))


_PATH_OF_SIGNAL = re.compile(r"/+v1/(traces|metrics|logs)$")

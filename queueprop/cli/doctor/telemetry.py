"""OpenTelemetry: the propagators, sampler, exporter and resource in force, and whether the exporter is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from queueprop import guard
from queueprop.cli.doctor import endpoint
from queueprop.cli.doctor.facts import Facts, variables_of
from queueprop.cli.doctor.findings import Finding, Level
from queueprop.cli.refusal import reason

SECTION = "OpenTelemetry"
_DEFAULT = "default"


def findings_of_variables(facts: Facts) -> Iterator[Finding]:
    """What ``configure_tracing()`` would make of the environment, and what the launcher does otherwise."""
    if "opentelemetry-sdk" not in facts.versions:
        text = "no OpenTelemetry SDK is installed: there are no spans"
        yield Finding(SECTION, "SDK", "problem", text, 'pip install "queueprop[sdk]"')
        return
    with variables_of(facts):
        if _variable(facts, "OTEL_SDK_DISABLED").lower() == "true":
            text = "switched off: there are no spans, and contexts are still carried"
            yield Finding(SECTION, "SDK", "note", text, source="OTEL_SDK_DISABLED")
        yield from _propagators(facts)
        yield from _sampler(facts)
        yield from _service(facts)
        yield from _exporters(facts)
    yield _launcher(facts)


def findings_of_program(facts: Facts) -> Iterator[Finding]:
    """What a program has set up, by whichever way."""
    provider = facts.provider
    if provider is None:
        yield _no_provider(facts)
        return
    by = "configure_tracing()" if facts.is_configured_by_queueprop else "the program's code"
    if _LAUNCHER in facts.modules and not facts.is_configured_by_queueprop:
        by = "opentelemetry-instrument"
    yield Finding(SECTION, "tracer provider", "ok", provider, source=by)
    yield Finding(SECTION, "propagators", "ok", ", ".join(map(_last, facts.propagators)) or "none")
    yield Finding(SECTION, "sampler", "ok", str(facts.tracing.get("sampler")))
    yield _resource(facts)
    yield from _processors(facts)
    if facts.meter_provider:
        yield Finding(SECTION, "meter provider", "ok", facts.meter_provider)


_LAUNCHER = "opentelemetry.instrumentation.auto_instrumentation"


# By the variables


def _propagators(facts: Facts) -> Iterator[Finding]:
    name = "OTEL_PROPAGATORS"
    given = _variable(facts, name)
    if not given:
        yield Finding(SECTION, "propagators", "ok", "tracecontext, baggage", source=_DEFAULT)
        return
    wanted = [each.strip() for each in given.split(",")]
    known = _entry_points("opentelemetry_propagator") | {"none"}
    for each in wanted:
        if each not in known:
            text = f"there is no propagator {each!r} here, and OpenTelemetry cannot be imported with that"
            yield Finding(SECTION, "propagators", "problem", text, f"one of {_listed(known)}", source=name)
    yield Finding(SECTION, "propagators", "ok", ", ".join(wanted), source=name)


def _sampler(facts: Facts) -> Iterator[Finding]:
    name = "OTEL_TRACES_SAMPLER"
    given = _variable(facts, name)
    known = _entry_points("opentelemetry_traces_sampler")
    if not given:
        yield Finding(
            SECTION, "sampler", "ok", "every trace, unless its parent was not sampled", source=_DEFAULT
        )
        return
    if given not in known:
        text = f"there is no sampler {given!r}; every trace is sampled instead"
        yield Finding(SECTION, "sampler", "problem", text, f"one of {_listed(known)}", source=name)
        return
    argument = _variable(facts, f"{name}_ARG")
    if "ratio" in given and not _is_ratio(argument):
        text = f"{given} wants a number from 0 to 1, not {argument!r}; 1 is used instead"
        yield Finding(SECTION, "sampler", "problem", text, source=f"{name}_ARG")
    level: Level = "note" if given.endswith("always_off") else "ok"
    yield Finding(SECTION, "sampler", level, f"{given} {argument}".strip(), source=name)


def _is_ratio(text: str) -> bool:
    try:
        return 0 <= float(text or "1") <= 1
    except ValueError:
        return False


def _service(facts: Facts) -> Iterator[Finding]:
    from opentelemetry.sdk.resources import OTELResourceDetector

    with guard.suppressed():
        attributes = OTELResourceDetector().detect().attributes
    name = attributes.get("service.name")
    others = ", ".join(f"{key}={value!s}" for key, value in attributes.items() if key != "service.name")
    if name is None:
        text = "the service has no name (unknown_service), unless configure_tracing(...) gives it one"
        yield Finding(SECTION, "resource", "note", text, "OTEL_SERVICE_NAME=my-service", source=_DEFAULT)
    else:
        named_by = (
            "OTEL_SERVICE_NAME" if _variable(facts, "OTEL_SERVICE_NAME") else "OTEL_RESOURCE_ATTRIBUTES"
        )
        yield Finding(SECTION, "resource", "ok", f"service.name={guard.one_line(name, 200)}", source=named_by)
    if others:
        yield Finding(SECTION, "resource", "ok", guard.one_line(others), source="OTEL_RESOURCE_ATTRIBUTES")


def _exporters(facts: Facts) -> Iterator[Finding]:
    try:
        from queueprop.sdk import exporters
    except ModuleNotFoundError as error:  # an SDK that is broken
        yield Finding(SECTION, "exporter", "problem", reason(error))
        return
    variable = "OTEL_TRACES_EXPORTER"
    source = variable if _variable(facts, variable) else _DEFAULT
    names = exporters.names(exporters.TRACES)
    if not names:
        yield Finding(SECTION, "exporter", "note", "none: no span leaves a process", source=source)
    for name in names:
        with guard.collecting() as complaints:
            try:
                make = exporters.factory(exporters.TRACES, name, exporters.Collector(None, None))
                if make is None:
                    exporters.say_missing(exporters.TRACES, name, "OTLP over HTTP is used instead")
                    make = exporters.otlp_http(exporters.TRACES, exporters.Collector(None, None))
                exporter = make()
            except Exception as error:
                yield Finding(SECTION, f"exporter {name}", "problem", reason(error), source=source)
                continue
        for complaint in complaints:
            yield Finding(SECTION, f"exporter {name}", "problem", complaint, source="environment")
        kind = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
        yield from _exporter(kind, getattr(exporter, "_endpoint", None), facts, source)


def _launcher(facts: Facts) -> Finding:
    subject = "opentelemetry-instrument"
    if "opentelemetry-distro" not in facts.versions:
        text = "opentelemetry-distro is not installed: under the launcher nothing sets up the SDK"
        return Finding(
            SECTION, subject, "note", text, "pip install opentelemetry-distro, or configure_tracing()"
        )
    text = "sets up the SDK by opentelemetry-distro; without OTEL_EXPORTER_OTLP_PROTOCOL it sends by gRPC to port 4317"
    if (
        "OTEL_EXPORTER_OTLP_PROTOCOL" in facts.variables
        or "opentelemetry-exporter-otlp-proto-grpc" in facts.versions
    ):
        return Finding(SECTION, subject, "ok", text)
    return Finding(
        SECTION,
        subject,
        "note",
        f"{text}, for which there is no exporter here",
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or pip install opentelemetry-exporter-otlp",
    )


# In a program


def _no_provider(facts: Facts) -> Finding:
    if _variable(facts, "OTEL_SDK_DISABLED").lower() == "true":
        return Finding(SECTION, "SDK", "note", "switched off", source="OTEL_SDK_DISABLED")
    text = "nobody has set up the SDK: there are no spans"
    remedy = "queueprop.sdk.configure_tracing(), or opentelemetry-instrument with opentelemetry-distro"
    return Finding(SECTION, "SDK", "problem", text, remedy)


def _resource(facts: Facts) -> Finding:
    resource = facts.tracing.get("resource")
    attributes: Mapping[str, Any] = resource if isinstance(resource, Mapping) else {}
    name = str(attributes.get("service.name", "unknown_service"))
    others = {
        key: value for key, value in attributes.items() if not key.startswith(("telemetry.", "service.name"))
    }
    shown = ", ".join(f"{key}={value}" for key, value in {"service.name": name, **others}.items())
    level: Level = "note" if name.startswith("unknown_service") else "ok"
    remedy = "OTEL_SERVICE_NAME=my-service" if level == "note" else ""
    return Finding(SECTION, "resource", level, guard.one_line(shown), remedy)


def _processors(facts: Facts) -> Iterator[Finding]:
    exporting = [each for each in facts.processors if isinstance(each.get("exporter"), str)]
    if not exporting:
        yield Finding(SECTION, "exporter", "problem", "the provider has none: no span leaves the process")
    for each in exporting:
        yield from _exporter(each["exporter"], each.get("endpoint"), facts, "the program")


def _exporter(kind: str, address: object, facts: Facts, source: str) -> Iterator[Finding]:
    shown = f"{_last(kind)} to {endpoint.shown(address)}" if isinstance(address, str) else _last(kind)
    yield Finding(SECTION, "exporter", "ok", shown, source=source)
    if isinstance(address, str):
        yield endpoint.finding(address, "grpc" in kind, facts)


def _variable(facts: Facts, name: str) -> str:
    return facts.variables.get(name, "").strip()


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _entry_points(group: str) -> frozenset[str]:
    return frozenset(entry.name for entry in metadata.entry_points(group=group))


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))

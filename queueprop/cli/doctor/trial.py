"""A broker, tried: a message goes through a throw-away queue, and the trace that came out is shown."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from queueprop import guard
from queueprop.cli.doctor.findings import Finding
from queueprop.cli.doctor.rounds import ROUNDS, Round
from queueprop.cli.quiet import quiet
from queueprop.cli.refusal import Refused, reason
from queueprop.cli.urls import BrokerURL
from queueprop.kit import checks
from queueprop.settings import Settings
from queueprop.testing import MissingSDK, capture_spans, orphans
from queueprop.testing.tree import SpanRecord, render_tree

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SECTION = "broker"


def findings(broker: BrokerURL) -> Iterator[Finding]:
    """One for each library here that speaks to this broker, by the settings of the environment.

    Raises Refused where there is none, or no SDK to make spans.
    """
    libraries = [library for library in ROUNDS[broker.kind] if _is_installed(library)]
    if not libraries:
        names = " or ".join(ROUNDS[broker.kind])
        raise Refused(f"nothing here speaks to {broker.shown}: it takes {names} (pip install ...)")
    for library in libraries:
        yield _finding(library, ROUNDS[broker.kind][library], broker)


def _finding(library: str, run: Round, broker: BrokerURL) -> Finding:
    subject = f"{library}, {broker.shown}"
    queue = f"queueprop-doctor-{uuid.uuid4().hex[:12]}"
    try:
        with quiet():
            spans, complaints = _traced(run, broker, queue)
    except MissingSDK as error:
        raise Refused(f"a broker is tried with spans: {error}") from None
    except (Exception, SystemExit) as error:  # whatever a library makes of a broker that is down, or says no
        return Finding(SECTION, subject, "problem", f"no message went through: {reason(error)}")
    lines = tuple(render_tree(spans).splitlines())
    if complaints:
        return Finding(SECTION, subject, "problem", f"queueprop said: {complaints[0]}", lines=lines)
    kinds = [span.kind for span in spans]
    if "PRODUCER" not in kinds or "CONSUMER" not in kinds:
        text = (
            "the message went through, and has no spans of publish and process (QUEUEPROP_EXCLUDE, OTEL_*?)"
        )
        return Finding(SECTION, subject, "problem", text, lines=lines)
    if orphans(spans):
        text = "the message went through, and its process span is an orphan"
        return Finding(SECTION, subject, "problem", text, lines=lines)
    traces = len({span.trace_id for span in spans})
    joined = "one trace" if traces == 1 else "two traces, linked (QUEUEPROP_PROPAGATION or QUEUEPROP_TRUST)"
    text = f"a message went through {queue}, and publish and process are {joined}"
    return Finding(SECTION, subject, "ok", text, lines=lines)


def _traced(run: Round, broker: BrokerURL, queue: str) -> tuple[Sequence[SpanRecord], Sequence[str]]:
    provider = _provider()
    with guard.collecting():  # wrong settings are told of by themselves
        settings = Settings(tracer_provider=provider)
    tracer = provider.get_tracer("queueprop.doctor")
    with (
        capture_spans(provider) as captured,
        guard.collecting() as complaints,
        closing(run(broker, queue, settings)) as steps,
    ):
        next(steps)
        with tracer.start_as_current_span("queueprop doctor"):
            next(steps)
        next(steps, None)
    return [SpanRecord.of(span) for span in captured], complaints


def _provider() -> TracerProvider:
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ModuleNotFoundError:
        raise MissingSDK('it needs the OpenTelemetry SDK: pip install "queueprop[sdk]"') from None
    resource = Resource.create({"service.name": "queueprop doctor"})
    return TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)


def _is_installed(library: str) -> bool:
    module = checks.module_of(library)
    return (
        module in sys.modules or importlib.util.find_spec(module) is not None
    )  # kombu's has no spec, once imported

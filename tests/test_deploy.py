"""The dashboard and the alert rules of deploy/ ask for metrics and labels that queueprop really emits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.metrics")
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.trace import NoOpTracerProvider

from queueprop import Destination, Message, Settings
from queueprop.engine.engine import engine_for

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"

OF_PROMETHEUS = {"job", "le"}
"""Labels that its translation of OTLP adds: from service.name, and of the buckets of a histogram."""

NAME = r"\b(?:messaging|queueprop)_\w+"
IN_LABELS = r"\{[^{}]*\}|\b(?:by|without|on|ignoring) ?\([^()]*\)"

Emitted = dict[str, set[str]]


def dashboard() -> Iterator[tuple[str, str]]:
    """Each panel's expressions."""
    for panel in json.loads((DEPLOY / "grafana" / "queueprop.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def alerts() -> Iterator[tuple[str, str]]:
    """Each rule's expression: a block, as they are all written here."""
    text = (DEPLOY / "prometheus" / "queueprop-alerts.yaml").read_text()
    yield from re.findall(r"- alert: (\w+)\n +expr: \|\n((?: {10}.*\n)+)", text)
    assert text.count("expr:") == len(re.findall(r"expr: \|\n", text)) == text.count("- alert:")


def test_every_rule_is_read() -> None:
    """What is meant to be there is there, and looked at below."""
    assert {name for name, _ in alerts()} == {
        "QueuepropContextMissing",
        "QueuepropFailures",
        "QueuepropNothingConsumed",
        "QueuepropPublishFailures",
        "QueuepropTimeInQueue",
    }
    assert len({title for title, _ in dashboard()}) == 8


@pytest.mark.parametrize(("where", "expression"), [*dashboard(), *alerts()])
def test_what_is_asked_for_is_emitted(emitted: Emitted, where: str, expression: str) -> None:
    """A metric or an attribute that is renamed, or gets another unit, would leave a panel empty and an alert silent."""
    asked = set(re.findall(NAME, re.sub(IN_LABELS, "", expression)))
    assert asked
    assert asked <= emitted.keys()
    known = set.union(OF_PROMETHEUS, *(emitted[name] for name in asked))
    assert labels(expression) <= known


def test_what_a_person_reads_is_emitted(emitted: Emitted) -> None:
    """The legends of the panels and the texts of the alerts name labels, too."""
    texts = [path.read_text() for path in DEPLOY.glob("*/queueprop*")]
    named = {label for text in texts for label in re.findall(r"\{\{ ?(?:\$labels\.)?([a-z_]+) ?\}\}", text)}
    assert named
    assert named <= set.union(OF_PROMETHEUS, *emitted.values())


def labels(expression: str) -> set[str]:
    """Those that it selects and groups by."""
    found: set[str] = set()
    for part in re.findall(IN_LABELS, expression):
        inside = part[part.index("{" if "{" in part else "(") + 1 : -1]
        found |= {re.split(r"[=!~]", it)[0].strip() for it in re.split(r",(?![^\"]*\"[^\"]*$)", inside)}
    return found


@pytest.fixture(scope="module")
def emitted() -> Emitted:
    """The labels of each series, by the name that Prometheus gives it."""
    reader = InMemoryMetricReader()
    measure(MeterProvider([reader], shutdown_on_exit=False))
    data = reader.get_metrics_data()
    assert data is not None
    found: Emitted = {}
    for metric in (
        it for group in data.resource_metrics for scope in group.scope_metrics for it in scope.metrics
    ):
        attributes = {key for point in metric.data.data_points for key in point.attributes or ()}
        for name in names(metric):
            found[name] = {key.replace(".", "_") for key in attributes}
    return found


def measure(provider: MeterProvider) -> None:
    """Everything that there is to measure, with everything that may be said of it."""
    engine = engine_for(Settings(tracer_provider=NoOpTracerProvider(), meter_provider=provider))
    for destination in (
        Destination("rabbitmq", "orders", server_address="broker", server_port=5672),
        Destination(
            "kafka", "orders.eu", template="orders.{region}", partition_id="1", consumer_group="mail"
        ),
    ):
        for error in (None, ValueError("on purpose")):
            for operation in (
                engine.send(destination, Message({})),
                engine.process(destination, Message({}, sent_at=time.time() - 1)),
            ):
                operation.open()
                operation.close(error)
        engine.count_unattached(destination)


def names(metric: Any) -> Iterator[str]:
    """As the translation from OTLP makes them: ``_`` for dots, the unit behind them, and what the kind adds."""
    unit = {"s": "_seconds"}.get(metric.unit, "")
    assert unit or re.fullmatch(r"\{\w+\}", metric.unit)  # an annotation is no unit
    base = metric.name.replace(".", "_") + unit
    if isinstance(metric.data, Histogram):
        yield from (f"{base}_bucket", f"{base}_sum", f"{base}_count")
    else:
        assert isinstance(metric.data, Sum)
        yield f"{base}_total"

"""The literals of the conventions, against the package that OpenTelemetry generates from them."""

from __future__ import annotations

import importlib

import pytest

from queueprop.engine import semconv

OWN = ("messaging.header.", "queueprop.")


def test_the_version_is_written_beside_the_names() -> None:
    """Schema URL and text name 1.44.0."""
    assert semconv.SCHEMA_URL == "https://opentelemetry.io/schemas/1.44.0"
    assert semconv.__doc__ is not None
    assert "1.44.0" in semconv.__doc__


@pytest.mark.parametrize(
    "value",
    [
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and "." in value and "://" not in value
    ],
)
def test_every_name_is_of_the_conventions(value: str) -> None:
    """Each literal is known to the generated package, or is marked as our own by its prefix."""
    if value.startswith(OWN):
        return
    known: list[object] = []
    for module in (
        "_incubating.attributes.messaging_attributes",
        "_incubating.attributes.server_attributes",
        "_incubating.attributes.network_attributes",
        "_incubating.attributes.error_attributes",
        "_incubating.attributes.opentracing_attributes",
        "attributes.server_attributes",
        "attributes.network_attributes",
        "attributes.error_attributes",
        "_incubating.metrics.messaging_metrics",
    ):
        known += vars(importlib.import_module(f"opentelemetry.semconv.{module}")).values()
    assert value in known


def test_the_buckets() -> None:
    """Both in order; those of durations are the conventions' own."""
    assert list(semconv.DURATION_BUCKETS) == [
        *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
        *(1, 2.5, 5, 7.5, 10),
    ]
    assert list(semconv.QUEUE_TIME_BUCKETS) == sorted(set(semconv.QUEUE_TIME_BUCKETS))

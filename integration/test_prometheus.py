"""What deploy/prometheus and deploy/grafana's dashboard ask for, on a real Prometheus that gets what examples/orders
measures.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bullmq import Queue
from redis import Redis

from .brokers import Broker, Unavailable
from .observability import Collector, Prometheus, fetched, orders
from .observability.sampling import Plan, wait_for

DEPLOY = Path(__file__).parent.parent / "deploy"
WHEN_ALERTS_FIRE = Path(__file__).parent / "observability" / "alerts.yaml"

NOT_MEASURED_HERE = {"Messages handled outside of their context"}
"""Panels of what the example does not do: pull a message, and handle it outside of ``traced_message``."""


@pytest.fixture(scope="module")
def programs() -> Mapping[str, Path]:
    """A skip in CI as well: that builds nothing, since it would take minutes."""
    try:
        return {name: fetched(name) for name in ("otelcol", "prometheus", "promtool")}
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_configuration(programs: Mapping[str, Path]) -> None:
    """Prometheus takes its configuration, and every rule in it."""
    checked(programs["promtool"], "check", "config", DEPLOY / "prometheus" / "prometheus.yaml")


def test_when_alerts_fire(programs: Mapping[str, Path]) -> None:
    """Each alert fires when it should, a first message without a context included, and not when it should not."""
    checked(programs["promtool"], "test", "rules", WHEN_ALERTS_FIRE)


@pytest.fixture(scope="module")
def prometheus(programs: Mapping[str, Path]) -> Iterator[Prometheus]:
    with closing(Prometheus(programs["prometheus"])) as server:
        server.start()
        yield server


@pytest.fixture
def measured(
    programs: Mapping[str, Path], prometheus: Prometheus, private_redis: Broker
) -> Iterator[Prometheus]:
    """Orders of the example, of which every third fails, a message of a stranger's, and publishes that fail; by OTLP
    through the Collector, as it is deployed with Prometheus. The services still run.
    """
    for module in ("fastapi", "sqlalchemy", "opentelemetry.instrumentation.sqlalchemy"):
        pytest.importorskip(module, reason="the dependency group `examples` is not installed")
    redis = Redis.from_url(private_redis.url)
    with orders.witness() as witness:
        traces = witness.endpoint
        gateway = Collector(
            programs["otelcol"],
            ["gateway.yaml", "grafana.yaml"],
            TRACES_ENDPOINT=traces,
            TEMPO_ENDPOINT=traces,
            PROMETHEUS_ENDPOINT=prometheus.otlp,
        )
        with closing(gateway):
            environ = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": gateway.start(),
                "OTEL_METRICS_EXPORTER": "otlp",
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                **orders.queue_of("bullmq", private_redis.url, workers=2),
            }
            with orders.shop(environ, workers=2, most=4) as shop:
                shop.take(orders.orders_of(Plan(orders=150, failing=50, slow=2)))
                asyncio.run(publish_as_a_stranger(environ))
                redis.config_set("maxmemory", 1)  # what is published is refused
                refused = [orders.Order(-number, "ordinary", {}, 500) for number in range(10)]
                shop.take(refused[:5])
                await_data(prometheus, 'messaging_client_sent_messages_total{error_type!=""}')
                shop.take(refused[5:])  # what rises is a rate; a series that is new is none
                redis.config_set("maxmemory", 0)
                yield prometheus


async def publish_as_a_stranger(environ: Mapping[str, str]) -> None:
    """Without queueprop, and so without a context."""
    queue = Queue(environ["QUEUE"], {"connection": environ["REDIS_URL"]})
    await queue.add("notify", {"order_id": "of nobody", "email": "ada@example.com"})
    await queue.close()


def test_what_the_example_measures(measured: Prometheus) -> None:
    """Every panel has data, and every rule what it decides by: those fire that should, when their time has passed."""
    for title, expression in panels():
        if title in NOT_MEASURED_HERE:
            assert measured.query(expression) == []
        else:
            await_data(measured, expression)

    rules = {rule["name"]: rule["query"] for rule in measured.rules()}
    for name in ("QueuepropFailures", "QueuepropPublishFailures", "QueuepropContextMissing"):
        await_data(measured, rules.pop(name))
    assert rules.keys() == {"QueuepropTimeInQueue", "QueuepropNothingConsumed"}
    for expression in rules.values():
        assert measured.query(expression) == []  # nothing has waited for a minute, and something was consumed
        for decides in expression.split(" unless "):
            asked, count = re.subn(r"> \d+$", ">= 0", decides.strip())
            assert count == 1
            assert has_data(measured, asked)


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression, with what Grafana would put in for its variables."""
    for panel in json.loads((DEPLOY / "grafana" / "queueprop.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$job", ".*").replace("$__rate_interval", "1m")


def await_data(prometheus: Prometheus, expression: str) -> None:
    wait_for(f"data of {expression}", lambda: has_data(prometheus, expression), 30)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """Whether it finds anything, all of it numbers."""
    found = prometheus.query(expression)
    return bool(found) and all(one["value"][1] != "NaN" for one in found)


def checked(promtool: Path, *arguments: Any) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

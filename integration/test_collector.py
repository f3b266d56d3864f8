"""What deploy/collector says, by a real Collector and a real Jaeger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import pytest

from queueprop.testing.tree import Reference, SpanRecord

from .brokers import Broker, Unavailable
from .brokers.kafka import addresses
from .observability import CONFIGURATIONS, Collector, Jaeger, built, fetched, orders, validation
from .observability.sampling import (
    FAILING,
    SLOW,
    WAITED,
    Kept,
    Outcome,
    Plan,
    decided,
    judged,
    kept_of,
    traces_in,
    wait_for,
)
from .observability.shop import Shop, run

FOLDER = Path(__file__).parent.parent / "deploy" / "collector"

_Server = TypeVar("_Server", Collector, Jaeger)


class Start(Protocol):
    def __call__(self, program: _Server) -> _Server: ...


class Programs(NamedTuple):
    collector: Path
    jaeger: Path


@pytest.fixture(scope="session")
def programs() -> Programs:
    """A skip in CI as well: that builds nothing, since it would take minutes."""
    try:
        return Programs(fetched("otelcol"), fetched("jaeger"))
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program, which ends with the test."""
    with ExitStack() as running:

        def start(program: _Server) -> _Server:
            running.enter_context(closing(program)).start()
            return program

        yield start


@pytest.fixture
def jaeger(programs: Programs, start: Start) -> Jaeger:
    """A Jaeger that has no span yet."""
    return start(Jaeger(programs.jaeger))


def test_nothing_is_built_by_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is not in the cache is a reason to skip, which names the command that makes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("otelcol", "jaeger"):
        with pytest.raises(Unavailable, match=f"no {name} .* `make sampling` builds it"):
            fetched(name)
    assert list(tmp_path.iterdir()) == []


def test_without_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be built is a reason too, and leaves nothing in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="go is not on the PATH"):
        built("otelcol")
    assert list((tmp_path / "queueprop").iterdir()) == []


def test_every_file_is_in_a_configuration() -> None:
    """No file of deploy/collector is left unchecked, but those whose first line says so."""
    used = {name for files in CONFIGURATIONS for name in files}
    there = {path.name for path in FOLDER.glob("*.yaml")}
    unchecked = {name for name in there if "unchecked" in (FOLDER / name).read_text().split("\n")[0]}
    assert used == there - unchecked


@pytest.mark.parametrize("files", CONFIGURATIONS, ids=" + ".join)
def test_valid(programs: Programs, files: Sequence[str]) -> None:
    """The Collector takes every configuration, as it is and without a single variable set."""
    assert validation(programs.collector, files) == ""


def test_what_is_not_as_planned_is_told() -> None:
    """The run with the example ends where a trace, message, parent or error is not what the order has to make."""
    (order,) = orders.orders_of(Plan(orders=1, failing=0, slow=0, seed=1))
    assert order.status == 202
    request = SpanRecord("POST", "1", "a", "SERVER", end_ns=10, attributes={"user.id": order.user})
    publish = SpanRecord("publish", "1", "b", "PRODUCER", parent=Reference("1", "a"), end_ns=20)
    process = SpanRecord("process", "1", "c", "CONSUMER", parent=Reference("1", "b"), end_ns=30)
    whole = [request, publish, process]
    assert orders.made_of([order], whole) == ({"1": "ordinary"}, {"1": {"a", "b", "c"}})
    waited = replace(process, end_ns=2_000_000_000)
    assert orders.made_of([order], [request, publish, waited]).outcomes == {"1": "slow by waiting"}

    stranger = replace(request, trace_id="2")
    for spans, reason in (
        ([], "1 orders have no trace"),
        ([request, publish], "not 1 messages and deliveries"),
        ([request, process], "without its parent"),
        ([*whole, stranger], "a trace of no order, or its second one"),
        ([request, publish, replace(process, status="ERROR")], "its spans say something else"),
    ):
        with pytest.raises(orders.Lost, match=reason):
            orders.made_of([order], spans)


def test_orders_of_the_example(
    programs: Programs, start: Start, jaeger: Jaeger, redis_broker: Broker
) -> None:
    """Of the orders that go through examples/orders all errors and all slow ones are kept whole, and nothing of most
    others. It is what `make sampling` does with 3,000.
    """
    for module in ("fastapi", "sqlalchemy", "opentelemetry.instrumentation.sqlalchemy"):
        pytest.importorskip(module, reason="the dependency group `examples` is not installed")
    plan = orders.orders_of(Plan(orders=300, failing=12, slow=6))
    with orders.witness() as witness:
        files = ["gateway.yaml", witness.configuration]
        gateway = start(Collector(programs.collector, files, TRACES_ENDPOINT=jaeger.url, DECISION_WAIT="10s"))
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": gateway.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            **orders.queue_of("bullmq", redis_broker.url, workers=4),
        }
        with orders.shop(environ, workers=4, most=4) as shop:
            shop.take(plan)
        made = orders.made_of(plan, witness.spans_of(gateway))
    _assert_sampled(kept_of(made, [gateway], jaeger), rest=7)


def test_three_thousand_traces(programs: Programs, start: Start, jaeger: Jaeger) -> None:
    """All errors and all slow traces are kept whole, 5 % of the rest, nothing of the others; no span is an orphan."""
    gateway = start(
        Collector(programs.collector, ["gateway.yaml"], TRACES_ENDPOINT=jaeger.url, DECISION_WAIT="10s")
    )
    kept = run(Plan(), gateway.url, [gateway], jaeger)
    print(kept)
    _assert_sampled(kept, rest=1.5)


def test_behind_a_balancer(programs: Programs, start: Start, jaeger: Jaeger, tmp_path: Path) -> None:
    """With two gateways behind a balancer the traces are as whole as with one, and both have a part in it."""
    variables = {"TRACES_ENDPOINT": jaeger.url, "DECISION_WAIT": "10s"}
    gateways = [start(Collector(programs.collector, ["gateway.yaml"], **variables)) for _ in range(2)]
    addressed = tmp_path / "static.yaml"
    # Two gateways at one address, which DNS cannot tell apart.
    addressed.write_text(_STATIC.format(", ".join(gateway.grpc for gateway in gateways)))
    balancer = start(Collector(programs.collector, ["balancer.yaml", str(addressed)]))
    kept = run(_SMALLER, balancer.url, gateways, jaeger)
    _assert_sampled(kept, rest=3)
    assert all(decided([gateway]) > _SMALLER.orders / 4 for gateway in gateways)


def test_balancer_by_dns(programs: Programs, start: Start, jaeger: Jaeger) -> None:
    """The balancer's own file finds its gateway by the resolver that it names."""
    gateway = start(
        Collector(programs.collector, ["gateway.yaml"], TRACES_ENDPOINT=jaeger.url, DECISION_WAIT="10s")
    )
    host, _, port = gateway.grpc.partition(":")
    balancer = start(Collector(programs.collector, ["balancer.yaml"], SAMPLERS=host, SAMPLERS_PORT=port))
    _assert_sampled(run(_SMALLER, balancer.url, [gateway], jaeger), rest=3)


_STATIC = """\
exporters:
  load_balancing:
    resolver:
      dns: null
      static: {{hostnames: [{}]}}
"""


def test_buffered_in_kafka(programs: Programs, start: Start, jaeger: Jaeger, kafka_broker: Broker) -> None:
    """Through Kafka the traces are as whole as without it, those too that came while nobody read."""
    if kafka_broker.rung == "embedded":
        pytest.skip("a Kafka is asked for, and this is librdkafka's mock cluster")
    brokers = {"KAFKA_BROKERS": f"[{addresses(kafka_broker.url)}]"}
    writer = start(Collector(programs.collector, ["to-kafka.yaml", _ANY_TOPIC], **brokers))
    reader = Collector(
        programs.collector,
        ["gateway.yaml", "from-kafka.yaml"],
        TRACES_ENDPOINT=jaeger.url,
        DECISION_WAIT="10s",
        HOSTNAME="one",
        **brokers,
    )
    shop = Shop(writer.url)
    for outcome in _SMALLER.outcomes():
        shop.order(outcome)
    shop.flush()
    shop.close()
    start(reader)
    wait_for("decisions", lambda: decided([reader]) >= _SMALLER.orders)
    wait_for("traces", lambda: len(traces_in(jaeger)) >= decided([reader], sampled="true"))
    _assert_sampled(judged(shop.made(), traces_in(jaeger)), rest=3)


_ANY_TOPIC = "yaml:exporters::kafka::producer::allow_auto_topic_creation: true"

_SMALLER = Plan(orders=1000, failing=40, slow=20)


def test_stopped(programs: Programs, start: Start, jaeger: Jaeger) -> None:
    """On SIGTERM what is waiting is decided, and handed over, before the Collector ends."""
    gateway = start(
        Collector(programs.collector, ["gateway.yaml"], TRACES_ENDPOINT=jaeger.url, DECISION_WAIT="1h")
    )
    shop = Shop(gateway.url)
    for outcome in _SMALLER.outcomes():
        shop.order(outcome)
    shop.flush()
    shop.close()
    assert decided([gateway]) == 0
    gateway.stop()
    _assert_sampled(judged(shop.made(), traces_in(jaeger)), rest=3)


def test_late_spans(programs: Programs, start: Start, jaeger: Jaeger) -> None:
    """A message that is handled after the decision goes the way of its trace: whole where that was kept, else dropped
    with whatever error; unless its consumer only links to it, whose own trace is kept for the error.
    """
    gateway = start(
        Collector(programs.collector, ["gateway.yaml"], TRACES_ENDPOINT=jaeger.url, DECISION_WAIT="1s")
    )
    shop = Shop(gateway.url)
    ordinary: list[Outcome] = ["ordinary"]
    slow: list[Outcome] = ["slow at the API"]
    messages = [(shop.publish(outcome), outcome) for outcome in 60 * ordinary + 10 * slow]
    shop.flush()
    wait_for("decisions", lambda: decided([gateway]) >= len(messages))
    is_kept = set(_in_jaeger(jaeger, decided([gateway], sampled="true")))

    linking = shop.linking()
    for number, (headers, _) in enumerate(messages):
        shop.handle(headers, "failing at the worker", linking if number < 10 else None)
    shop.flush()
    wait_for("the linking ones", lambda: decided([gateway]) >= len(messages) + 10)
    wait_for("late spans", lambda: judged(shop.made(), traces_in(jaeger)).partial == 0, patience=30)

    found = traces_in(jaeger)
    own = {
        trace for trace, spans in found.items() if {span.kind for span in spans} == {"consumer", "internal"}
    }
    assert len(own) == 10
    assert found.keys() - own == is_kept
    slow_ones = {trace for trace, outcome in shop.made().outcomes.items() if outcome == "slow at the API"}
    assert len(slow_ones & found.keys()) == 10


def test_late_errors_of_forgotten_traces(programs: Programs, start: Start, jaeger: Jaeger) -> None:
    """Where drops are not remembered, a late error is kept by itself: an orphan, without its producer's spans."""
    variables = {"TRACES_ENDPOINT": jaeger.url, "DECISION_WAIT": "1s", "NON_SAMPLED_CACHE_SIZE": "1"}
    gateway = start(Collector(programs.collector, ["gateway.yaml"], **variables))
    shop = Shop(gateway.url)
    messages = [shop.publish("ordinary") for _ in range(60)]
    shop.flush()
    wait_for("decisions", lambda: decided([gateway]) >= len(messages))
    forgotten = len(messages) - decided([gateway], sampled="true") - 1  # one is remembered

    for headers in messages:
        shop.handle(headers, "failing at the worker")
    shop.flush()
    wait_for("new decisions", lambda: decided([gateway]) >= len(messages) + forgotten)
    wait_for("late errors", lambda: len(traces_in(jaeger)) >= len(messages) - 1, patience=30)
    assert judged(shop.made(), traces_in(jaeger)).orphans == forgotten


def _in_jaeger(jaeger: Jaeger, number: int) -> Sequence[str]:
    wait_for("traces", lambda: len(traces_in(jaeger)) >= number)
    return list(traces_in(jaeger))


def _assert_sampled(kept: Kept, rest: float) -> None:
    """``rest`` is how far from 5 % of the ordinary ones it may be: the fewer there are, the further."""
    for must in (FAILING, SLOW, WAITED):
        whole, sent = kept.of(must)
        assert whole == sent
    assert abs(kept.rest - 5) <= rest
    assert kept.partial == 0
    assert kept.orphans == 0
    assert kept.absent == sum(kept.sent.values()) - sum(kept.whole.values())
    assert kept.consumers >= kept.whole["failing at the worker"] + kept.of(SLOW)[0] > 0

"""What is kept, for how long, and which deliveries are orphaned."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from queueprop.cli.watch import store as module
from queueprop.cli.watch.otlp import Missing, RawSpan
from queueprop.cli.watch.store import Limits, Store
from queueprop.testing import orphans
from tests.otlp import LOCAL, REMOTE, process, publish, request, span


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(Limits(traces=5, spans=20, size=100_000), grace=10, clock=clock)


def add(store: Store, *spans: Span, service: Any = "shop", **resource: Any) -> None:
    raw = request(service=service, **resource).resource_spans[0].resource.SerializeToString()
    store.add([RawSpan(it, it.SerializeToString(), raw) for it in spans])


def reasons(store: Store) -> list[str]:
    return [it.reason for it in store.orphans(100)]


REASON = "queueprop.context.reason"


class TestOrphans:
    """Why a delivery is outside of its message's trace."""

    @pytest.mark.parametrize(
        ("delivery", "reason"),
        [
            (process(1, 1), "no context"),
            (process(1, 1, **{REASON: "missing"}), "no context"),
            (process(1, 1, **{REASON: "malformed"}), "malformed context"),
            (process(1, 1, links=[(9, 9, REMOTE)], **{REASON: "untrusted"}), "untrusted"),
            (process(1, 1, links=[(9, 9, REMOTE)]), None),
            (process(1, 1, links=[(9, 9, 0)]), None),
        ],
    )
    def test_told_by_the_span_itself(self, store: Store, delivery: Span, reason: str | None) -> None:
        """queueprop's spans say why; of others a root without a link to a message had no context."""
        add(store, delivery)
        assert reasons(store) == ([reason] if reason else [])
        assert store.orphaned == (1 if reason else 0)
        assert list(store.newest(1)[0].orphans.values()) == ([reason] if reason else [])

    @pytest.mark.parametrize(
        "delivery",
        [
            process(1, 2, parent=1, flags=REMOTE),
            process(1, 2, parent=1),
            process(5, 2, links=[(1, 1, REMOTE)]),
            process(5, 2, links=[(1, 1, LOCAL)]),
        ],
    )
    @pytest.mark.parametrize("in_order", [True, False])
    def test_in_the_trace_of_its_publish(
        self, store: Store, clock: Clock, delivery: Span, in_order: bool
    ) -> None:
        """A child of the publish, or linked to it, is no orphan, whichever comes first; nor once it had its time."""
        publishing = publish(1, 1)
        add(store, publishing if in_order else delivery)
        assert reasons(store) == []
        add(store, delivery if in_order else publishing)
        clock.now += 11
        store.settle()
        assert reasons(store) == []
        assert orphans(store.spans()) == []

    def test_parent_that_is_no_publish(self, store: Store) -> None:
        """A context that was injected by hand: its span is of another kind, and it came from a carrier."""
        add(store, span("job", 1, 1), process(1, 2, parent=1, flags=REMOTE))
        assert reasons(store) == []

    def test_parent_of_another_process(self, store: Store) -> None:
        """Where the exporter does not tell what is remote, a span of another process is; one of the same is not."""
        add(store, span("job", 1, 1), span("job", 2, 1))
        add(store, process(1, 2, parent=1), service="mailer")
        assert reasons(store) == []
        add(store, process(2, 2, parent=1))
        assert reasons(store) == [module.ELSEWHERE]

    def test_child_of_what_was_current(self, store: Store) -> None:
        """In some trace, but not because of its message."""
        add(store, span("poll", 1, 1), process(1, 2, parent=1, flags=LOCAL))
        assert reasons(store) == [module.ELSEWHERE]

    def test_parent_never_seen(self, store: Store, clock: Clock) -> None:
        """A parent has the grace to come; after that its child is an orphan, and its trace is shown again."""
        add(store, process(1, 2, parent=1, flags=REMOTE))
        [trace] = store.take_settled(0)
        clock.now += 9
        store.settle()
        assert reasons(store) == []
        clock.now += 1
        version = store.version
        store.settle()
        assert reasons(store) == ["parent never seen"]
        assert store.version > version
        assert store.take_settled(0) == [trace]

    def test_parent_comes_after_all(self, store: Store, clock: Clock) -> None:
        """It is no orphan any more, in the counts and in the flow as well."""
        add(store, process(1, 2, parent=1, flags=REMOTE), process(1, 3, parent=1, flags=REMOTE))
        clock.now += 10
        store.settle()
        assert (store.orphaned, store.newest(1)[0].orphaned) == (2, 2)
        assert store.orphaned_flows == {(("rabbitmq", "orders"), "shop"): 2}
        add(store, publish(1, 1))
        assert (store.orphaned, store.newest(1)[0].orphaned, reasons(store)) == (0, 0, [])
        assert store.orphaned_flows == {(("rabbitmq", "orders"), "shop"): 0}

    @pytest.mark.parametrize("parent", [None, 8])
    def test_local_span_that_has_not_ended(self, store: Store, clock: Clock, parent: int | None) -> None:
        """A local parent or link may be the publish itself, for as long as it has not come; a remote link is one."""
        add(store, process(1, 2, parent=parent, flags=LOCAL, links=[(1, 9, LOCAL)]))
        assert reasons(store) == []
        clock.now += 10
        store.settle()
        assert reasons(store) == [module.NO_CONTEXT if parent is None else module.ELSEWHERE]

    def test_other_link_behind_one_that_is_none(self, store: Store) -> None:
        """The span that was current is linked, too; what counts is whether any link is the message's."""
        add(store, span("poll", 3, 3), process(1, 2, links=[(3, 3, LOCAL), (9, 9, REMOTE)]))
        assert reasons(store) == []

    def test_forgotten_while_it_waits(self, store: Store, clock: Clock) -> None:
        """A delivery whose trace is no longer kept is not judged."""
        add(store, process(1, 2, parent=1, flags=REMOTE))
        for number in range(2, 8):
            add(store, span("x", number, 1))
        clock.now += 10
        store.settle()
        assert store.orphaned == 0

    def test_receive_spans_are_no_deliveries(self, store: Store) -> None:
        """Older conventions have pulls as CONSUMER spans: their messages are processed by others."""
        add(store, process(1, 1, **{"messaging.operation.type": "receive"}))
        assert (store.orphaned, store.destinations) == (0, {})

    def test_list_is_bounded(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The newest are listed, all are counted."""
        monkeypatch.setattr(module, "MOST_ORPHANS", 2)
        add(store, *(process(1, number) for number in (1, 2, 3)))
        assert [it.seen.span_id[-1] for it in store.orphans(5)] == [3, 2]
        assert store.orphaned == 3


class TestCounts:
    """A count a destination, and the flow between services and queues."""

    def test_counts(self, store: Store) -> None:
        """Publishes, deliveries (all of a batch), orphans by reason."""
        add(store, publish(1, 1), publish(1, 2, "emails"))
        add(store, process(1, 3, parent=1, flags=REMOTE), process(2, 1), service="mailer")
        add(store, process(3, 1, links=[(1, 1, REMOTE)], **{"messaging.batch.message_count": 7}))
        add(store, process(3, 2, "junk", links=[(1, 1, REMOTE)], **{"messaging.batch.message_count": "x"}))
        found = {
            name: (it.published, it.deliveries, dict(it.orphans))
            for (_, name), it in store.destinations.items()
        }
        assert found == {"orders": (1, 9, {"no context": 1}), "emails": (1, 0, {}), "junk": (0, 1, {})}

    def test_flow(self, store: Store) -> None:
        """From the publisher to where it publishes, from there to the queue that got it, and to who handled it."""
        add(store, publish(1, 1, "exchange"))
        add(store, process(1, 2, "exchange:queue", parent=1, flags=REMOTE), service="mailer")
        exchange, queue = ("rabbitmq", "exchange"), ("rabbitmq", "exchange:queue")
        assert store.flows == {
            ("publish", "shop", exchange): 1,
            ("route", exchange, queue): 1,
            ("deliver", queue, "mailer"): 1,
        }

    def test_bounds(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Destinations beyond the limit share one row; flows beyond theirs are not drawn."""
        monkeypatch.setattr(module, "MOST_DESTINATIONS", 1)
        monkeypatch.setattr(module, "MOST_FLOWS", 1)
        add(store, *(process(1, number, f"queue {number}") for number in (1, 2, 3)))
        assert {name: it.deliveries for name, it in store.destinations.items()} == {
            ("rabbitmq", "queue 1"): 1,
            module.OTHER: 2,
        }
        assert store.flows == {("deliver", ("rabbitmq", "queue 1"), "shop"): 1}
        assert len(store.orphaned_flows) == 1

    def test_metrics(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cumulative series are replaced, deltas added up; processes and restarts are series of their own."""
        orders = ("rabbitmq", "orders")

        def point(process: int, value: int, is_delta: bool = False) -> Missing:
            return Missing((process,), orders, "missing", value, is_delta)

        store.add_missing([point(1, 3), point(2, 1)])
        store.add_missing([point(1, 5), point(3, 2, True)])
        store.add_missing([point(3, 4, True)])
        assert store.missing() == {(orders, "no context"): 12}
        monkeypatch.setattr(module, "MOST_SERIES", 3)
        store.add_missing([point(4, 1)])
        assert store.missing() == {(orders, "no context"): 12}  # 5 + 6 + 1, without the series that is oldest
        store.add_missing([Missing((9,), orders, "odd", 1, False)])
        assert store.missing()[orders, "odd"] == 1


class TestBounds:
    """The memory is bounded, whatever comes."""

    def test_traces(self, store: Store) -> None:
        """Those go that have been without a new span for the longest."""
        for number in range(1, 6):
            add(store, span("x", number, 1))
        add(store, span("late", 1, 2))
        add(store, span("x", 6, 1), process(7, 1))
        assert [int(trace.hex, 16) for trace in store.newest(9)] == [7, 6, 1, 5, 4]
        assert (store.evicted, store.span_count, store.received) == (2, 6, 8)

    def test_spans_and_orphans(self, store: Store) -> None:
        """A trace goes with all that is known of it."""
        add(store, *(process(1, number) for number in range(1, 12)))
        add(store, *(span("x", 2, number) for number in range(1, 12)))
        assert store.span_count == 11
        assert (store.orphans(5), store.trace(f"{1:032x}")) == ([], None)
        assert store.orphaned == 11
        assert store.unshown == 1

    def test_bytes(self, store: Store) -> None:
        """Large spans count by what they take."""
        for number in range(1, 5):
            add(store, span("x" * 40_000, number, 1))
        assert len(store.traces) == 2
        assert 80_000 < store.size < 81_000

    def test_one_trace_that_is_too_large(self, store: Store, clock: Clock) -> None:
        """It loses its oldest spans, and what is known of them."""
        add(store, process(1, 1, parent=99, flags=REMOTE))
        clock.now += 10
        store.settle()
        add(store, *(span("x", 1, number) for number in range(2, 26)))
        [trace] = store.newest(1)
        assert [it[-1] for it in trace.spans] == list(range(6, 26))
        assert (store.span_count, store.orphans(5)) == (20, [])
        assert store.size == trace.size
        add(store, publish(1, 99))  # nobody waits for it any more
        assert store.orphaned == 1

    def test_sent_twice(self, store: Store) -> None:
        """An exporter sends again what was not answered in time: it is the same span."""
        for _ in range(2):
            add(store, process(1, 1), publish(1, 2))
        assert (store.received, store.span_count, store.orphaned) == (2, 2, 1)
        assert store.destinations["rabbitmq", "orders"].published == 1

    def test_resources_are_kept_once(self, store: Store) -> None:
        """Each request brings them anew."""
        add(store, span("x", 1, 1))
        add(store, span("x", 1, 2))
        one, other = store.newest(1)[0].spans.values()
        assert one.resource is other.resource

    def test_clear(self, store: Store) -> None:
        """Nothing is left, and whoever looks is told."""
        add(store, process(1, 1))
        version = store.version
        store.clear()
        assert (store.spans(), store.orphaned, store.received) == ([], 0, 0)
        assert store.version > version


class TestQuestions:
    """What the terminal and the page ask."""

    def test_a_trace_at_a_glance(self, store: Store) -> None:
        """Named by its root, also when that comes last; from the first start to the last end; services; errors."""
        add(
            store, span("second", 1, 2, parent=1, at=5, error=True), span("first child", 1, 3, parent=1, at=3)
        )
        [trace] = store.newest(1)
        assert trace.name == "first child"
        add(store, span("root", 1, 1, at=4), service="web")
        assert (trace.name, trace.start, trace.end, trace.errors) == ("root", 3_000_000, 6_000_000, 1)
        assert trace.services == ["shop", "web"]

    def test_service_without_a_name(self, store: Store) -> None:
        """It has one for the reader."""
        add(store, span("x", 1, 1), service="")
        assert store.newest(1)[0].services == ["(unnamed)"]

    def test_settled(self, store: Store, clock: Clock) -> None:
        """A trace is shown once it is quiet, and again when it got more."""
        add(store, span("x", 1, 1))
        clock.now += 0.5
        add(store, span("x", 2, 1))
        assert store.take_settled(1) == []
        clock.now += 0.5
        assert [int(it.hex, 16) for it in store.take_settled(1)] == [1]
        add(store, span("x", 1, 2))
        assert [int(it.hex, 16) for it in store.take_settled(0)] == [2, 1]
        assert store.take_settled(0) == []

    def test_search(self, store: Store) -> None:
        """By any part of the id; the newest first, and no more than asked for."""
        for number in (0xABC, 0xDEF, 0xABD):
            add(store, span("x", number, 1))
        assert [int(it.hex, 16) for it in store.search("ab", 5)] == [0xABD, 0xABC]
        assert len(store.search("", 2)) == 2

    @pytest.mark.parametrize("trace_id", ["xyz", "", f"{9:032x}", "ü"])
    def test_no_trace(self, store: Store, trace_id: str) -> None:
        """What is no id names no trace."""
        assert store.trace(trace_id) is None

    def test_records(self, store: Store) -> None:
        """In the order of their start, and of a large trace no more than asked for."""
        add(store, *(span(str(number), 1, number, at=9 - number) for number in (1, 2, 3)))
        assert [it.name for it in store.records(store.newest(1)[0], 2)] == ["2", "1"]
        found = store.record(f"{1:032x}", f"{3:016x}")
        assert found is not None
        assert found.name == "3"
        assert store.record(f"{9:032x}", f"{3:016x}") is None

    def test_refused(self, store: Store) -> None:
        """Requests that were not taken are counted."""
        store.refuse()
        store.add([], rejected=3)
        assert (store.refused, store.rejected) == (1, 3)

"""What the page shows, and the picture of the flow."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from queueprop.cli.watch import flow, views
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.otlp import Missing, RawSpan
from queueprop.cli.watch.receiver import Receiver
from queueprop.cli.watch.store import Store
from queueprop.testing.tree import Reference, SpanRecord
from tests.otlp import LOCAL, REMOTE, process, publish, request, span


def add(store: Store, *spans: Span, service: Any = "shop", **resource: Any) -> None:
    raw = request(service=service, **resource).resource_spans[0].resource.SerializeToString()
    store.add([RawSpan(it, it.SerializeToString(), raw) for it in spans])


def waterfall(store: Store) -> dict[str, Any]:
    return views.waterfall(store, store.newest(1)[0])


class TestWaterfall:
    """A trace as rows."""

    def test_rows(self) -> None:
        """Each behind its parent, with its depth, times from the beginning, and where it ran."""
        store = Store()
        add(store, span("child", 1, 2, parent=1, at=5), span("grandchild", 1, 3, parent=2, at=6, error=True))
        add(
            store,
            span("root", 1, 1, "SERVER", at=4),
            span("later child", 1, 4, parent=1, at=7),
            service="web",
        )
        found = waterfall(store)
        rows = [(it["name"], it["depth"], it["offset"], it["service"]) for it in found["rows"]]
        assert rows == [
            ("root", 0, 0, "web"),
            ("child", 1, 1_000_000, "shop"),
            ("grandchild", 2, 2_000_000, "shop"),
            ("later child", 1, 3_000_000, "web"),
        ]
        assert (found["duration"], found["left_out"]) == (4_000_000, 0)
        assert found["start"] == "1970-01-01T00:00:00.004000+00:00"
        assert (found["rows"][2]["status"], found["rows"][2]["status_description"]) == ("ERROR", "broken")

    def test_orphan(self) -> None:
        """It says why; links are named where the other span is here."""
        store = Store()
        add(store, publish(9, 9))
        add(store, process(1, 1, parent=5, flags=LOCAL, links=[(9, 9, LOCAL), (8, 8, REMOTE)]))
        add(store, process(2, 1, links=[(1, 1, LOCAL)]), **{"process.pid": 7})
        [row] = waterfall(store)["rows"]
        assert (row["orphan"], row["pid"]) == ("no context", "7")
        assert row["links"] == [
            {"trace_id": f"{1:032x}", "span_id": f"{1:016x}", "name": "process orders", "is_parent": False}
        ]
        [row] = views.waterfall(store, store.search(f"{1:032x}", 1)[0])["rows"]
        assert (row["orphan"], row["unseen_parent"]) == (None, f"{5:016x}")
        assert [link["name"] for link in row["links"]] == ["publish orders", None]

    def test_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Names, values and their number are cut, and so is a trace of too many spans."""
        monkeypatch.setattr(views, "MOST_ROWS", 2)
        store = Store()
        many = {f"key {number}": "v" * 5000 for number in range(200)}
        add(store, span("n" * 5000, 1, 1, **many), *(span("x", 1, number) for number in range(2, 9)))
        found = waterfall(store)
        assert (len(found["rows"]), found["left_out"]) == (2, 6)
        row = next(it for it in found["rows"] if it["span_id"] == f"{1:016x}")
        assert (len(row["name"]), len(row["attributes"])) == (200, 100)
        assert {len(value) for value in row["attributes"].values()} == {2000}

    def test_odd_times(self) -> None:
        """Ends before beginnings, and years that no calendar has, are shown somehow."""
        store = Store()
        backwards, far = span("a", 1, 1, at=9), span("b", 2, 1)
        backwards.end_time_unix_nano = 1
        far.start_time_unix_nano = far.end_time_unix_nano = 2**64 - 1
        add(store, backwards)
        assert waterfall(store)["rows"][0]["duration"] == 0
        add(store, far)
        assert waterfall(store)["start"].startswith("2554-")
        assert views._moment(2**75) == "1970-01-01T00:00:00+00:00"

    def test_circle(self) -> None:
        """Spans that are their own ancestors, which only junk has, are shown once each."""
        records = [
            SpanRecord("a", "t", "1", parent=Reference("t", "2")),
            SpanRecord("b", "t", "2", parent=Reference("t", "1")),
            SpanRecord("self", "t", "3", parent=Reference("t", "3")),
        ]
        assert [(it.name, depth) for it, depth in views.in_order(records)] == [
            ("a", 0),
            ("b", 1),
            ("self", 0),
        ]

    def test_depth(self) -> None:
        """A chain of ten thousand is no deeper than the stack of Python."""
        records = [
            SpanRecord("x", "t", str(number), parent=Reference("t", str(number - 1)))
            for number in range(10_000)
        ]
        assert max(depth for _, depth in views.in_order(records)) == 9_999


class TestOverview:
    """All of the page but the trace."""

    def test_overview(self) -> None:
        """Counts, the newest traces, orphans with their destination, destinations with orphans first."""
        with Receiver() as receiver:
            store = receiver.store
            add(store, *(publish(1, number) for number in range(1, 6)))
            add(store, process(2, 1, "junk"))
            store.add_missing([Missing((1,), ("rabbitmq", "junk"), "missing", 4, False)])
            store.add_missing([Missing((2,), ("kafka", "unsampled"), "malformed", 1, False)])
            found = views.overview(receiver)
            assert (found["endpoint"], found["forward"]) == (receiver.endpoint, None)
            assert (found["received"], found["kept"], found["orphaned"]) == (6, {"spans": 6, "traces": 2}, 1)
            assert [(it["name"], it["orphans"]) for it in found["traces"]] == [
                ("process junk", 1),
                ("publish orders", 0),
            ]
            [orphan] = found["orphans"]
            assert (orphan["destination"], orphan["reason"], orphan["service"]) == (
                "junk",
                "no context",
                "shop",
            )
            assert [(it["name"], it["orphans"], it["counted"]) for it in found["destinations"]] == [
                ("junk", {"no context": 1}, {"no context": 4}),
                ("orders", {}, {}),
                ("unsampled", {}, {"malformed context": 1}),
            ]

    def test_forward(self) -> None:
        """What was handed on, and what was not."""
        with Receiver(Forward.to_collector("http://127.0.0.1:1", {})) as receiver:
            version = receiver.version
            assert views.overview(receiver)["forward"] == {"sent": 0, "dropped": 0, "failure": None}
            assert receiver.forwarder is not None
            receiver.forwarder.dropped = 3
            assert receiver.version != version


class TestFlow:
    """The picture: boxes in columns, curves between them."""

    def test_columns(self) -> None:
        """From left to right as messages go; a queue that nobody is seen to publish to stands before its service."""
        store = Store()
        add(store, publish(1, 1, "exchange"))
        add(store, process(1, 2, "exchange:queue", parent=1, flags=REMOTE), service="mailer")
        add(store, process(2, 1, "legacy"), service="mailer")
        found = flow.picture(store)
        columns = {it["name"]: it["x"] for it in found["nodes"]}
        assert columns["shop"] < columns["exchange"] < columns["exchange:queue"] < columns["mailer"]
        assert columns["legacy"] == columns["exchange:queue"]
        assert len({(it["x"], it["y"]) for it in found["nodes"]}) == 5
        assert {it["system"] for it in found["nodes"] if it["kind"] == "queue"} == {"rabbitmq"}
        assert sorted((it["count"], it["orphans"]) for it in found["edges"]) == [
            (1, 0),
            (1, 0),
            (1, 0),
            (1, 1),
        ]
        for node in found["nodes"]:
            assert node["x"] + node["width"] <= found["width"]
            assert node["y"] + node["height"] <= found["height"]

    def test_way_around_a_box(self) -> None:
        """A curve over several columns goes through places that no box has."""
        store = Store()
        add(store, publish(1, 1, "a"), publish(1, 9, "last"), service="one")
        add(store, process(1, 2, "a", parent=1, flags=REMOTE), publish(1, 3, "b"), service="two")
        add(store, process(1, 4, "b", parent=3, flags=REMOTE), service="three")
        add(store, process(1, 5, "last", parent=9, flags=REMOTE), publish(1, 6, "last"), service="three")
        found = flow.picture(store)
        places = {it["name"]: it for it in found["nodes"]}
        crossing = [it for it in found["edges"] if it["path"].count("H") > 1]
        assert crossing
        taken = {(it["x"], it["y"] + it["height"] / 2) for it in places.values()}
        for edge in crossing:
            steps = [part.split()[-1] for part in edge["path"].split(" H")[:-1]]
            assert not taken & {tuple(map(float, step.split(","))) for step in steps}

    def test_circle(self) -> None:
        """A service that publishes to its own queue: the way back is below the boxes."""
        store = Store()
        add(store, publish(1, 1), process(1, 2, parent=1, flags=REMOTE))
        found = flow.picture(store)
        assert [it["name"] for it in sorted(found["nodes"], key=lambda it: it["x"])] == ["shop", "orders"]
        assert len({it["path"] for it in found["edges"]}) == 2

    def test_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of too many the busiest are drawn; of none, nothing."""
        assert flow.picture(Store())["nodes"] == []
        monkeypatch.setattr(flow, "MOST_NODES", 3)
        store = Store()
        add(store, *(publish(1, number, "busy") for number in range(1, 5)))
        add(store, *(publish(1, number, f"queue {number}") for number in range(5, 9)))
        found = flow.picture(store)
        assert (len(found["nodes"]), found["left_out"]) == (3, 3)
        assert {"shop", "busy"} < {it["name"] for it in found["nodes"]}

"""The drawing of traces, and the records that it is drawn from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from queueprop.testing.tree import Reference, SpanRecord, render_tree

TRACE, OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
MS = 1_000_000
SHOP: dict[str, Any] = {"service.name": "shop", "process.pid": 71}
MAILER: dict[str, Any] = {"service.name": "mailer", "process.pid": 74}


def record(name: str, number: int, parent: int | None = None, **fields: Any) -> SpanRecord:
    """A span of TRACE that starts `number` ms into it and lasts one, with `number` as its id."""
    return replace(
        SpanRecord(
            name,
            TRACE,
            f"{number:016x}",
            parent=None if parent is None else Reference(TRACE, f"{parent:016x}"),
            start_ns=number * MS,
            end_ns=(number + 1) * MS,
        ),
        **fields,
    )


def ended_span() -> ReadableSpan:
    """A span of the SDK that has everything a record can hold."""
    tracer = TracerProvider(resource=Resource(SHOP), shutdown_on_exit=False).get_tracer("test")
    remote = SpanContext(0xA1, 0xB2, is_remote=True, trace_flags=TraceFlags(1))
    with tracer.start_as_current_span("parent") as parent:
        span = tracer.start_span(
            "process orders",
            set_span_in_context(parent),
            SpanKind.CONSUMER,
            {"messaging.destination.name": "orders"},
            [Link(remote)],
            start_time=1_700_000_000_123_456_000,
        )
        span.set_status(Status(StatusCode.ERROR, "boom"))
        span.end(1_700_000_001_000_001_000)
    assert isinstance(span, Span)
    return span


def test_a_trace_is_drawn_as_a_tree_over_time() -> None:
    """Children hang below their parent in the order of their start, with process, times, status and links."""
    publish = record("publish orders", 0, kind="PRODUCER", resource=SHOP)
    process = record(
        "process orders",
        2,
        0,
        kind="CONSUMER",
        resource=MAILER,
        links=(Reference(*publish.key),),
        status="ERROR",
        status_description="no such address",
        attributes={"error.type": "builtins.ValueError"},
        end_ns=2 * MS + 1_500 * MS,
    )
    get = record("GET", 3, 2, kind="CLIENT", resource=MAILER, status="OK")
    save = record("save", 4, 2, resource=MAILER)
    assert render_tree([save, get, process, publish]) == (
        f"trace {TRACE}: 4 spans, 1.50 s\n"
        "PRODUCER publish orders     shop (pid 71)    +0.00 ms  1.00 ms  unset\n"
        "└─ CONSUMER process orders  mailer (pid 74)  +2.00 ms   1.50 s  "
        "ERROR builtins.ValueError: no such address\n"
        "   │ ↳ link to publish orders (its parent)\n"
        "   ├─ CLIENT GET            mailer (pid 74)  +3.00 ms  1.00 ms  ok\n"
        "   └─ INTERNAL save         mailer (pid 74)  +4.00 ms  1.00 ms  unset"
    )


def test_traces_come_in_the_order_of_their_start() -> None:
    """Each trace is drawn by itself; the earliest comes first."""
    late = record("late", 5)
    early = replace(record("early", 1), trace_id=OTHER_TRACE)
    assert [line for line in render_tree([late, early]).splitlines() if line.startswith("trace")] == [
        f"trace {OTHER_TRACE}: 1 span, 1.00 ms",
        f"trace {TRACE}: 1 span, 1.00 ms",
    ]


def test_branches_go_on_beside_deeper_ones() -> None:
    """The line of an elder child is drawn down to its next sibling."""
    text = render_tree([record("a", 0), record("b", 1, 0), record("c", 2, 1), record("d", 3, 0)])
    assert [line.split("  +")[0].rstrip() for line in text.splitlines()[1:]] == [
        "INTERNAL a",
        "├─ INTERNAL b",
        "│  └─ INTERNAL c",
        "└─ INTERNAL d",
    ]


def test_no_spans() -> None:
    """Nothing to draw is said, not left empty."""
    assert render_tree([]) == "(no spans)"


@pytest.mark.parametrize(
    ("is_remote", "word"), [(True, "remote parent"), (False, "parent"), (None, "parent")]
)
def test_a_parent_that_was_not_captured_is_named(is_remote: bool | None, word: str) -> None:
    """The children of a missing parent hang together below a line that names it, and are no roots."""
    missing = Reference(TRACE, "00f067aa0ba902b7", is_remote)
    text = render_tree([record("a", 1, parent=None), record("b", 2), record("c", 3)])
    assert "not captured" not in text
    text = render_tree([replace(record("a", 1), parent=missing), replace(record("b", 2), parent=missing)])
    assert [line.split("  +")[0].rstrip() for line in text.splitlines()[1:]] == [
        f"({word} 00f067aa0ba902b7, not captured)",
        "├─ INTERNAL a",
        "└─ INTERNAL b",
    ]


def test_links_say_where_they_lead() -> None:
    """A link names its span: with the trace when it is another, by its id when it was not captured."""
    publish = replace(record("publish orders", 1), trace_id=OTHER_TRACE)
    beside = record("poll", 2)
    links = (
        Reference(*publish.key),
        Reference(*beside.key),
        Reference(OTHER_TRACE, "00f067aa0ba902b7"),
        Reference(TRACE, "00f067aa0ba902b7"),
    )
    text = render_tree([publish, beside, replace(record("batch", 3), links=links)])
    assert [line.strip() for line in text.splitlines() if "↳" in line] == [
        "↳ link to publish orders in trace 0af76519",
        "↳ link to poll",
        "↳ link to span 00f067aa0ba902b7 in trace 0af76519, not captured",
        "↳ link to span 00f067aa0ba902b7, not captured",
    ]


@pytest.mark.parametrize(
    ("description", "attributes", "shown"),
    [
        ("", {}, "ERROR"),
        ("boom", {}, "ERROR boom"),
        ("", {"error.type": "app.Late"}, "ERROR app.Late"),
        ("boom", {"error.type": "app.Late"}, "ERROR app.Late: boom"),
        ("Late: boom", {"error.type": "app.Late"}, "ERROR Late: boom"),
        ("one\ntwo", {}, "ERROR one two"),
        ("x" * 100, {}, "ERROR " + "x" * 79 + "…"),
    ],
)
def test_an_error_is_told_on_one_line(description: str, attributes: dict[str, str], shown: str) -> None:
    """The error's type is put before its message, unless the message names it; nothing breaks the line."""
    span = record("a", 0, status="ERROR", status_description=description, attributes=attributes)
    assert render_tree([span]).endswith(f"  {shown}")


@pytest.mark.parametrize(
    ("resource", "shown"),
    [
        ({"service.name": "shop", "process.pid": 71}, "shop (pid 71)  "),
        ({"service.name": "shop"}, "shop  "),
        ({"service.name": "unknown_service", "process.pid": 71}, "pid 71  "),
        ({"service.name": "unknown_service:python"}, ""),
        ({}, ""),
    ],
)
def test_the_process_is_named_as_far_as_it_is_known(resource: dict[str, Any], shown: str) -> None:
    """Service and pid; the name that the SDK makes up is none; a column that would be empty is left out."""
    assert render_tree([record("a", 0, resource=resource)]).splitlines()[1] == (
        f"INTERNAL a  {shown}+0.00 ms  1.00 ms  unset"
    )


def test_a_span_that_has_not_ended_is_drawn_as_such() -> None:
    """No duration is made up for it, and its bar runs to the end of the trace."""
    text = render_tree([record("a", 0, end_ns=None), record("b", 3, 0)], timeline=8)
    assert text.splitlines()[1:] == [
        "INTERNAL a     +0.00 ms  not ended  |████████|  unset",
        "└─ INTERNAL b  +3.00 ms    1.00 ms  |      ██|  unset",
    ]


def test_the_timeline_shows_when_each_span_ran() -> None:
    """Bars begin where the span began; the shortest is still seen, also at the very end."""
    spans = [
        record("a", 0, end_ns=10 * MS),
        record("b", 5, 0, end_ns=8 * MS),
        record("c", 10, 0, end_ns=10 * MS),
    ]
    bars = [line.split("|")[1] for line in render_tree(spans, timeline=10).splitlines()[1:]]
    assert bars == ["██████████", "     ███  ", "         █"]
    assert "|█   |" in render_tree([record("instant", 0, end_ns=0)], timeline=4)


def test_junk_is_drawn_once() -> None:
    """A span that came twice, one that is its own parent, circles: every record once, and no endless loop."""
    twice = record("twice", 0)
    text = render_tree(
        [twice, twice, record("child", 1, 0), record("own", 2, 2), record("x", 3, 4), record("y", 4, 3)]
    )
    assert Counter(
        line.split("INTERNAL ")[1].split()[0] for line in text.splitlines() if "INTERNAL" in line
    ) == {
        "twice": 2,
        "child": 1,
        "own": 1,
        "x": 1,
        "y": 1,
    }
    assert "(spans that are their own ancestors)" in text


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.none() | st.integers(0, 8), st.text(max_size=5), st.integers(0, 20)),
        max_size=12,
    ),
    st.integers(0, 20),
)
def test_every_span_is_drawn_exactly_once(
    spans: list[tuple[int, int | None, str, int]], timeline: int
) -> None:
    """Whatever the ids, parents, names and times are."""
    records = [record("#" + name, number, parent, end_ns=end) for number, parent, name, end in spans]
    assert sum("INTERNAL #" in line for line in render_tree(records, timeline=timeline).split("\n")) == len(
        spans
    )


def test_a_record_holds_what_the_sdks_span_says() -> None:
    """`from_readable` keeps ids, kind, parent, links, times, status, attributes and resource."""
    span = ended_span()
    assert span.context is not None
    assert span.parent is not None
    seen = SpanRecord.of(span)
    assert seen == SpanRecord(
        name="process orders",
        trace_id=f"{span.context.trace_id:032x}",
        span_id=f"{span.context.span_id:016x}",
        kind="CONSUMER",
        parent=Reference(f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}", is_remote=False),
        links=(Reference(f"{0xA1:032x}", f"{0xB2:016x}", is_remote=True),),
        start_ns=1_700_000_000_123_456_000,
        end_ns=1_700_000_001_000_001_000,
        status="ERROR",
        status_description="boom",
        attributes={"messaging.destination.name": "orders"},
        resource=SHOP,
    )
    assert SpanRecord.of(seen) is seen


def test_json_gives_the_same_record_but_for_what_is_remote() -> None:
    """A span that went through `to_json()` in another process reads like the span itself."""
    span = ended_span()
    direct, parsed = SpanRecord.of(span), SpanRecord.of(json.loads(span.to_json()))
    assert direct.parent is not None
    assert parsed == replace(
        direct,
        parent=replace(direct.parent, is_remote=None),
        links=tuple(replace(link, is_remote=None) for link in direct.links),
    )


def test_the_least_that_json_must_have() -> None:
    """Name, ids and start are enough; the rest has its defaults."""
    parsed = SpanRecord.from_json(
        {
            "name": "a",
            "context": {"trace_id": "0x" + TRACE, "span_id": "0x00F067AA0BA902B7"},
            "start_time": "1970-01-01T00:00:01.000001Z",
        }
    )
    assert parsed == SpanRecord("a", TRACE, "00f067aa0ba902b7", start_ns=1_000_001_000)


@pytest.mark.parametrize(
    "span",
    [
        {},
        {"name": "a", "context": None},
        {"name": "a", "context": {"trace_id": 1, "span_id": 2}},
        {"name": "a", "context": {"trace_id": "1", "span_id": "2"}, "start_time": "yesterday"},
    ],
)
def test_json_that_is_no_span_is_refused_clearly(span: dict[str, Any]) -> None:
    """One ValueError that says what was wanted."""
    with pytest.raises(ValueError, match=r"not a span as ReadableSpan\.to_json\(\) writes it"):
        render_tree([span])


def test_a_span_without_a_context_is_refused_clearly() -> None:
    """The SDK's type allows it; nothing could be drawn of it."""
    with pytest.raises(ValueError, match="the span 'a' has no context"):
        render_tree([ReadableSpan("a")])


def test_notes() -> None:
    """A line of one's own stands below its span, above its links, and is one line whatever it holds."""
    spans = [
        record("root", 1, links=(Reference(OTHER_TRACE, f"{9:016x}"),)),
        record("child", 2, parent=1),
    ]
    notes = {spans[0].key: "first\nnote", spans[1].key: "second note", (TRACE, "other"): "nobody's"}
    lines = [line.split("  ")[0].rstrip() for line in render_tree(spans, notes=notes).splitlines()[1:]]
    assert lines == [
        "INTERNAL root",
        "│ first note",
        "│ ↳ link to span 0000000000000009 in trace 0af76519, not captured",
        "└─ INTERNAL child",
        "",
    ]
    assert "     second note" in render_tree(spans, notes=notes)


def test_junk_in_the_resource() -> None:
    """A service or a process id that is anything else is one line of text all the same."""
    one = record("x", 1, resource={"service.name": 7, "process.pid": "a\x1b[2Jb"}, status="ERROR")
    text = render_tree([replace(one, attributes={"error.type": "bad\x1btype"})])
    assert "7 (pid a [2Jb)" in text
    assert "\x1b" not in text

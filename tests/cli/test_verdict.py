"""The verdict of the demo, told from spans."""

from __future__ import annotations

from queueprop.cli.demo.verdict import Verdict
from queueprop.testing.tree import Reference, SpanRecord

HTTP = {"service.name": "order-service"}
WORKER = {"service.name": "notification-service"}


def _request(trace: str) -> SpanRecord:
    return SpanRecord("POST /orders", trace, "a1", kind="SERVER", resource=HTTP)


def _publish(trace: str) -> SpanRecord:
    return SpanRecord(
        "publish emails", trace, "a2", kind="PRODUCER", parent=Reference(trace, "a1"), resource=HTTP
    )


def _process(trace: str, span: str, parent: Reference | None, *links: Reference) -> SpanRecord:
    return SpanRecord(
        "process emails", trace, span, kind="CONSUMER", parent=parent, links=links, resource=WORKER
    )


def _mail(trace: str, span: str, parent: str | None) -> SpanRecord:
    return SpanRecord(
        "send mail", trace, span, parent=Reference(trace, parent, False) if parent else None, resource=WORKER
    )


def test_whole_traces() -> None:
    """Every delivery is in the trace of its order: no orphan, and a span inside of a delivery is none."""
    spans = [
        _request("t1"),
        _publish("t1"),
        _process("t1", "b1", Reference("t1", "a2")),
        _mail("t1", "b2", "b1"),
    ]
    verdict = Verdict.of(spans, messages=1, expected=1)
    assert verdict == Verdict(messages=1, expected=1, deliveries=1, orphans=0, traces=1)
    assert verdict.is_whole
    assert str(verdict) == "1 message, 1 delivery, 0 orphans"


def test_delivery_inside_of_another() -> None:
    """What the handling of a message publishes is delivered, too: the next task of a chain."""
    spans = [
        _request("t1"),
        _publish("t1"),
        _process("t1", "b1", Reference("t1", "a2")),
        SpanRecord(
            "publish copies",
            "t1",
            "b2",
            kind="PRODUCER",
            parent=Reference("t1", "b1", False),
            resource=WORKER,
        ),
        _process("t1", "c1", Reference("t1", "b2")),
    ]
    verdict = Verdict.of(spans, messages=1, expected=2)
    assert (verdict.deliveries, verdict.orphans) == (2, 0)


def test_link_joins() -> None:
    """With propagation="link" a delivery has a trace of its own, and its link says whose it is."""
    spans = [_request("t1"), _publish("t1"), _process("t2", "b1", None, Reference("t1", "a2"))]
    assert Verdict.of(spans, messages=1, expected=1).orphans == 0


def test_without_consumer_spans() -> None:
    """A delivery without queueprop shows in the first span that the worker makes: a root, an orphan."""
    spans = [_request("t1"), _mail("t2", "b1", None), _request("t3"), _mail("t4", "b1", None)]
    verdict = Verdict.of(spans, messages=2, expected=2)
    assert (verdict.deliveries, verdict.orphans, verdict.traces) == (2, 2, 4)
    assert not verdict.is_whole
    assert str(verdict) == "2 messages, 2 deliveries, 2 orphans"


def test_consumer_span_without_a_creation_context() -> None:
    """A CONSUMER span that is a root is an orphan, counted once."""
    spans = [_request("t1"), _publish("t1"), _process("t2", "b1", None), _mail("t2", "b2", "b1")]
    assert Verdict.of(spans, messages=1, expected=1).orphans == 1


def test_lost_delivery_is_not_whole() -> None:
    """A delivery that left no span is told, and is no success although nothing is orphaned."""
    verdict = Verdict.of([_request("t1"), _publish("t1")], messages=1, expected=2)
    assert not verdict.is_whole
    assert str(verdict) == "1 message, 0 deliveries, 0 orphans (2 deliveries expected)"

"""The link to the span that is the parent as well says so: Jaeger would otherwise forget that it is the parent."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from queueprop import Message
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHER_TRACE,
    TRACE,
    TRACEPARENT,
    Ids,
    Telemetry,
    ids,
    parent,
    traceparent,
)

Told = list[tuple[Ids | None, dict[str, object]]]

CHILD_OF = {"opentracing.ref_type": "child_of"}


def told(span: ReadableSpan) -> Told:
    """The spans that it links to, and what it says of each."""
    return [(ids(link.context), dict(link.attributes or {})) for link in span.links]


def message(trace_id: int = TRACE, span_id: int = CREATION[1]) -> Message:
    return Message({"traceparent": traceparent(trace_id, span_id)})


def creation(span_id: int = CREATION[1]) -> Context:
    """The context of the publish itself, as it is current where a queue hands its messages over in the same thread."""
    span = NonRecordingSpan(SpanContext(TRACE, span_id, is_remote=False))
    return set_span_in_context(span, Context())


def test_a_delivery(telemetry: Telemetry) -> None:
    """The creation context is the parent: its link has the type; the one to an ambient span has none."""
    with telemetry.current() as ambient, telemetry.engine().process(ORDERS, message()):
        pass
    span = telemetry.only("process orders")
    assert parent(span) == CREATION
    assert told(span) == [(CREATION, CHILD_OF), (ids(ambient), {})]


def test_only_linked(telemetry: Telemetry) -> None:
    """Under propagation="link", and of an untrusted source, the creation context is not the parent."""
    for engine in (telemetry.engine(propagation="link"), telemetry.engine(trust="none")):
        with engine.process(ORDERS, message()):
            pass
    assert [told(span) for span in telemetry.spans] == [[(CREATION, {})]] * 2


def test_a_function_that_trusts(telemetry: Telemetry) -> None:
    """The parent is the creation context where it says so."""
    for trusted in (True, False):
        with telemetry.engine(trust=lambda destination, message: trusted).process(ORDERS, message()):  # noqa: B023
            pass
    assert [told(span) for span in telemetry.spans] == [[(CREATION, CHILD_OF)], [(CREATION, {})]]


def test_without_a_context(telemetry: Telemetry) -> None:
    """An ambient span that is linked from a root is no parent."""
    with telemetry.current() as ambient, telemetry.engine().process(ORDERS, Message({})):
        pass
    assert told(telemetry.only("process orders")) == [(ids(ambient), {})]


def test_the_ambient_span_is_the_creation(telemetry: Telemetry) -> None:
    """Where it is the parent under propagation="link", the link to it has the type."""
    token = attach(creation())
    with telemetry.engine(propagation="link").process(ORDERS, message()):
        pass
    detach(token)
    span = telemetry.only()
    assert (parent(span), told(span)) == (CREATION, [(CREATION, CHILD_OF)])


class Other(TextMapPropagator):
    """A propagator that is not ours: the context is read by it."""

    extract = TraceContextTextMapPropagator().extract
    inject = TraceContextTextMapPropagator().inject
    fields = TraceContextTextMapPropagator().fields


def test_another_propagator(telemetry: Telemetry) -> None:
    """Whoever has read it, it is the parent."""
    before = get_global_textmap()
    set_global_textmap(Other())
    with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})):
        pass
    set_global_textmap(before)
    assert told(telemetry.only()) == [(CREATION, CHILD_OF)]


def test_another_propagator_looks_itself_for_what_is_in_the_headers(telemetry: Telemetry) -> None:
    """Of a send as well: what a publish forwards is its origin, and is written anew."""
    before = get_global_textmap()
    set_global_textmap(Other())
    headers = {"traceparent": TRACEPARENT, "tenant": "a"}
    with telemetry.engine().send(ORDERS, Message(headers)):
        pass
    set_global_textmap(before)
    span = telemetry.only()
    assert headers == {
        "traceparent": f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01",
        "tenant": "a",
    }


def test_a_batch_of_one_trace(telemetry: Telemetry) -> None:
    """The first message's context is the parent of all: that link has the type, beside what its message has."""
    messages = [message(TRACE, 1), message(TRACE, 2), message(TRACE, 1)]
    messages[0].id = "m1"
    with telemetry.engine().process(ORDERS, messages):
        pass
    span = telemetry.only()
    assert parent(span) == (TRACE, 1)
    assert told(span) == [
        ((TRACE, 1), {"messaging.message.id": "m1", **CHILD_OF}),
        ((TRACE, 2), {}),
        ((TRACE, 1), CHILD_OF),
    ]


@pytest.mark.parametrize("given", [{"propagation": "link"}, {"trust": "none"}, {}])
def test_a_batch_of_its_own_trace(telemetry: Telemetry, given: dict[str, str]) -> None:
    """Linked only, untrusted, or of several traces: no link has the type."""
    messages = [message(TRACE, 1), message(TRACE if given else OTHER_TRACE, 2)]
    with telemetry.engine(**given).process(ORDERS, messages):
        pass
    assert [attributes for _, attributes in told(telemetry.only())] == [{}, {}]


def test_other_operations(telemetry: Telemetry) -> None:
    """A pull, a settlement of several and the publish of a batch link to what is not their parent."""
    engine = telemetry.engine()
    with telemetry.current():
        receive = engine.receive(ORDERS)
        receive.open()
        receive.add(message())
        receive.close()
        with engine.settle(ORDERS, [message(TRACE, 1), message(TRACE, 2)]):
            pass
        with engine.send(ORDERS, [Message({}), Message({})]):
            pass
    for name in ("poll orders", "ack orders", "publish orders"):
        span = telemetry.only(name)
        assert span.links
        assert all(attributes == {} for _, attributes in told(span))


def test_a_pull_within_the_creation(telemetry: Telemetry) -> None:
    """Where what was pulled was made by the span that is current (an untraced producer's), that one is the parent."""
    token = attach(creation())
    receive = telemetry.engine().receive(ORDERS)
    receive.open()
    receive.add(message())
    receive.close()
    detach(token)
    span = telemetry.only()
    assert (parent(span), told(span)) == (CREATION, [(CREATION, CHILD_OF)])

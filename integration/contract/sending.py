"""Behaviours of the producer's side, and of what lies on the wire: 1, 5, 6, 13, 14, 20, 21, 28."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import baggage, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from integration.contract import values
from integration.contract.actions import do, plain
from integration.contract.run import Rig, Run, only
from integration.contract.scenario import scenario
from integration.contract.telemetry import ambient_span
from queueprop import guard


class Sending:
    @pytest.fixture
    def _nothing_was_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither by this process nor by those that it has forked."""
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setattr(guard, "_sayers", guard._shared_page())

    @scenario(1)
    def test_publish_makes_one_producer_span(self, rig: Rig) -> None:
        """Every call that publishes makes one span of ours: PRODUCER, named, with exactly its attributes,
        status unset.
        """
        for way in rig.driver_class.ways:
            with rig.run() as run:
                with ambient_span() as ambient:
                    run.driver.publish("hello", way=way)
                span = only(run.ours)
                assert span.kind == "PRODUCER", way
                assert span.name == run.driver.send_name, way
                assert (span.trace_id, span.parent_id) == values.ids(ambient), way
                assert (span.status, span.links, span.events) == ("UNSET", [], []), way
                values.assert_attributes(span, run.driver.send_attributes())

    @scenario(1)
    def test_publish_without_a_current_span_begins_a_trace(self, rig: Rig) -> None:
        """Where no span is current, the PRODUCER span is the root of a new trace."""
        with rig.run() as run:
            run.driver.publish("one")
            run.driver.publish("two")
            first, second = run.producers
            assert first.parent_id is None
            assert second.parent_id is None
            assert first.trace_id != second.trace_id

    @scenario(5)
    @pytest.mark.parametrize("around", ["in a trace that is not sampled", "without a current span"])
    def test_what_is_sampled_out_goes_on_unrecorded(self, rig: Rig, around: str) -> None:
        """Nothing is exported; the handler sees the producer's trace id, the sampled flag clear, and the
        baggage.
        """
        with rig.run(sampler=ParentBased(ALWAYS_OFF)) as run:
            nothing = contextlib.nullcontext(trace.INVALID_SPAN_CONTEXT)
            around_it = nothing if around == "without a current span" else ambient_span()
            with values.current(baggage.set_baggage("tenant", "zürich")), around_it as ambient:
                run.driver.publish("hello")
            carried = values.on_the_wire(run.driver) if "wire" not in rig.lacks else None
            run.driver.consume(do("observe"))
            assert run.spans == []
            seen = run.handled
            assert int(seen.trace_id, 16) != 0
            assert seen.flags & 1 == 0
            assert not seen.recording
            assert seen.baggage == {"tenant": "zürich"}
            if ambient.is_valid:
                assert seen.trace_id == f"{ambient.trace_id:032x}"
            if carried is not None:
                assert seen.trace_id == carried.trace_id

    @scenario(6, "forward", "baggage at rest", "wire")
    @pytest.mark.usefixtures("_nothing_was_said")
    def test_without_an_sdk_the_context_goes_on(self, rig: Rig) -> None:
        """A worker without an SDK runs on, says so once, and what its handler publishes carries the incoming
        context, unchanged.
        """
        with rig.run(sdk=False) as run:
            run.driver.plant(
                "first", {"traceparent": values.VALID, "tracestate": "a=1", "baggage": "tenant=42"}
            )
            run.driver.plant("second", {})
            run.driver.consume(do("answer"), 2)
            assert sorted(seen.body for seen in run.seen) == ["first", "second"]
            assert run.spans == []
            _assert_told_of_no_sdk(run)
            answers = {message.body: message for message in run.driver.wire(run.driver.other_queue)}
            first, second = answers["answer to first"], answers["answer to second"]
            assert [values.text(value) for value in first.values("traceparent")] == [values.VALID]
            assert [values.text(value) for value in first.values("tracestate")] == ["a=1"]
            assert [values.text(value) for value in first.values("baggage")] == ["tenant=42"]
            assert second.fields == []

    @scenario(6)
    @pytest.mark.usefixtures("_nothing_was_said")
    def test_without_an_sdk_nothing_is_made_up(self, rig: Rig) -> None:
        """Without an SDK and without a context a message is sent and handled, and its handler sees no trace. That
        there is no SDK is said once, by whichever process is the first.
        """
        with rig.run(sdk=False) as run:
            run.driver.publish("hello")
            run.driver.consume(do("observe"))
            assert int(run.handled.trace_id, 16) == 0
            _assert_told_of_no_sdk(run)

    @scenario(13, "forward", "wire")
    def test_a_forwarded_message_carries_the_new_context_alone(self, rig: Rig) -> None:
        """A handler sends on what it got, headers included: one traceparent, of the second publish; user
        headers stay.
        """
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("parcel", {"tenant": "a"})
            run.driver.consume(do("forward"))
            forwarded = only(run.driver.wire(run.driver.other_queue))
            first, second = run.producers
            assert (second.trace_id, second.parent_id) == run.consumer.context
            assert first.trace_id == second.trace_id
            carried = values.carried(forwarded)
            assert (carried.trace_id, carried.span_id) == second.context
            assert forwarded.headers["tenant"] in ("a", b"a")

    @scenario(14, "containers", "wire")
    def test_headers_of_the_caller_are_not_altered(self, rig: Rig) -> None:
        """Whatever the library takes as headers may be shared and used again: it stays as it was, and so do
        its values.
        """
        for name, make in rig.driver_class.containers().items():
            with rig.run(traced=False) as bare:
                bare.driver.publish_with("hello", make())
                expected = only(bare.driver.wire()).headers
            with rig.run() as run:
                container = make()
                before = values.contents(container)
                with ambient_span():
                    run.driver.publish_with("one", container)
                with ambient_span():
                    run.driver.publish_with("two", container)
                assert values.contents(container) == before, name
                one, two = run.driver.wire()
                assert [values.carried(one).context, values.carried(two).context] == [
                    span.context for span in run.producers
                ], name
                assert plain(one.headers) == plain(two.headers) == plain(expected), name

    @scenario(14, "wire", "baggage at rest")
    def test_a_handler_gets_the_headers_that_were_sent(self, rig: Rig) -> None:
        """Reading a context out of a message changes nothing in what the handler is given."""
        given = []
        for traced in (False, True):
            with rig.run(traced=traced) as run:
                run.driver.plant("hello", {"traceparent": values.VALID, "baggage": "a=1"}, {"tenant": "a"})
                run.driver.consume(do("observe"))
                given.append(run.handled.headers)
        assert given[0] == given[1]

    @scenario(20)
    def test_suppressed_messages_are_sent_and_handled_untraced(self, rig: Rig) -> None:
        """Inside suppress_instrumentation() there is no span and no header, and the message arrives all the
        same.
        """
        with rig.run() as run:
            with ambient_span() as ambient, suppress_instrumentation():
                run.driver.publish("hello")
                if "wire" not in rig.lacks:
                    assert only(run.driver.wire()).fields == []
                if "ambient" not in rig.lacks:
                    run.driver.consume(do("observe"))
                    assert run.handled.span_id in (f"{ambient.span_id:016x}", f"{0:016x}")
                    assert run.ours == []
            if "ambient" in rig.lacks:
                assert run.ours == []
                run.driver.consume(do("observe"))
            assert run.handled.body == "hello"
            assert run.producers == []

    @scenario(21, "wire")
    @pytest.mark.parametrize("name", ["b3multi", "jaeger", "none"])
    def test_another_propagator_writes_its_own_headers_alone(self, rig: Rig, name: str) -> None:
        """With OTEL_PROPAGATORS its fields are on the wire, and only they; the consumer reads them."""
        with rig.run(propagators=name) as run:
            with ambient_span():
                run.driver.publish("hello")
            names = {key.lower() for key, _ in only(run.driver.wire()).fields}
            run.driver.consume(do("observe"))
            assert names == values.FIELDS[name]
            if name == "none":
                assert run.consumer.parent_id is None
            else:
                assert (run.consumer.trace_id, run.consumer.parent_id) == run.producer.context

    @scenario(28, "wire")
    def test_on_the_wire_there_is_one_of_each(self, rig: Rig) -> None:
        """A plain client reads one traceparent, that of the PRODUCER span, one tracestate and one baggage,
        typed as agreed.
        """
        for way in rig.driver_class.ways:
            with rig.run() as run:
                with _tracestate_and_baggage():
                    run.driver.publish("hello", {"tenant": "a"}, way=way)
                message = only(run.driver.wire())
                assert message.body == "hello", way
                assert sorted(name for name, _ in message.fields) == [
                    "baggage",
                    "traceparent",
                    "tracestate",
                ], way
                assert {type(value) for _, value in message.fields} == {run.driver.wire_type}, way
                carried = values.carried(message)
                assert carried.context == run.producer.context, way
                assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", carried.text), way
                assert [values.text(value) for value in message.values("tracestate")] == ["vendor=one"], way
                assert [values.text(value) for value in message.values("baggage")] == ["tenant=42"], way

    @scenario(28, "wire")
    def test_on_the_wire_there_is_nothing_needless(self, rig: Rig) -> None:
        """Without tracestate and baggage neither header is written."""
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("hello")
            assert [name for name, _ in only(run.driver.wire()).fields] == ["traceparent"]


@contextmanager
def _tracestate_and_baggage() -> Iterator[None]:
    """A remote parent with a tracestate, and baggage, are current inside."""
    state = trace.TraceState([("vendor", "one")])
    remote = trace.SpanContext(0xABC, 0xDEF, True, trace.TraceFlags(1), state)
    current = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    with values.current(baggage.set_baggage("tenant", "42", current)):
        yield


def _assert_told_of_no_sdk(run: Run) -> None:
    assert "queueprop, tracing messages: no OpenTelemetry SDK is set up in this process" in only(
        run.complaints()
    )

"""Behaviours of the consumer's side: 2, 3, 4, 7, 8, 12, 26."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from opentelemetry import baggage, context, trace

from integration.contract import values
from integration.contract.actions import do
from integration.contract.run import Rig, Run, only
from integration.contract.scenario import scenario
from integration.contract.telemetry import ambient_span
from queueprop import Settings

_BAGGAGE = {
    "city": "Zürich 東京 🚀",
    "spaces": "two  words",
    "percent": "100%25 %",
    "plus": "1+1=2",
    "comma": "a,b;c",
    "quote": 'say "yes" \\ no',
    "line": "one\ntwo",
    **{f"key-{number}": f"value {number}" for number in range(57)},
}


class Receiving:
    @scenario(2)
    def test_delivery_makes_one_consumer_span(self, rig: Rig) -> None:
        """Whatever call published it: one CONSUMER span, a child of the PRODUCER span, with one link, to it."""
        for way in rig.thinned(rig.driver_class.ways, 2):
            with rig.run() as run:
                with ambient_span():
                    run.driver.publish("hello", way=way)
                run.driver.consume(do("observe"))
                producer, consumer = run.producer, run.consumer
                assert (consumer.trace_id, consumer.parent_id) == producer.context, way
                assert [link.context for link in consumer.links] == [producer.context], way
                assert consumer.name == run.driver.process_name, way
                assert (consumer.status, consumer.events) == ("UNSET", []), way
                values.assert_attributes(consumer, run.driver.process_attributes())
                _assert_received(run, rig)
                assert run.handled.body == "hello", way

    @scenario(2)
    def test_each_delivery_has_a_span_of_its_own(self, rig: Rig) -> None:
        """Several messages of several traces: as many CONSUMER spans, each a child of its own PRODUCER span."""
        bodies = rig.thinned((f"message {number}" for number in range(5)), 2)
        with rig.run() as run:
            for body in bodies:
                run.driver.publish(body)
            run.driver.consume(do("observe"), len(bodies))
            assert sorted(seen.body for seen in run.seen) == bodies
            assert len(run.producers) == len(run.consumers) == len(bodies)
            assert {(span.trace_id, span.parent_id) for span in run.consumers} == {
                it.context for it in run.producers
            }
            assert len({span.trace_id for span in run.consumers}) == len(bodies)

    @scenario(2, "settle")
    def test_a_settlement_is_a_child_of_the_consumer_span(self, rig: Rig) -> None:
        """Settings(settle_spans=True): a CLIENT span for the ack, in the message's trace; by default there is none."""
        for wanted in (False, True):
            with rig.run(Settings(settle_spans=wanted)) as run:
                run.driver.publish("hello")
                run.driver.consume(do("observe"))
                settled = [
                    span for span in run.ours if span.attributes["messaging.operation.type"] == "settle"
                ]
                if not wanted:
                    assert settled == []
                    continue
                span = only(settled)
                assert (span.kind, span.name) == ("CLIENT", run.driver.settle_name)
                assert (span.trace_id, span.parent_id) == run.consumer.context

    @scenario(3)
    def test_handler_runs_inside_the_consumer_span(self, rig: Rig) -> None:
        """The current span is the CONSUMER span; the handler's spans are its children; log records tell its
        trace.
        """
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("hello")
            run.driver.consume(do("observe"))
            seen, consumer = run.handled, run.consumer
            assert (seen.trace_id, seen.span_id) == consumer.context
            assert seen.recording
            work = only([span for span in run.spans if span.name == "work"])
            assert (work.trace_id, work.parent_id) == consumer.context
            assert consumer.start <= work.start <= work.end <= consumer.end
            assert seen.logged_trace_id == consumer.trace_id

    @scenario(4)
    def test_baggage_of_the_producer_is_readable(self, rig: Rig) -> None:
        """64 members with letters beyond ASCII, spaces, %, +, commas and quotes arrive as they were."""
        assert len(_BAGGAGE) == 64
        with rig.run() as run:
            with values.current(_with_baggage(_BAGGAGE)), ambient_span():
                run.driver.publish("hello")
            run.driver.consume(do("observe"))
            assert run.handled.baggage == _BAGGAGE

    @scenario(4, "baggage at rest", "forward", "wire")
    def test_baggage_of_others_goes_on_with_its_properties(self, rig: Rig) -> None:
        """Percent-encoded values are decoded, a plus is a plus, and properties survive the next hop
        unchanged.
        """
        carried = "user=J%C3%BCrgen%20M;prio=1;secret, sum=1+1, rate=100%25"
        with rig.run() as run:
            run.driver.plant("hello", {"traceparent": values.VALID, "baggage": carried})
            run.driver.consume(do("answer"))
            assert run.handled.baggage == {"user": "Jürgen M", "sum": "1+1", "rate": "100%"}
            answer = only(run.driver.wire(run.driver.other_queue))
            members = values.text(only(answer.values("baggage"))).replace(" ", "").split(",")
            assert "user=J%C3%BCrgen%20M;prio=1;secret" in members
            assert len(members) == 3

    @scenario(4)
    def test_tracestate_comes_through(self, rig: Rig) -> None:
        """The tracestate of the trace reaches the handler and the CONSUMER span."""
        state = trace.TraceState([("rojo", "00f067aa0ba902b7"), ("congo", "t61rcWkgMzE")])
        remote = trace.SpanContext(0xABC, 0xDEF, True, trace.TraceFlags(1), state)
        with rig.run() as run:
            with values.current(trace.set_span_in_context(trace.NonRecordingSpan(remote))):
                run.driver.publish("hello")
            run.driver.consume(do("observe"))
            assert run.handled.tracestate == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
            assert run.consumer.tracestate == run.handled.tracestate

    @scenario(7, "baggage at rest")
    def test_a_message_without_a_context_begins_a_trace(self, rig: Rig) -> None:
        """The CONSUMER span is a root, even inside a span around the polling loop, which it links to; counted
        as missing.
        """
        with rig.run() as run:
            run.driver.plant("hello", {})
            with values.current(_with_baggage({"of": "the poller"})), ambient_span() as ambient:
                run.driver.consume(do("observe"))
            consumer = run.consumer
            assert consumer.parent_id is None
            assert consumer.trace_id != values.ids(ambient)[0]
            expected = [] if "ambient" in rig.lacks else [values.ids(ambient)]
            assert [link.context for link in consumer.links] == expected
            assert run.handled.baggage == {}
            assert (run.missing("missing"), run.missing("malformed")) == (1, 0)
            [point] = run.points("queueprop.context.missing")
            assert (
                point.attributes["messaging.destination.name"]
                == consumer.attributes["messaging.destination.name"]
            )

    @scenario(8, "broken headers")
    def test_a_broken_context_does_no_harm(self, rig: Rig) -> None:
        """Whatever stands where the traceparent should: delivered once and intact, a root, counted as
        malformed, no noise.
        """
        with rig.run() as run:
            planted = _broken(rig)
            for name, value in planted.items():
                fields = {"traceparent": value, "tracestate": "a=1"}
                run.driver.plant(name, fields, {"tenant": name})
            run.driver.consume(do("observe"), len(planted))
            assert sorted(seen.body for seen in run.seen) == sorted(planted)
            for seen in run.seen:
                span = run.consumer_of(seen)
                assert span.parent_id is None, seen.body
                assert span.links == [], seen.body
                assert span.tracestate == "", seen.body
                assert seen.body in str(seen.headers), "the headers of the user arrived"
            assert len({span.trace_id for span in run.consumers}) == len(planted)
            assert (run.missing("malformed"), run.missing("missing")) == (len(planted), 0)
            assert len(run.complaints()) <= 1, run.complaints()
            assert run.driver.counts().left == run.driver.counts().unacked == run.driver.counts().dead == 0

    @scenario(8, "broken headers")
    def test_what_is_no_container_of_headers_does_no_harm(self, rig: Rig) -> None:
        """Junk where all of the headers should be: delivered once and intact, a root, counted, no noise."""
        junk = rig.thinned(rig.driver_class.junk_carriers(), 2)
        with rig.run() as run:
            for number, carrier in enumerate(junk):
                run.driver.plant_junk(f"message {number}", carrier)
            run.driver.consume(do("observe"), len(junk))
            assert sorted(seen.body for seen in run.seen) == [
                f"message {number}" for number in range(len(junk))
            ]
            assert [span.parent_id for span in run.consumers] == [None] * len(junk)
            assert run.total("queueprop.context.missing") == len(junk)
            assert run.complaints() == []

    @scenario(8, "broken headers")
    def test_two_traceparents_are_a_broken_context(self, rig: Rig) -> None:
        """Two traceparents under two spellings of the name are one too many: a root, counted as malformed."""
        with rig.run() as run:
            run.driver.plant("hello", {"traceparent": values.VALID, "Traceparent": values.VALID})
            run.driver.consume(do("observe"))
            assert run.consumer.parent_id is None
            assert run.missing("malformed") == 1

    @scenario(8, "broken headers")
    @pytest.mark.parametrize("form", ["text", "bytes", "uppercase name", "a higher version"])
    def test_what_is_readable_is_read(self, rig: Rig, form: str) -> None:
        """A valid traceparent is continued also as bytes, under a name in capitals, and in a version to come."""
        fields: Mapping[str, object] = {
            "text": {"traceparent": values.VALID},
            "bytes": {"traceparent": values.VALID.encode()},
            "uppercase name": {"TRACEPARENT": values.VALID},
            "a higher version": {"traceparent": f"cc-{values.VALID[3:]}-more"},
        }
        planted = fields[form]
        assert isinstance(planted, Mapping)
        with rig.run() as run:
            if not all(run.driver.can_plant(value) for value in planted.values()):
                planted = {name: values.text(value) for name, value in planted.items()}
            run.driver.plant("hello", planted)
            run.driver.consume(do("observe"))
            assert (run.consumer.trace_id, run.consumer.parent_id) == (values.TRACE_ID, values.SPAN_ID)
            assert run.points("queueprop.context.missing") == []

    @scenario(12)
    def test_time_in_the_queue_is_told(self, rig: Rig) -> None:
        """The process span says how many seconds lie between publish and handling, where a send time is
        known.
        """
        if "sent at" in rig.lacks:
            self._assert_no_queue_time(rig)
            return
        with rig.run() as run:
            began = time.time()  # a driver may take the send time before its publish begins
            run.driver.publish("hello")
            run.driver.consume(do("observe"))
            waited = run.consumer.attributes["queueprop.message.queue_time"]
            elapsed = run.consumer.start / 1e9 - began
            assert 0 <= waited <= elapsed + run.driver.send_time_resolution
            assert run.total("queueprop.message.queue_time") == 1

    @staticmethod
    def _assert_no_queue_time(rig: Rig) -> None:
        with rig.run() as run:
            run.driver.publish("hello")
            run.driver.consume(do("observe"))
            assert "queueprop.message.queue_time" not in run.consumer.attributes

    @scenario(12, "delay")
    def test_delayed_messages_stay_in_the_trace(self, rig: Rig) -> None:
        """By every call that delays: the same trace; the delay that was asked for is told apart from the
        wait.
        """
        for way in rig.thinned(rig.driver_class.delayed_ways, 1):
            with rig.run() as run:
                with ambient_span():
                    # Of a delay up to an absolute time so much may have passed when it is sent.
                    began = time.monotonic()
                    run.driver.publish("later", way=way, delay=1.0)
                    took = time.monotonic() - began
                run.driver.consume(do("observe"))
                producer, consumer = run.producer, run.consumer
                assert (consumer.trace_id, consumer.parent_id) == producer.context, way
                elapsed = (consumer.start - producer.start) / 1e9
                assert elapsed >= 1.0 - took - run.driver.delay_resolution, way
                if "sent at" in rig.lacks:
                    assert "queueprop.message.queue_time" not in consumer.attributes, way
                    continue
                delay = consumer.attributes.get("queueprop.message.delay")
                assert delay == (pytest.approx(1.0, abs=0.1 + took) if run.driver.tells_delay else None), way
                waited = consumer.attributes["queueprop.message.queue_time"]
                tolerance = 0.2 + took + run.driver.send_time_resolution + run.driver.delay_resolution
                assert waited == pytest.approx(elapsed - 1.0, abs=tolerance), way

    @scenario(26, "baggage at rest")
    def test_an_untrusted_source_is_only_linked(self, rig: Rig) -> None:
        """Settings(trust="none"): a new root that links to the message's context, and no baggage."""
        with rig.run(Settings(trust="none")) as run:
            run.driver.plant(
                "hello", {"traceparent": values.VALID, "tracestate": "a=1", "baggage": "admin=yes"}
            )
            run.driver.consume(do("observe"))
            assert run.consumer.parent_id is None
            assert run.consumer.trace_id != values.TRACE_ID
            assert [link.context for link in run.consumer.links] == [(values.TRACE_ID, values.SPAN_ID)]
            assert run.consumer.tracestate == ""
            assert run.handled.baggage == {}
            assert run.points("queueprop.context.missing") == []

    @scenario(26, "baggage at rest")
    def test_baggage_that_is_not_allowed_does_not_enter(self, rig: Rig) -> None:
        """Settings(baggage_allow=...): of the message's baggage only the named keys reach the handler."""
        with rig.run(Settings(baggage_allow=("tenant",))) as run:
            run.driver.plant("hello", {"traceparent": values.VALID, "baggage": "tenant=42,secret=1"})
            run.driver.consume(do("observe"))
            assert run.handled.baggage == {"tenant": "42"}
            assert run.consumer.trace_id == values.TRACE_ID

    @scenario(26, "wire")
    def test_baggage_that_is_not_allowed_does_not_leave(self, rig: Rig) -> None:
        """Settings(baggage_allow=...): only the named keys are written; without one of them, no header at
        all.
        """
        with rig.run(Settings(baggage_allow=("tenant",))) as run:
            with values.current(_with_baggage({"tenant": "42", "secret": "1"})):
                run.driver.publish("both")
            with values.current(_with_baggage({"secret": "1"})):
                run.driver.publish("one")
            written = {
                message.body: [values.text(it) for it in message.values("baggage")]
                for message in run.driver.wire()
            }
            assert written == {"both": ["tenant=42"], "one": []}


def _assert_received(run: Run, rig: Rig) -> None:
    """A CLIENT span for the call that pulled the message, over before its handling; none where nobody pulls."""
    clients = [span for span in run.ours if span.kind not in ("PRODUCER", "CONSUMER")]
    if not rig.driver_class.receives(rig.column.style):
        assert clients == []
        return
    receive = only(clients)
    assert (receive.kind, receive.name) == ("CLIENT", run.driver.receive_name)
    assert receive.attributes["messaging.operation.type"] == "receive"
    assert [link.context for link in receive.links] == [run.producer.context]
    assert receive.end <= run.consumer.start
    assert receive.span_id != run.consumer.parent_id


def _with_baggage(members: Mapping[str, str]) -> context.Context:
    current = context.get_current()
    for key, value in members.items():
        current = baggage.set_baggage(key, value, current)
    return current


def _broken(rig: Rig) -> dict[str, object]:
    names = rig.thinned([*values.MALFORMED_KINDS, *values.MALFORMED], len(values.MALFORMED_KINDS))
    return {
        name: values.MALFORMED[name] for name in names if rig.driver_class.can_plant(values.MALFORMED[name])
    }

"""Behaviours about where a trace comes from and how often it is entered: 34, 35, 36, 37."""

from __future__ import annotations

import contextvars

import pytest
from opentelemetry import baggage, context

from integration.contract import values
from integration.contract.actions import do
from integration.contract.run import Rig, only
from integration.contract.scenario import scenario
from integration.contract.telemetry import ambient_span
from queueprop import Settings

_CARRIED = {"traceparent": values.VALID, "tracestate": "a=1", "baggage": "tenant=theirs,region=eu"}


class Origins:
    @scenario(34, "retry")
    def test_retries_are_siblings(self, rig: Rig) -> None:
        """A hundred retries are a hundred children of the one PRODUCER span, however often it is tried."""
        retries = len(rig.thinned(range(100), 5))
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("hello", retries=retries)
            run.driver.consume(do("fail", times=retries), retries + 1)
            assert len(run.consumers) == retries + 1
            assert {(span.trace_id, span.parent_id) for span in run.consumers} == {run.producer.context}

    @scenario(35)
    def test_a_client_that_connected_inside_a_span(self, rig: Rig) -> None:
        """The span of an application's start-up, which its tasks keep for life, is in no handler: not as the parent,
        not as a link, nor is its baggage.
        """
        with rig.run() as run:
            with ambient_span():
                start_up = contextvars.copy_context()
                start_up.run(lambda: context.attach(baggage.set_baggage("of", "the start-up")))
            with ambient_span():
                run.driver.publish("hello")
            start_up.run(run.driver.consume, do("observe"))
            consumer = run.consumer
            assert (consumer.trace_id, consumer.parent_id) == run.producer.context
            assert [link.context for link in consumer.links] == [run.producer.context]
            assert run.handled.baggage == {}

    @scenario(36)
    def test_what_is_handled_twice_is_inside_its_trace_each_time(self, rig: Rig) -> None:
        """A retry loop of the user's, a list that is iterated again: one CONSUMER span, and both times in its trace
        with its baggage.
        """
        with rig.run() as run:
            with values.current(baggage.set_baggage("tenant", "42")), ambient_span():
                run.driver.publish("hello")
            run.driver.consume_twice(do("observe"))
            first, second = run.seen
            consumer = run.consumer
            assert (first.trace_id, first.span_id) == (second.trace_id, second.span_id) == consumer.context
            assert first.baggage == second.baggage == {"tenant": "42"}
            assert (consumer.trace_id, consumer.parent_id) == run.producer.context

    @scenario(37, "wire")
    @pytest.mark.parametrize("around", ["inside a span", "without a current span"])
    def test_a_context_that_the_caller_wrote(self, rig: Rig, around: str) -> None:
        """An outbox's relay, a dead-letter script: the carried context is the parent where no span is current, else it
        is linked; the caller's baggage goes on, ours wins by key; one of each header is on the wire.
        """
        with rig.run() as run:
            with values.current(baggage.set_baggage("tenant", "ours")):
                if around == "inside a span":
                    with ambient_span() as ambient:
                        run.driver.publish_carrying("hello", _CARRIED)
                    expected = values.ids(ambient)
                else:
                    run.driver.publish_carrying("hello", _CARRIED)
                    expected = (values.TRACE_ID, values.SPAN_ID)
            message = only(run.driver.wire())
            producer = run.producer
            links = [] if around == "without a current span" else [(values.TRACE_ID, values.SPAN_ID)]
            assert (producer.trace_id, producer.parent_id) == expected
            assert [link.context for link in producer.links] == links
            assert values.carried(message).context == producer.context
            members = values.text(only(message.values("baggage"))).split(",")
            assert sorted(members) == ["region=eu", "tenant=ours"]
            states = [values.text(state) for state in message.values("tracestate")]
            assert states == (["a=1"] if not links else [])

    @scenario(37, "wire")
    def test_an_untrusted_context_that_the_caller_wrote(self, rig: Rig) -> None:
        """Settings(trust="none"): it is linked, never the parent, and nothing of it goes on."""
        with rig.run(Settings(trust="none")) as run:
            run.driver.publish_carrying("hello", _CARRIED)
            producer = run.producer
            assert producer.parent_id is None
            assert producer.trace_id != values.TRACE_ID
            assert [link.context for link in producer.links] == [(values.TRACE_ID, values.SPAN_ID)]
            assert sorted(name for name, _ in only(run.driver.wire()).fields) == ["traceparent"]

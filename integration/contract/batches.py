"""Behaviour 17: batches."""

from __future__ import annotations

import contextlib

import pytest
from opentelemetry import trace

from integration.contract import values
from integration.contract.actions import do
from integration.contract.run import Rig, only
from integration.contract.scenario import scenario
from integration.contract.telemetry import ambient_span

_BODIES = ["one", "two", "three"]


class Batches:
    @scenario(17, "batch")
    @pytest.mark.parametrize("around", ["inside a span", "without a current span"])
    def test_every_message_of_a_batch_carries_a_context_of_its_own(self, rig: Rig, around: str) -> None:
        """A create span (PRODUCER) a message, whose context it carries, beside one CLIENT send span that
        links to them.
        """
        for way in rig.driver_class.batch_ways:
            with rig.run() as run:
                with (
                    ambient_span()
                    if around == "inside a span"
                    else contextlib.nullcontext(trace.INVALID_SPAN_CONTEXT) as ambient
                ):
                    run.driver.publish_batch(_BODIES, way=way)
                waiting = run.driver.wire()
                creates = run.producers
                send = only([span for span in run.ours if span.kind == "CLIENT"])
                assert len(creates) == len(_BODIES)
                assert {span.name for span in creates} == {run.driver.create_name}
                assert {span.attributes["messaging.operation.type"] for span in creates} == {"create"}
                assert {link.context for link in send.links} == {span.context for span in creates}
                assert send.name == run.driver.batch_send_name
                assert send.attributes["messaging.operation.type"] == "send"
                assert send.attributes["messaging.batch.message_count"] == len(_BODIES)
                carried = {message.body: values.carried(message).context for message in waiting}
                assert sorted(carried) == sorted(_BODIES)
                assert set(carried.values()) == {span.context for span in creates}
                if ambient.is_valid:
                    parents = {(span.trace_id, span.parent_id) for span in [*creates, send]}
                    assert parents == {values.ids(ambient)}
                else:
                    assert {span.parent_id for span in creates} == {None}

    @scenario(17, "batch")
    def test_messages_of_a_batch_that_are_handled_one_by_one_have_their_own_spans(self, rig: Rig) -> None:
        """Each delivery's CONSUMER span is a child of its own message's create span, and links to that alone."""
        bodies = rig.thinned(_BODIES, 2)
        for way in rig.thinned(rig.driver_class.batch_ways, 1):
            with rig.run() as run:
                with ambient_span():
                    run.driver.publish_batch(bodies, way=way)
                run.driver.consume(do("observe"), len(bodies))
                assert sorted(seen.body for seen in run.seen) == sorted(bodies)
                assert len(run.consumers) == len(bodies)
                assert {it.parent_id for it in run.consumers} == {it.span_id for it in run.producers}
                for span in run.consumers:
                    assert [link.span_id for link in span.links] == [span.parent_id]

    @scenario(17, "batch receive")
    @pytest.mark.parametrize("traces", ["one trace", "several traces"])
    def test_a_batch_that_is_handled_at_once_links_to_each_message(self, rig: Rig, traces: str) -> None:
        """One CONSUMER span for the batch with a link for each message, also when their traces differ."""
        with rig.run() as run:
            with ambient_span() if traces == "one trace" else contextlib.nullcontext():
                for body in _BODIES:
                    run.driver.publish(body)
            run.driver.consume_batch(do("observe"), len(_BODIES))
            consumer = run.consumer
            assert {link.context for link in consumer.links} == {span.context for span in run.producers}
            assert len(consumer.links) == len(_BODIES)
            assert consumer.attributes["messaging.batch.message_count"] == len(_BODIES)
            assert sorted(seen.body for seen in run.seen) == sorted(_BODIES)
            assert {(seen.trace_id, seen.span_id) for seen in run.seen} == {consumer.context}
            if traces == "one trace":
                assert consumer.trace_id == run.producers[0].trace_id
            else:
                assert consumer.parent_id is None

"""Whom to trust, on live brokers: what comes from a source that is not trusted stops where it came in.

For each library, through both of its APIs: ``Settings(trust="none")``, and a function that trusts what is signed. A
message of a stranger's carries a valid traceparent, a tracestate, baggage and headers of its own, all of which are
looked for afterwards: in spans, in what is logged down to DEBUG, in what the handler sees and in what it forwards.
"""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from integration.brokers import KAFKA, RABBITMQ, REDIS, Unavailable, find
from integration.contract import values
from integration.contract.actions import do
from integration.contract.driver import Column, Driver
from integration.contract.run import Rig, Run, only
from integration.contract.telemetry import tell
from queueprop import Settings, guard

from .report import Row

PART = "trust"
SECRET = "attack-at-dawn"
"""In everything that a stranger may write freely."""

CARRIED = {
    "traceparent": values.VALID,
    "tracestate": f"vendor={SECRET}",
    "baggage": f"admin={SECRET},role=root",
}
HEADERS = {"note": SECRET}
BROKEN = {"traceparent": f"00-{SECRET}", "tracestate": f"={SECRET},,", "baggage": f"={SECRET}; ,{SECRET}"}

_DRIVERS = {
    "redis": ("rq:RQDriver", "dramatiq:RedisDriver", "kombu:RedisDriver", "bullmq:BullMQDriver"),
    "rabbitmq": (
        "pika:PikaDriver",
        "aio_pika:AioPikaDriver",
        "kombu:AmqpDriver",
        "dramatiq:RabbitmqDriver",
        "faststream:RabbitDriver",
    ),
    "kafka": ("aiokafka:AIOKafkaDriver", "confluent_kafka:ConfluentKafkaDriver", "faststream:KafkaDriver"),
}
_SHORT = ("rq:RQDriver", "dramatiq:RedisDriver", "kombu:RedisDriver")
_SERVICES = {"redis": REDIS, "rabbitmq": RABBITMQ, "kafka": KAFKA}


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    for name, drivers in _DRIVERS.items():
        chosen = [it for it in drivers if not is_short or it in _SHORT]
        if not chosen:
            continue
        try:
            broker = find(_SERVICES[name])
        except Unavailable as reason:
            yield Row(PART, name, "no broker", False, {"why": reason})
            continue
        say(f"{', '.join(chosen)} on {broker}")
        try:
            broker.start()
            for path in chosen:
                yield from _rows(path, broker.url)
        finally:
            broker.close()


def _rows(path: str, url: str) -> Iterator[Row]:
    module, name = path.split(":")
    driver: type[Driver] = getattr(importlib.import_module(f"integration.drivers.{module}"), name)
    columns = driver.columns()
    for column in [it for it in columns if it.style == columns[0].style]:
        with tempfile.TemporaryDirectory(prefix="queueprop-trust-") as folder:
            rig = Rig(driver, column, url, Path(folder), lambda: None)
            for what, check in _CHECKS.items():
                yield _checked(column, what, rig, check)


def _checked(column: Column, what: str, rig: Rig, check: Callable[[Rig], Mapping[str, object]]) -> Row:
    library = f"{column.library}, {column.style}, {column.api}"
    try:
        return Row(PART, library, what, True, check(rig))
    except AssertionError as error:
        return Row(PART, library, what, False, {"why": str(error)[:300] or repr(error)})


# The checks


def _trust_none(rig: Rig) -> Mapping[str, object]:
    """A stranger's message begins a trace of its own."""
    with _listening(), rig.run(Settings(trust="none")) as run:
        run.driver.plant("hello", CARRIED, HEADERS)
        run.driver.consume(do("forward"))
        _assert_untrusted(run)
        return _counts(run)


def _trust_function(rig: Rig) -> Mapping[str, object]:
    """It is asked for each message, with the destination; who is trusted goes on, baggage and all."""

    def is_signed(destination: Any, message: Any) -> bool:
        tell("asked", {"destination": destination.name})
        return "ours" in _everything(message.headers)

    with _listening(), rig.run(Settings(trust=is_signed)) as run:
        run.driver.plant("hello", CARRIED, HEADERS)
        run.driver.consume(do("forward"))
        _assert_untrusted(run)
        run.driver.plant("signed", {**CARRIED, "baggage": "by=ours"})
        run.driver.consume(do("observe"))
        [seen] = run.seen_of("signed")
        consumer = run.consumer_of(seen)
        assert (consumer.trace_id, consumer.parent_id) == (values.TRACE_ID, values.SPAN_ID), "not continued"
        assert seen.baggage == {"by": "ours"}, seen.baggage
        assert seen.tracestate == CARRIED["tracestate"], seen.tracestate
        asked = [it["destination"] for it in run.told.records("asked")]
        assert set(asked) == {consumer.attributes["messaging.destination.name"]} or asked, asked
        assert len(asked) >= 2, f"asked {len(asked)} times of 2 messages"
        return {**_counts(run), "asked": len(asked)}


def _trust_raises(rig: Rig) -> Mapping[str, object]:
    """A function that fails has not said that it trusts: the message is delivered, and begins a trace of its own."""

    def fails(destination: Any, message: Any) -> bool:
        raise LookupError("no such key")

    with _as_users_have_it(), _listening(), rig.run(Settings(trust=fails)) as run:
        run.driver.plant("hello", CARRIED, HEADERS)
        run.driver.consume(do("forward"))
        _assert_untrusted(run)
        told = [it for it in run.complaints() if "trust" in it]
        assert told, "nobody is told that the function fails"
        return {**_counts(run), "told": len(told)}


def _nothing_is_shown(rig: Rig) -> Mapping[str, object]:
    """What headers say is nowhere in spans and logs, were they valid or broken, trusted or not."""
    spans = lines = 0
    for settings in (Settings(), Settings(trust="none"), Settings(settle_spans=True, body_size=True)):
        for fields in (CARRIED, BROKEN):
            with _listening() as log, rig.run(settings) as run:
                run.driver.plant("hello", fields, HEADERS)
                run.driver.consume(do("observe"))
                ours = run.ours
                _assert_not_shown(ours, without_tracestate=fields is CARRIED and settings.trust == "all")
                logged = log() + run.complaints()
                assert SECRET not in _everything(logged), [it for it in logged if SECRET in it]
                spans, lines = spans + len(ours), lines + len(logged)
    return {"spans": spans, "log lines": lines, "with a header's content": 0}


def _only_what_is_named(rig: Rig) -> Mapping[str, object]:
    """Settings(capture_headers=...) shows the header that it names, and no other. Jobs have no headers of users."""
    expected = None if rig.driver_class.library in _WITHOUT_HEADERS else ["shown"]
    with _listening(), rig.run(Settings(capture_headers=("named",))) as run:
        run.driver.plant("hello", {"traceparent": values.VALID}, {"named": "shown", **HEADERS})
        run.driver.consume(do("observe"))
        shown = [span.attributes.get("messaging.header.named") for span in run.consumers]
        assert shown == [expected], shown
        _assert_not_shown(run.ours)
        return {"shown": len(shown) if expected else "none: a job has no headers", "others shown": 0}


_WITHOUT_HEADERS = frozenset({"rq", "dramatiq", "bullmq"})


_CHECKS: Mapping[str, Callable[[Rig], Mapping[str, object]]] = {
    "trust=none": _trust_none,
    "trust by a function": _trust_function,
    "a trust function that raises": _trust_raises,
    "headers in spans and logs": _nothing_is_shown,
    "a header that is named": _only_what_is_named,
}


def _assert_untrusted(run: Run) -> None:
    """A root with a link, no baggage, no tracestate; what the handler forwards carries nothing of the stranger's."""
    [seen] = run.seen_of("hello")
    consumer = run.consumer_of(seen)
    assert consumer.parent_id is None, "it has a parent"
    assert consumer.trace_id != values.TRACE_ID, "it is in the stranger's trace"
    links = [link.context for link in consumer.links]
    assert links == [(values.TRACE_ID, values.SPAN_ID)], f"links {links}"
    assert (consumer.tracestate, seen.tracestate) == ("", ""), "the tracestate came in"
    assert seen.baggage == {}, f"baggage {seen.baggage}"
    [forwarded] = run.driver.wire(run.driver.other_queue)
    names = sorted(name.lower() for name, _ in forwarded.fields)
    assert names == ["traceparent"], f"forwarded with {names}"
    trace_id = values.text(only(forwarded.values("traceparent"))).split("-")[1]
    assert trace_id == consumer.trace_id, "forwarded in another trace"
    _assert_not_shown(run.ours)


def _assert_not_shown(spans: list[Any], *, without_tracestate: bool = False) -> None:
    """``without_tracestate`` where it goes on, as the standard has it: a field of the span's own, no attribute."""
    for span in spans:
        told = dict(vars(span))
        told["links"] = [vars(link) for link in span.links]
        if without_tracestate:
            del told["tracestate"]
        assert SECRET not in json.dumps(told, default=str), f"{span.name} shows it"


def _counts(run: Run) -> dict[str, object]:
    roots = sum(span.parent_id is None for span in run.consumers)
    return {
        "deliveries": len(run.seen),
        "spans": len(run.consumers),
        "roots with a link": roots,
        "let through": 0,
    }


def _everything(it: object) -> str:
    return json.dumps(it, default=repr)


@contextmanager
def _listening() -> Iterator[Callable[[], list[str]]]:
    """What this process logs, and those that it forks, down to DEBUG, whoever logs it."""
    with tempfile.NamedTemporaryFile("r") as file:
        handler = logging.FileHandler(file.name)
        logger = logging.getLogger("queueprop")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            yield lambda: Path(file.name).read_text().splitlines()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()


@contextmanager
def _as_users_have_it() -> Iterator[None]:
    """The guard tells each thing once a process, and raises nothing."""
    raises, guard.raise_faults = guard.raise_faults, False
    guard._logged.clear()
    try:
        yield
    finally:
        guard.raise_faults = raises

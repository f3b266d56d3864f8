"""What the torture's faults are judged by, without a broker: each thing that must not be makes a row that fails."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from integration.contract.telemetry import SpanRecord, wait_until
from integration.torture.faults import trial as trial_module
from integration.torture.faults.comparing import EVERYTHING, SETTLED, row
from integration.torture.faults.proxy import Proxy
from integration.torture.faults.trial import Outcome, Trial
from integration.torture.programs.left import Left

PLAIN = Outcome(
    published=10,
    failed=0,
    attempts=10,
    delivered=11,
    redelivered=1,
    left=0,
    unacked=0,
    dead=0,
    lost=0,
    restarts=1,
)
TRACED = replace(PLAIN, producers=10, consumers=11)


def test_equal_outcomes_hold() -> None:
    """Also where deliveries of a killed process have no span, which are counted."""
    assert row("pika", "killed", PLAIN, TRACED, EVERYTHING).holds
    killed = row("pika", "killed", PLAIN, replace(TRACED, consumers=9, in_killed_batches=2), EVERYTHING)
    assert killed.holds
    assert killed.counts["in killed batches"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"published": 9},
        {"delivered": 12, "redelivered": 2},
        {"dead": 1},
        {"left": 1},
        {"unacked": 1},
        {"lost": 1},
        {"restarts": 2},
        {"producers": 9},
        {"without_span": 1},
        {"orphans": 1},
        {"doubles": 1},
    ],
)
def test_what_differs_fails(wrong: dict[str, int]) -> None:
    """Of the messages any count, of the spans any that is missing, outside or one too many."""
    assert not row("pika", "killed", PLAIN, replace(TRACED, **wrong), EVERYTHING).holds


def test_a_race_has_its_bound() -> None:
    """Where deliveries may differ, more than were in hand, and more than failed publishes had sent, are too many."""
    traced = replace(TRACED, delivered=15, redelivered=5, failed=1)
    assert row("pika", "gone", PLAIN, traced, SETTLED, most=3).holds
    assert not row("pika", "gone", PLAIN, traced, SETTLED, most=2).holds
    assert not row("pika", "gone", PLAIN, replace(traced, lost=1), SETTLED, most=4).holds
    assert row("pika", "gone", PLAIN, replace(traced, lost=1), SETTLED, most=4, may_lose=1).holds


# How a trial counts


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """Three messages: 0 is handled twice, by a process that is killed and by another one, the others once."""
    made = Trial("pika", "amqp://nowhere", True, 3)
    monkeypatch.setattr(made, "_counts", Left)
    for number in range(3):
        tell(made, "attempt", id=str(number), pid=1, trace=trace_of(number))
        tell(made, "published", id=str(number), pid=1, trace=trace_of(number))
        made._otlp.spans.append(span(number, "PRODUCER", f"a{number}", None))
    tell(made, "delivered", id="0", pid=7, trace=trace_of(0))
    tell(made, "dying", pid=7, who=7)
    for number in range(3):
        tell(made, "delivered", id=str(number), pid=8, trace=trace_of(number))
        tell(made, "handled", id=str(number), pid=8)
        made._otlp.spans.append(span(number, "CONSUMER", f"b{number}", f"a{number}"))
    yield made
    made.close()


def test_a_killed_process_takes_its_batch_with_it(trial: Trial) -> None:
    """The delivery that lacks a span is that of the process that was killed."""
    outcome = trial.outcome()
    assert (outcome.delivered, outcome.redelivered, outcome.lost) == (4, 1, 0)
    assert (outcome.producers, outcome.consumers) == (3, 3)
    assert (outcome.in_killed_batches, outcome.without_span, outcome.orphans, outcome.doubles) == (1, 0, 0, 0)


def test_another_delivery_without_a_span_is_missing(trial: Trial) -> None:
    """The process that handled it lived."""
    del trial._otlp.spans[-1]
    assert trial.outcome().without_span == 1


def test_a_delivery_that_was_cut_off_is_told_apart(trial: Trial) -> None:
    """Its process ended in order, but did not wait for it."""
    tell(trial, "delivered", id="2", pid=9, trace=trace_of(2))
    outcome = trial.outcome()
    assert (outcome.cut_off, outcome.without_span) == (1, 0)


def test_a_second_span_of_a_delivery_is_a_double(trial: Trial) -> None:
    """Two deliveries of message 0, three spans."""
    trial._otlp.spans += [span(0, "CONSUMER", "c0", "a0"), span(0, "CONSUMER", "c1", "a0")]
    assert trial.outcome().doubles == 1


def test_an_orphan_is_a_handler_or_a_span_outside(trial: Trial) -> None:
    """A handler in another trace; a CONSUMER span without its producer; a span of the handler's elsewhere."""
    tell(trial, "delivered", id="1", pid=8, trace=trace_of(2))
    tell(trial, "handled", id="1", pid=8)
    trial._otlp.spans.append(span(1, "CONSUMER", "c1", None))
    trial._otlp.spans.append(span(9, "INTERNAL", "d0", None, name="work", scope="torture"))
    assert trial.outcome().orphans == 3


def test_a_message_that_is_nowhere_is_lost(trial: Trial) -> None:
    """Confirmed, and neither delivered nor left."""
    tell(trial, "published", id="3", pid=1, trace=trace_of(3))
    assert trial.outcome().lost == 1


def test_what_a_broker_keeps_is_waited_for_while_a_worker_is_at_it(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a living worker has just fetched counts as kept, too: only what stays so for a while is."""
    trial.messages, trial.may_hang = 4, True
    monkeypatch.setattr(trial, "_counts", lambda: Left(0, 1, 0))
    monkeypatch.setattr(trial_module, "_STILL", 60.0)
    assert not trial._is_all_delivered(0)
    monkeypatch.setattr(trial_module, "_STILL", 0.0)
    assert trial._is_all_delivered(0)
    monkeypatch.setattr(trial, "_counts", lambda: Left(1, 0, 0))
    assert not trial._is_all_delivered(0)


def tell(trial: Trial, kind: str, **it: Any) -> None:
    with trial.ledger.open("ab") as file:
        file.write(json.dumps({"kind": kind, "at": 0.0, **it}).encode() + b"\n")


def trace_of(number: int) -> str:
    return f"{number + 1:032x}"


def span(
    number: int, kind: str, span_id: str, parent: str | None, name: str = "it", scope: str = "queueprop"
) -> SpanRecord:
    return SpanRecord(
        name=name,
        kind=kind,
        trace_id=trace_of(number),
        span_id=span_id,
        parent_id=parent,
        scope=scope,
        pid=0,
        start=0,
        end=1,
        status="UNSET",
        description=None,
        attributes={},
        links=[],
        events=[],
        tracestate="",
    )


# The proxy


@pytest.fixture
def sink() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers ``ok`` to whatever comes, and keeps what came."""
    came: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        try:
            while data := connection.recv(1000):
                came.append(data)
                connection.sendall(b"ok")
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    yield f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/%2F", came
    server.close()


def test_the_proxy_cuts_in_the_middle(sink: tuple[str, list[bytes]]) -> None:
    """Of what is sent next the first 70 bytes get through; then both ends are closed, and the next client is served."""
    url, came = sink
    proxy = Proxy(url)
    try:
        with connected(proxy) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"ok"
            proxy.cut_upstream()
            client.sendall(b"x" * 100)
            assert rest(client) in (b"", b"ok")
        wait_until(lambda: b"".join(came) == b"hello" + b"x" * 70, "what got through before the cut")
        assert proxy.cuts == 1
        with connected(proxy) as client:
            client.sendall(b"again")
            assert client.recv(10) == b"ok"
    finally:
        proxy.close()


def test_the_proxy_keeps_an_answer(sink: tuple[str, list[bytes]]) -> None:
    """What was sent got through, and its confirm does not come."""
    url, came = sink
    proxy = Proxy(url)
    try:
        with connected(proxy) as client:
            proxy.cut_downstream()
            client.sendall(b"hello")
            assert rest(client) == b""
        assert came == [b"hello"]
    finally:
        proxy.close()


def connected(proxy: Proxy) -> socket.socket:
    port = int(proxy.url.partition("@")[2].partition("/")[0].rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), 20)


def rest(client: socket.socket) -> bytes:
    """What still comes until the connection is closed, in order or not."""
    try:
        return b"".join(iter(lambda: client.recv(100), b""))
    except ConnectionError:
        return b""

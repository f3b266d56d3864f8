"""Beside opentelemetry-instrumentation-aiokafka."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from integration.aiokafka.programs import STYLES, Tracing, consume, producing, reading
from integration.contract.telemetry import DEADLINE
from integration.live import Spans, origin, unique
from queueprop import guard


class TestRival:
    """opentelemetry-instrumentation-aiokafka. It wraps ``send``, ``getone`` and ``getmany`` on their classes."""

    @pytest.fixture
    def rival(self) -> Iterator[Any]:
        module = pytest.importorskip("opentelemetry.instrumentation.aiokafka")
        names = [(AIOKafkaProducer, "send"), (AIOKafkaConsumer, "getone"), (AIOKafkaConsumer, "getmany")]
        own = [(owner, name, vars(owner)[name]) for owner, name in names]
        rival = module.AIOKafkaInstrumentor()
        yield rival
        if rival.is_instrumented_by_opentelemetry:
            rival.uninstrument()
        for owner, name, function in own:
            setattr(owner, name, function)  # it takes away whatever is outermost

    @pytest.fixture(autouse=True)
    def _said_nothing_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_logged", {})

    @pytest.mark.parametrize("first", ["ours", "the other"])
    @pytest.mark.parametrize("style", STYLES)
    def test_it_keeps_the_library_whichever_was_first(
        self, spans: Spans, servers: str, rival: Any, first: str, style: str
    ) -> None:
        """Its spans, as many as without us; none of ours; one warning that names it; and records pass."""
        rival.instrument()
        assert _exchanged(servers, style) == [b"one", b"two"]
        alone = [span.name for span in spans.everything]
        rival.uninstrument()
        if first == "the other":
            rival.instrument()
        with Tracing("instrumentor").on():
            if first == "ours":
                rival.instrument()
            assert _exchanged(servers, style) == [b"one", b"two"]
        both = [span.name for span in spans.everything][len(alone) :]
        assert len(alone) >= 4 or style == "getmany"  # which an older one does not know
        assert len(alone) >= 2
        assert _without_topics(both) == _without_topics(alone)
        assert spans.all == []
        warnings = [text for text in spans.complaints if "opentelemetry.instrumentation.aiokafka" in text]
        assert len(warnings) == 1
        assert "uninstall opentelemetry-instrumentation-aiokafka or" in warnings[0]

    @pytest.mark.parametrize("first", ["ours", "the other"])
    def test_uninstrumenting_ours_does_the_other_no_harm(
        self, spans: Spans, servers: str, rival: Any, first: str
    ) -> None:
        """It goes on to trace as before; and once it is gone, ours can have the library."""
        if first == "the other":
            rival.instrument()
        with Tracing("instrumentor").on():
            if first == "ours":
                rival.instrument()
        assert _exchanged(servers, "getone") == [b"one", b"two"]
        assert [span.kind for span in spans.everything] == ["PRODUCER"] * 2 + ["CONSUMER"] * 2
        assert spans.all == []
        rival.uninstrument()
        with Tracing("instrumentor").on():
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.everything) == 8
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]

    def test_what_the_other_takes_away_when_it_goes_breaks_nothing(
        self, spans: Spans, servers: str, rival: Any
    ) -> None:
        """It takes off what is outermost, which is ours where it was first: records pass, and ours can be taken away
        and be put back. (Its own, which it leaves behind, goes on to make spans.)
        """
        rival.instrument()
        with Tracing("instrumentor").on():
            rival.uninstrument()
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        already = len(spans.all)
        assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.all) == already
        with Tracing("instrumentor").on():
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.all) == already + 4


def _exchanged(servers: str, style: str) -> list[bytes]:
    """Two records, sent and handled, as a program does it that knows of no tracing."""
    topic = unique("orders")
    got: list[bytes] = []

    async def main() -> None:
        plain = Tracing("plain")
        async with producing(servers) as producer:
            for body in (b"one", b"two"):
                # With an older one send_and_wait fails: it gives send its headers a second time.
                await (await producer.send(topic, body, partition=0))
        async with reading(servers, topic) as consumer:
            await consume(plain, consumer, style, 2, lambda record: got.append(record.value))

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    return got


def _without_topics(names: list[str]) -> list[str]:
    """Each exchange has a topic of its own."""
    return sorted(name.split()[-1] for name in names)

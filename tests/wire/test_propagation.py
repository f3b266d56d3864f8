"""Context into and out of header containers, with OpenTelemetry's default propagator and with every other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.jaeger import JaegerPropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import queueprop.wire.propagation
from queueprop import guard
from queueprop.wire.propagation import BAGGAGE_KEY, Extraction, broken, extract, inject, read, write
from queueprop.wire.w3c import BaggageValue

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"
OTHER = f"00-{'1' * 32}-{'2' * 16}-01"


def context_of(
    members: dict[str, Any] | None = None, trace_state: TraceState | None = None, flags: int = 1
) -> Context:
    span_context = SpanContext(int(TRACE_ID, 16), int(PARENT_ID, 16), False, TraceFlags(flags), trace_state)
    context = trace.set_span_in_context(NonRecordingSpan(span_context), Context())
    for key, value in (members or {}).items():
        context = baggage.set_baggage(key, value, context)
    return context


def injected(context: Context | None = None, **options: Any) -> dict[str, str]:
    carrier: dict[str, str] = {}
    write(carrier, context_of() if context is None else context, **options)
    return carrier


@pytest.fixture(autouse=True)
def _restored_propagator() -> Iterator[None]:
    before = get_global_textmap()
    yield
    set_global_textmap(before)


@pytest.fixture
def lenient_guard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[str]]:
    """Faults are logged, as for a user, and not raised, as in these tests; returns what was logged."""
    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(guard, "_logged", {})
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestDefault:
    """OpenTelemetry's default propagator: our codec does its job."""

    def test_a_dict_gets_text_and_a_list_gets_bytes(self) -> None:
        """The wire types of AMQP tables and of Kafka records."""
        table: dict[str, Any] = {}
        pairs: list[Any] = []
        context = context_of({"k": "é"}, TraceState([("a", "1")]))

        inject(table, context=context)
        inject(pairs, context=context)

        assert table == {"traceparent": VALID, "tracestate": "a=1", "baggage": "k=%C3%A9"}
        assert pairs == [(name, value.encode()) for name, value in table.items()]

    def test_the_current_context_is_the_one_that_is_written(self) -> None:
        """Where none is given."""
        token = attach(context_of())
        try:
            carrier: dict[str, str] = {}
            inject(carrier)
        finally:
            detach(token)

        assert carrier == {"traceparent": VALID}

    @pytest.mark.parametrize(
        "carrier",
        [
            {"traceparent": VALID, "tracestate": "a=1", "baggage": "k=%C3%A9"},
            {"TraceParent": VALID, b"TRACESTATE": b"a=1", "Baggage": memoryview(b"k=%C3%A9")},
            [("traceparent", VALID.encode()), ("tracestate", b"a=1"), ("baggage", b"k=%C3%A9")],
            (("TRACEPARENT", bytearray(VALID.encode())), (b"tracestate", "a=1"), ("baggage", "k=%C3%A9")),
        ],
        ids=["dict", "other case and bytes", "pairs", "tuple"],
    )
    def test_every_container_is_read(self, carrier: object) -> None:
        """Names match case-insensitively; text and bytes are alike."""
        context = extract(carrier)

        span_context = trace.get_current_span(context).get_span_context()
        assert (span_context.trace_id, span_context.span_id) == (int(TRACE_ID, 16), int(PARENT_ID, 16))
        assert span_context.is_remote
        assert span_context.trace_state == {"a": "1"}
        assert dict(baggage.get_all(context)) == {"k": "é"}

    def test_what_is_read_is_fresh(self) -> None:
        """Nothing of the current context is in it, whether the message carries a context or not."""
        token = attach(context_of({"ambient": "1"}))
        try:
            empty, full = extract({}), extract({"traceparent": OTHER, "baggage": "k=v"})
        finally:
            detach(token)

        assert empty == {}
        assert len(full) == 2
        assert dict(baggage.get_all(full)) == {"k": "v"}

    def test_the_context_is_readable_and_changeable_through_the_api(self) -> None:
        """Span and baggage lie where OpenTelemetry keeps them: its functions find and change them."""
        context = extract({"traceparent": VALID, "baggage": "a=1,b=2"})

        changed = baggage.remove_baggage("a", baggage.set_baggage("c", "3", context))

        assert baggage.get_baggage("a", context) == "1"
        assert dict(baggage.get_all(changed)) == {"b": "2", "c": "3"}
        assert injected(changed) == {"traceparent": VALID, "baggage": "b=2,c=3"}

    def test_64_members_of_baggage_and_their_properties_make_a_hop(self) -> None:
        """Read, set as context, and written again: the same header."""
        header = ",".join(f"k{number}=v%20{number};p={number}" for number in range(64))

        context = extract({"traceparent": VALID, "baggage": header})

        assert isinstance(baggage.get_baggage("k7", context), BaggageValue)
        assert injected(context)["baggage"] == header

    def test_a_tracestate_with_level_2_keys_makes_a_hop(self) -> None:
        """OpenTelemetry's own TraceState would lose it."""
        context = extract([("traceparent", VALID), ("tracestate", b"9a=1"), ("TraceState", "b@c@d=2")])

        assert injected(context) == {"traceparent": VALID, "tracestate": "9a=1,b@c@d=2"}

    @pytest.mark.parametrize("flags", [0, 1, 2, 3])
    def test_flags_make_a_hop(self, flags: int) -> None:
        """Not sampled, sampled, random: as they came."""
        carrier = injected(context_of(flags=flags))

        assert carrier["traceparent"].endswith(f"-0{flags}")
        assert injected(extract(carrier)) == carrier

    def test_a_tracestate_without_a_valid_traceparent_is_dropped(self) -> None:
        """It belongs to a trace that is not continued; it is counted with the traceparent."""
        alone, beside = read({"tracestate": "a=1"}), read({"traceparent": "x", "tracestate": "a=1"})

        assert (alone.context, alone.reason) == ({}, "missing")
        assert (beside.context, beside.reason) == ({}, "malformed")

    @pytest.mark.parametrize(
        "tracestate", [None, 5, "a", "=", b"\xff", "A=1", ",".join(["a=1"] * 99) + "\n", "x" * 10**6]
    )
    def test_a_bad_tracestate_never_affects_traceparent(self, tracestate: object) -> None:
        """The trace goes on without it."""
        extraction = read({"traceparent": VALID, "tracestate": tracestate})

        assert extraction.reason is None
        assert injected(extraction.context) == {"traceparent": VALID}

    def test_baggage_without_a_valid_traceparent_is_read(self) -> None:
        """Baggage is a header of its own."""
        for carrier, reason in (({}, "missing"), ({"traceparent": ""}, "malformed")):
            extraction = read({**carrier, "baggage": "k=v"})

            assert extraction.reason == reason
            assert extraction.span_context is INVALID_SPAN_CONTEXT
            assert dict(baggage.get_all(extraction.context)) == {"k": "v"}
            assert len(extraction.context) == 1

    def test_bad_baggage_never_affects_traceparent(self) -> None:
        """Nor is there anything in the context for it."""
        extraction = read({"traceparent": VALID, "baggage": b"\xff"})

        assert extraction.reason is None
        assert len(extraction.context) == 1

    @pytest.mark.parametrize(
        "carrier",
        [
            None,
            {},
            [],
            (),
            "",
            "traceparent",
            b"traceparent",
            5,
            ...,
            [None, 1, "traceparent"],
            {"other": VALID},
            {1: 2},
        ],
        ids=repr,
    )
    def test_nothing_there_is_missing(self, carrier: object) -> None:
        """No header of ours, or no headers at all."""
        extraction = read(carrier)

        assert (extraction.context, extraction.span_context, extraction.reason) == (
            {},
            INVALID_SPAN_CONTEXT,
            "missing",
        )

    @pytest.mark.parametrize(
        "carrier",
        [
            {"traceparent": value}
            for value in (None, 1, [VALID], {"nested": VALID}, "", b"", b"\xff", "x" * 10**6, VALID[:-1])
        ]
        + [[("traceparent", VALID), ("Traceparent", VALID)], {"traceparent": VALID, b"traceparent": VALID}],
        ids=lambda value: repr(value)[:40],
    )
    def test_something_unusable_there_is_malformed(self, carrier: object) -> None:
        """A traceparent that cannot be continued, or more than one."""
        extraction = read(carrier)

        assert (extraction.context, extraction.span_context, extraction.reason) == (
            {},
            INVALID_SPAN_CONTEXT,
            "malformed",
        )

    def test_what_stands_for_junk_is_malformed(self) -> None:
        """`broken()`: where a message has something else than headers, however that looks."""
        found = read(broken())
        assert (found.reason, found.span_context.is_valid) == ("malformed", False)

    def test_a_context_to_continue_has_no_reason(self) -> None:
        """The span context is the one in the context."""
        extraction = read({"traceparent": VALID})

        assert extraction.reason is None
        assert extraction.span_context is trace.get_current_span(extraction.context).get_span_context()
        assert repr(extraction) == f"Extraction(span_context={extraction.span_context!r}, reason=None)"

    def test_stale_headers_are_replaced(self) -> None:
        """A handler forwards what it got: one traceparent, the new one, and nothing of the old context."""
        table = {"TraceParent": OTHER, b"tracestate": b"old=1", "BAGGAGE": "old=1", "mine": 1}
        pairs: list[Any] = [
            ("traceparent", b"1"),
            ("Traceparent", b"2"),
            ("baggage", b"old=1"),
            ("mine", b"1"),
        ]

        inject(table, context=context_of())
        inject(pairs, context=context_of())

        assert table == {"mine": 1, "traceparent": VALID}
        assert pairs == [("mine", b"1"), ("traceparent", VALID.encode())]

    def test_without_a_valid_span_stale_headers_are_removed_and_none_is_written(self) -> None:
        """Better no context than the one of another message."""
        for context in (Context(), trace.set_span_in_context(trace.INVALID_SPAN, Context())):
            carrier = {"traceparent": OTHER, "Tracestate": "old=1", "baggage": "old=1", "mine": 1}

            inject(carrier, context=context)

            assert carrier == {"mine": 1}

    def test_baggage_is_written_without_a_span(self) -> None:
        """The two are independent; no tracestate goes without its traceparent."""
        assert injected(baggage.set_baggage("k", "v", Context())) == {"baggage": "k=v"}

    def test_baggage_that_cannot_be_sent_is_no_header(self) -> None:
        """No empty header is written for it."""
        assert injected(context_of({"not a token": "1"})) == {"traceparent": VALID}
        assert injected(baggage.clear(context_of({"k": "1"}))) == {"traceparent": VALID}

    def test_a_tracestate_that_cannot_be_sent_is_no_header(self) -> None:
        """As with a state that checks nothing."""
        state = TraceState()
        state._dict = {"BAD": "1"}

        assert injected(context_of(trace_state=state)) == {"traceparent": VALID}

    def test_only_allowed_baggage_leaves_and_enters(self) -> None:
        """None allows all, an empty collection nothing."""
        context = context_of({"a": "1", "b": "2"})
        carrier = injected(context)

        assert injected(context, allow=["b", "c"])["baggage"] == "b=2"
        assert "baggage" not in injected(context, allow=())
        assert dict(baggage.get_all(read(carrier, frozenset("a")).context)) == {"a": "1"}
        assert len(read(carrier, set()).context) == 1
        assert dict(baggage.get_all(read(carrier).context)) == {"a": "1", "b": "2"}

    def test_only_allowed_properties_leave_and_enter(self) -> None:
        """A property goes along where its own key is named as well; `*`, which is None here, allows all."""
        carrier = {"baggage": "user=42;role=admin;secret=1"}
        context = extract(carrier)

        assert injected(context) == carrier
        assert injected(context, allow=["user"]) == {"baggage": "user=42"}
        assert injected(context, allow=["user", "role"]) == {"baggage": "user=42;role=admin"}
        assert injected(read(carrier, ["user"]).context) == {"baggage": "user=42"}
        assert injected(read(carrier, ["user", "role"]).context) == {"baggage": "user=42;role=admin"}
        assert injected(read(carrier, ["role"]).context) == {}

    def test_baggage_is_the_same_after_every_hop(self) -> None:
        """Broken UTF-8, a plus, other encodings, properties: what came to the first process came to the last."""
        carrier = {
            "traceparent": VALID,
            "tracestate": "9b=2,a=1",
            "baggage": "k=%FF%c3;p=%FF,plus=a+b==,other=%41%",
        }
        for _ in range(4):
            context = extract(carrier)
            assert injected(context) == carrier
            assert dict(baggage.get_all(context)) == {"k": "\ufffd\ufffd", "plus": "a+b==", "other": "A%"}

    def test_a_span_that_raises_loses_no_baggage(self, lenient_guard: Callable[[], list[str]]) -> None:
        """The two are independent: an SDK's fault takes the trace alone, and baggage of no use takes itself."""

        class Broken(NonRecordingSpan):
            def get_span_context(self) -> SpanContext:
                raise RuntimeError("broken span")

        context = baggage.set_baggage("k", "v", trace.set_span_in_context(Broken(INVALID_SPAN_CONTEXT)))
        assert injected(context) == {"baggage": "k=v"}

        class BrokenMembers(dict[str, str]):
            def items(self) -> Any:
                raise RuntimeError("broken baggage")

        members = BrokenMembers(k="v")
        assert injected(Context({**context_of(), BAGGAGE_KEY: members})) == {"traceparent": VALID}
        assert len(lenient_guard()) == 2

    @pytest.mark.parametrize("carrier", [None, (), MappingProxyType({}), "text"], ids=repr)
    def test_headers_that_cannot_be_written_are_a_clear_error(self, carrier: Any) -> None:
        """For who calls inject; the error says what was given."""
        with pytest.raises(TypeError, match=type(carrier).__name__):
            inject(carrier, context=context_of())

    def test_a_span_that_raises_leaves_no_stale_context(self, lenient_guard: Callable[[], list[str]]) -> None:
        """A fault while writing is logged once, and the message goes out without a context."""

        class Broken(NonRecordingSpan):
            def get_span_context(self) -> SpanContext:
                raise RuntimeError("broken span")

        context = trace.set_span_in_context(Broken(INVALID_SPAN_CONTEXT), Context())
        for _ in range(2):
            carrier = {"traceparent": OTHER, "mine": 1}
            inject(carrier, context=context)
            assert carrier == {"mine": 1}

        assert len(lenient_guard()) == 1

    @given(
        st.recursive(
            st.none() | st.integers() | st.text() | st.binary() | st.just(VALID) | st.just(VALID.encode()),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["traceparent", "Tracestate", "baggage", b"baggage"]) | st.integers(),
                    inner,
                )
                | st.lists(st.tuples(st.sampled_from(["traceparent", b"tracestate", "baggage"]), inner))
            ),
        )
    )
    def test_reading_never_raises(self, junk: object) -> None:
        """Property: whatever lies in the place of headers, there is an answer, and it is consistent."""
        extraction = read(junk)

        assert extraction.span_context.is_valid == (extraction.reason is None)
        assert trace.get_current_span(extraction.context).get_span_context() == extraction.span_context

    @given(
        st.dictionaries(st.from_regex(r"[A-Za-z]{1,8}", fullmatch=True), st.text(max_size=5), max_size=20),
        st.sampled_from([dict, list]),
    )
    def test_what_was_written_is_read(self, members: dict[str, str], kind: Any) -> None:
        """Property: span and baggage come through both kinds of containers."""
        carrier = kind()
        inject(carrier, context=context_of(members))

        context = extract(carrier)

        assert format(trace.get_current_span(context).get_span_context().trace_id, "032x") == TRACE_ID
        expected = {
            key: value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            for key, value in members.items()
        }
        assert dict(baggage.get_all(context)) == expected


class TestParts:
    """One half of the default, or neither."""

    full: ClassVar = {"traceparent": VALID, "tracestate": "a=1", "baggage": "k=v"}

    def test_the_order_and_nesting_of_the_two_do_not_matter(self) -> None:
        """Composites of exactly these two are done by our codec."""
        nested = CompositePropagator(
            [CompositePropagator([W3CBaggagePropagator()]), TraceContextTextMapPropagator()]
        )
        set_global_textmap(nested)

        assert injected(extract(self.full)) == self.full

    @pytest.mark.parametrize(
        "wrap", [lambda one: one, lambda one: CompositePropagator([one])], ids=["bare", "composite"]
    )
    def test_tracecontext_alone(self, wrap: Callable[[TextMapPropagator], TextMapPropagator]) -> None:
        """Baggage is neither read nor written, and a baggage header of the user's stays."""
        set_global_textmap(wrap(TraceContextTextMapPropagator()))
        carrier = {"traceparent": OTHER, "baggage": "mine=1"}

        write(carrier, context_of({"k": "v"}))

        assert carrier == {"traceparent": VALID, "baggage": "mine=1"}
        assert len(extract(self.full)) == 1

    @pytest.mark.parametrize(
        "wrap", [lambda one: one, lambda one: CompositePropagator([one])], ids=["bare", "composite"]
    )
    def test_baggage_alone(self, wrap: Callable[[TextMapPropagator], TextMapPropagator]) -> None:
        """The trace is neither read nor written."""
        set_global_textmap(wrap(W3CBaggagePropagator()))
        extraction = read(self.full)

        assert injected(context_of({"k": "v"})) == {"baggage": "k=v"}
        assert extraction.reason == "missing"
        assert dict(baggage.get_all(extraction.context)) == {"k": "v"}

    def test_none(self) -> None:
        """`OTEL_PROPAGATORS=none`: nothing is read, written or removed."""
        set_global_textmap(CompositePropagator([]))
        carrier = dict(self.full)

        write(carrier, context_of({"other": "1"}))

        assert carrier == self.full
        assert (extract(self.full), read(self.full).reason) == ({}, "missing")

    def test_a_subclass_is_not_ours_to_replace(self) -> None:
        """Who changed the standard propagator wants it called."""

        class Mine(TraceContextTextMapPropagator):
            def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
                setter.set(carrier, "traceparent", "mine")

        set_global_textmap(Mine())

        assert injected() == {"traceparent": "mine"}


OTHERS: list[tuple[TextMapPropagator, set[str]]] = [
    (B3MultiFormat(), {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled"}),
    (B3SingleFormat(), {"b3"}),
    (JaegerPropagator(), {"uber-trace-id", "uberctx-k"}),
    (
        CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator(), B3SingleFormat()]),
        {"traceparent", "baggage", "b3"},
    ),
]


@pytest.mark.parametrize(("propagator", "names"), OTHERS, ids=["b3multi", "b3", "jaeger", "w3c and b3"])
class TestOther:
    """Any other propagator is called."""

    @pytest.mark.parametrize("kind", [dict, list])
    def test_its_headers_and_only_they(
        self, propagator: TextMapPropagator, names: set[str], kind: Any
    ) -> None:
        """What it writes is on the wire, in the container's types, and is read back from there."""
        set_global_textmap(propagator)
        carrier = kind()

        write(carrier, context_of({"k": "v"}))

        assert {name for name, _ in _items(carrier)} == names
        assert all(type(value) is (str if kind is dict else bytes) for _, value in _items(carrier))
        extraction = read(carrier)
        assert extraction.reason is None
        assert extraction.span_context.is_remote
        assert format(extraction.span_context.trace_id, "032x") == TRACE_ID
        assert format(extraction.span_context.span_id, "016x") == PARENT_ID

    def test_its_headers_are_read_in_any_case_and_as_bytes(
        self, propagator: TextMapPropagator, names: set[str]
    ) -> None:
        """As ours are: also from a one-shot iterator."""
        set_global_textmap(propagator)
        carrier = [
            (name.title().encode(), value.encode())
            for name, value in injected(context_of({"k": "v"})).items()
        ]

        assert read(carrier).reason is None
        assert read(iter(carrier)).reason is None
        assert read(iter([("other", "x")])).reason == "missing"

    def test_its_stale_headers_are_replaced(self, propagator: TextMapPropagator, names: set[str]) -> None:
        """One header of each name afterwards; those of other propagators are not touched."""
        set_global_textmap(propagator)
        stale = {name.upper(): "stale" for name in names} | {"x-other": "1"}

        write(stale, context_of({"k": "v"}))

        assert set(stale) == names | {"x-other"}
        assert "stale" not in stale.values()

    def test_without_a_span_its_fields_are_removed(
        self, propagator: TextMapPropagator, names: set[str]
    ) -> None:
        """No context is better than the one of another message."""
        set_global_textmap(propagator)
        carrier = dict.fromkeys(propagator.fields, "stale") | {"mine": 1}

        write(carrier, Context())

        assert carrier == {"mine": 1}

    def test_missing_and_malformed(self, propagator: TextMapPropagator, names: set[str]) -> None:
        """Malformed: one of its trace headers is there and no span came out. Baggage alone is none."""
        set_global_textmap(propagator)
        field = next(name for name in sorted(names) if name not in ("baggage", "uberctx-k"))

        assert read({}).reason == read({"other": "1"}).reason == read(None).reason == "missing"
        assert read({"baggage": "k=v"}).reason == "missing"
        assert read(broken()).reason == "malformed"
        for junk in ("junk", b"\xff", None, 5, ["a"]):
            extraction = read({field: junk})
            assert (extraction.reason, extraction.span_context) == ("malformed", INVALID_SPAN_CONTEXT)

    def test_what_is_read_is_fresh(self, propagator: TextMapPropagator, names: set[str]) -> None:
        """Nothing of the current context is in it."""
        set_global_textmap(propagator)
        token = attach(context_of({"ambient": "1"}))
        try:
            assert extract({}) == {}
        finally:
            detach(token)

    def test_only_allowed_baggage_leaves_and_enters(
        self, propagator: TextMapPropagator, names: set[str]
    ) -> None:
        """As with our codec."""
        set_global_textmap(propagator)
        carrier = injected(context_of({"k": "v", "secret": "1"}))

        assert "secret" not in str(injected(context_of({"k": "v", "secret": "1"}), allow=["k"]))
        assert baggage.get_baggage("secret", read(carrier, ["k"]).context) is None
        assert read(carrier, ["k"]).reason is None

    def test_only_allowed_properties_enter(self, propagator: TextMapPropagator, names: set[str]) -> None:
        """OpenTelemetry's own reader takes properties for a part of the value."""
        set_global_textmap(propagator)
        carrier = injected(context_of()) | {"baggage": "k=v;p=1;secret=1,secret=2", "uberctx-k": "v"}
        has_baggage = names & {"baggage", "uberctx-k"}

        for allow, value in ((["k"], "v"), (["k", "p"], "v;p=1" if "baggage" in names else "v")):
            found = baggage.get_all(read(carrier, allow).context)
            assert dict(found) == ({"k": value} if has_baggage else {})
        assert read(carrier, []).reason is None
        assert not baggage.get_all(read(carrier, []).context)


class TestStrangePropagators:
    """A propagator is the user's code, and may do anything."""

    def test_one_that_raises_loses_the_context_not_the_message(
        self, lenient_guard: Callable[[], list[str]]
    ) -> None:
        """Read as malformed and empty; nothing half-written is left; each fault is logged once, by name."""
        set_global_textmap(_Raising())
        for _ in range(3):
            carrier = {"X-Half": "stale", "mine": 1}
            write(carrier, context_of())
            assert carrier == {"mine": 1}
            extraction = read({"x-half": "1"})
            assert (extraction.context, extraction.reason) == ({}, "malformed")

        assert len(lenient_guard()) == 2
        assert all("_Raising" in line for line in lenient_guard())

    def test_one_without_fields_is_called_all_the_same(self, lenient_guard: Callable[[], list[str]]) -> None:
        """Nothing is known to be stale then, but what it writes replaces what was there."""
        set_global_textmap(_WithoutFields())
        carrier = {"X-NAME": "stale", "mine": 1}

        write(carrier, context_of())

        assert carrier == {"mine": 1, "X-Name": "5"}
        assert len(lenient_guard()) == 1

    def test_one_that_returns_no_context_is_malformed(self, lenient_guard: Callable[[], list[str]]) -> None:
        """The current context must not come in in its place."""
        set_global_textmap(_WithoutFields())
        token = attach(context_of({"ambient": "1"}))
        try:
            extraction = read({"x": "y"})
        finally:
            detach(token)

        assert (extraction.context, extraction.reason) == ({}, "malformed")

    def test_the_getter_answers_as_opentelemetry_asks(self) -> None:
        """A list of texts or None, every header of the name, and the names as they are written."""
        seen: list[Any] = []

        class Asking(_Raising):
            def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
                seen.extend(
                    [getter.get(carrier, "X-A"), getter.get(carrier, "none"), getter.get(carrier, "bad")]
                )
                seen.append(getter.keys(carrier))
                return Context()

        set_global_textmap(Asking())
        read([("x-a", b"1"), ("X-A", "2"), ("x-a", None), ("bad", b"\xff")])

        assert seen == [["1", "2"], None, None, ["x-a", "X-A", "x-a", "bad"]]

    def test_the_decision_is_made_once_a_propagator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not for each message; and again when another one is configured."""
        decided: list[TextMapPropagator] = []
        decide = queueprop.wire.propagation._decide

        def counting(propagator: TextMapPropagator) -> Any:
            decided.append(propagator)
            return decide(propagator)

        monkeypatch.setattr(queueprop.wire.propagation, "_decide", counting)
        first, second = B3SingleFormat(), CompositePropagator([])
        for propagator in (first, first, second, first):
            set_global_textmap(propagator)
            injected()
            extract({})

        assert decided == [first, second, first]


def test_opentelemetry_keeps_span_and_baggage_where_we_put_them() -> None:
    """The one thing of its inside that we rely on: one key each, the baggage a dict."""
    (span_key, span), (baggage_key, members) = context_of({"k": "v"}).items()

    assert span_key == queueprop.wire.propagation.SPAN_KEY
    assert isinstance(span, NonRecordingSpan)
    assert baggage_key == queueprop.wire.propagation.BAGGAGE_KEY
    assert type(members) is dict
    assert get_current() == {}


def test_an_extraction_holds_what_it_was_given() -> None:
    """It is a plain record; the engine may make one itself."""
    extraction = Extraction(Context(), INVALID_SPAN_CONTEXT, "missing")

    assert (extraction.context, extraction.span_context, extraction.reason) == (
        {},
        INVALID_SPAN_CONTEXT,
        "missing",
    )


def _items(carrier: Any) -> list[Any]:
    return list(carrier.items()) if isinstance(carrier, dict) else list(carrier)


class _Raising(TextMapPropagator):
    @property
    def fields(self) -> set[str]:
        return {"x-half"}

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
        raise RuntimeError("extract")

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        setter.set(carrier, "x-half", "written")
        raise RuntimeError("inject")


class _WithoutFields(TextMapPropagator):
    @property
    def fields(self) -> set[str]:
        raise RuntimeError("no fields")

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        return None

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        setter.set(carrier, "X-Name", 5)

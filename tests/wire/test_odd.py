"""Odd objects in every place: reading and writing never raise, nothing odd comes out, and no neighbour is lost."""

from __future__ import annotations

import enum
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import wrapt
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.b3 import B3MultiFormat

from queueprop import guard
from queueprop.wire import headers
from queueprop.wire.propagation import BAGGAGE_KEY, extract, inject, read
from queueprop.wire.w3c import BaggageValue

from . import fuzz
from .odd import (
    ENDLESS,
    ERRORS,
    FALSE,
    HONEST,
    READ_ONLY,
    WRITABLE,
    Lazy,
    contained,
    container_that_raises,
    object_that_raises,
    pair_that_raises,
    raising,
    text_that_raises,
)
from .odd import PAIRS as PLAIN_PAIRS
from .odd import READABLE as PLAIN_READABLE
from .odd import UNREADABLE as PLAIN_UNREADABLE

VALID = fuzz.TRACEPARENT
READABLE = PLAIN_READABLE | text_that_raises(RuntimeError)
UNREADABLE = PLAIN_UNREADABLE | object_that_raises(RuntimeError)
PAIRS = PLAIN_PAIRS | pair_that_raises(RuntimeError)
BROKEN = FALSE | container_that_raises(RuntimeError)
AS_NAMES = {name: make for name, make in READABLE.items() if "bytearray" not in name and "view" not in name}


@pytest.fixture
def lenient_guard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[str]]:
    """A container that raises is a fault that the guard takes, as for a user; returns what was logged."""
    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(guard, "_logged", {})
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestRead:
    @pytest.mark.parametrize("make", READABLE.values(), ids=READABLE)
    def test_a_value_that_stands_for_a_text_is_read_as_plain_text(self, make: Any) -> None:
        """Subclasses by their content, proxies by what they stand for, whichever of their methods raises or lies."""
        found = headers.text(make("text"))

        assert (type(found), found) == (str, "text")
        carrier = {"traceparent": make(VALID), "tracestate": make("a=1"), "baggage": make("k=v")}
        context = extract(carrier)
        fuzz.assert_plain(context)
        plain: dict[str, str] = {}
        inject(plain, context=context)
        assert plain == {"traceparent": VALID, "tracestate": "a=1", "baggage": "k=v"}

    @pytest.mark.parametrize("make", AS_NAMES.values(), ids=AS_NAMES)
    def test_a_name_that_stands_for_a_text_is_found(self, make: Any) -> None:
        """In any case, and the name that comes out is plain."""
        pairs = [(make("TraceParent"), VALID)]

        assert read(pairs).reason is None
        (name,) = headers.names_of(pairs)
        assert (type(name), name) == (str, "TraceParent")

    @pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
    def test_a_value_that_stands_for_no_text_is_malformed(self, make: Any) -> None:
        """Without a fault: it is junk like any other."""
        value = make(VALID)
        assert headers.text(value) != VALID
        extraction = read({"traceparent": value, "tracestate": value, "baggage": value})

        assert (extraction.context, extraction.reason) == ({}, "malformed")

    @pytest.mark.parametrize("make", (UNREADABLE | READABLE).values(), ids=(UNREADABLE | READABLE))
    def test_an_odd_neighbour_hides_no_header(self, make: Any) -> None:
        """As a name, as a value, in the place of a pair, before the good header and behind it."""
        odd, good = make("traceparents"), ("traceparent", VALID)
        for pairs in ([(odd, VALID), good], [good, (odd, odd)], [("other", odd), good], [odd, good, odd]):
            assert read(pairs).reason is None
            assert read(tuple(pairs)).reason is None
            assert read(contained(dict, [pair for pair in pairs if pair is not odd])).reason is None

    @pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
    def test_an_odd_pair_hides_no_header(self, make: Any) -> None:
        """Whatever stands in the list in the place of a pair."""
        assert read([make("other", 1), ("traceparent", VALID), make(b"other", 1)]).reason is None

    @given(
        st.sampled_from(sorted(HONEST)),
        st.lists(
            st.tuples(st.sampled_from(sorted(READABLE | UNREADABLE)), st.sampled_from(sorted(READABLE))),
            max_size=4,
        ),
        st.sampled_from(sorted(READABLE)),
        st.integers(0, 4),
    )
    def test_every_container_is_read_between_odd_headers(
        self, container: str, others: list[tuple[str, str]], value: str, at: int
    ) -> None:
        """Property: one good traceparent is found in every kind of container, whatever lies beside it."""
        makers = READABLE | UNREADABLE
        pairs = [(makers[name]("others"), makers[other]("1")) for name, other in others]
        pairs.insert(at, ("traceparent", READABLE[value](VALID)))

        extraction = read(contained(HONEST[container], pairs))

        assert extraction.reason is None
        fuzz.assert_plain(extraction.context)

    @pytest.mark.parametrize("contain", BROKEN.values(), ids=BROKEN)
    def test_a_broken_container_is_read_without_an_exception(
        self, contain: Any, lenient_guard: Callable[[], list[str]]
    ) -> None:
        """One whose methods raise, or that only says it is one: it has no headers, or those that it gave."""
        made = contained(contain, [("traceparent", VALID), ("baggage", "k=v")])

        fuzz.check_read(made)
        assert all(type(name) is str for name in headers.names_of(made))

    @pytest.mark.parametrize("contain", ENDLESS.values(), ids=ENDLESS)
    def test_a_container_without_an_end_is_read_so_far(self, contain: Any) -> None:
        """65,536 headers of it."""
        assert read(contain([("traceparent", VALID)])).reason == "malformed"
        assert len(headers.names_of(contain([("a", 1)]))) == headers.MOST_HEADERS

    @pytest.mark.usefixtures("_other_propagator")
    @pytest.mark.parametrize("contain", (HONEST | BROKEN).values(), ids=(HONEST | BROKEN))
    def test_with_another_propagator_too(self, contain: Any, lenient_guard: Callable[[], list[str]]) -> None:
        """B3 of OpenTelemetry asks our getter, and writes through our setter."""
        made = contained(contain, [("x-b3-traceid", VALID[3:35]), ("x-b3-spanid", VALID[36:52])])

        fuzz.assert_plain(extract(made))
        assert fuzz.check_written(made) in ("refused", "found", "not found")

    def test_a_fault_of_the_codec_itself_is_malformed(
        self, lenient_guard: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """extract never raises, not even where it is we who are wrong."""
        monkeypatch.setattr("queueprop.wire.w3c.parse_traceparent", lambda values: 1 / 0)

        extraction = read({"traceparent": VALID})

        assert (extraction.context, extraction.reason) == ({}, "malformed")
        assert len(lenient_guard()) == 1


@pytest.fixture
def _other_propagator() -> Iterator[None]:
    before = get_global_textmap()
    set_global_textmap(B3MultiFormat())
    yield
    set_global_textmap(before)


class TestWrite:
    @pytest.mark.parametrize("contain", WRITABLE.values(), ids=WRITABLE)
    def test_what_can_be_written_is(self, contain: Any) -> None:
        """Also where earlier headers and odd ones lie in it: one context is there afterwards, and the odd ones."""
        other = raising(str, "__eq__", RuntimeError)("other")
        made = contain(
            [("Traceparent", VALID), ("tracestate", "old=1"), (other, None), (b"x", 1), ("y", b"2")]
        )

        inject(made, context=fuzz.CONTEXT)

        found = headers.read_all(made, ("traceparent", "tracestate", "other", "x", "y"))
        assert [headers.text(value) for value in found.pop("traceparent")] == [VALID]
        assert found == {"other": [None], "x": [1], "y": [b"2"]}

    @pytest.mark.parametrize("contain", READ_ONLY.values(), ids=READ_ONLY)
    def test_what_cannot_be_written_is_the_one_clear_error(self, contain: Any) -> None:
        """The TypeError that is documented, whatever the container itself raises."""
        with pytest.raises(TypeError, match=r"into a dict or a list of \(name, value\) pairs; got "):
            inject(contain([("a", 1)]), context=fuzz.CONTEXT)

    @pytest.mark.parametrize("contain", BROKEN.values(), ids=BROKEN)
    def test_a_broken_container_is_written_or_that_error(
        self, contain: Any, lenient_guard: Callable[[], list[str]]
    ) -> None:
        """Nothing else is raised."""
        fuzz.check_written(contained(contain, [("traceparent", VALID), ("baggage", "k=v"), (b"x", 1)]))

    def test_headers_that_stay_are_that_error(self) -> None:
        """Of a ChainMap only the first mapping can be written: better no context than two."""
        made = BROKEN["ChainMap of read-only headers"]([("baggage", "old=1")])

        with pytest.raises(TypeError, match="got ChainMap") as caught:
            inject(made, context=fuzz.CONTEXT)
        assert isinstance(caught.value.__cause__, LookupError)

    @pytest.mark.parametrize("make", (UNREADABLE | READABLE).values(), ids=(UNREADABLE | READABLE))
    def test_an_odd_header_stays_as_it_is(self, make: Any) -> None:
        """As a name or a value, in a list and in a dict: the very object, in its place."""
        odd = make("other")
        pairs: list[Any] = [odd, (odd, 1), ("other", odd), ("traceparent", "stale")]
        kept = pairs[:3]
        inject(pairs, context=fuzz.CONTEXT)
        assert all(one is other for one, other in zip(pairs[:3], kept, strict=True))
        assert pairs[3:] == [("traceparent", VALID.encode())]

        table = {5: odd, "TRACEPARENT": "stale"}
        inject(table, context=fuzz.CONTEXT)
        assert table.pop("traceparent") == VALID
        assert [*table] == [5]
        assert table[5] is odd


class Color(str, enum.Enum):
    RED = "red"
    DARK = "dark red"


class TestBaggage:
    @pytest.mark.parametrize("make", (READABLE | UNREADABLE).values(), ids=(READABLE | UNREADABLE))
    def test_an_odd_value_goes_out_as_opentelemetry_sends_it(self, make: Any) -> None:
        """As its str(), or, where that raises, not at all: its neighbours go, which there are lost with it."""
        value = make("odd")
        carrier: dict[str, str] = {}

        inject(carrier, context=Context({BAGGAGE_KEY: {"a": "1", "odd": value, "b": "2"}}))

        fuzz.assert_sent(carrier)
        sent = carrier["baggage"]
        assert (sent[:4], sent[-4:]) == ("a=1,", ",b=2") or sent == "a=1,b=2"
        try:
            theirs = str(value)
        except Exception:
            assert sent == "a=1,b=2"
        else:
            expected = theirs.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            assert baggage.get_baggage("odd", extract(carrier)) == expected

    @pytest.mark.parametrize("make", AS_NAMES.values(), ids=AS_NAMES)
    def test_an_odd_key_is_sent_as_its_text_or_left_out_alone(self, make: Any) -> None:
        """A text of any class, by its str(); bytes are no key."""
        try:
            members = {"a": "1", make("odd"): "2", "b": "3"}
        except Exception:
            return  # it cannot be in a dict
        carrier: dict[str, str] = {}

        inject(carrier, context=Context({BAGGAGE_KEY: members}))

        assert carrier["baggage"] in ("a=1,odd=2,b=3", "a=1,lied=2,b=3", "a=1,Color.RED=2,b=3", "a=1,b=3")

    def test_two_keys_of_one_text_are_one_member(self) -> None:
        """As for who reads them, so that the second hop sends what the first one does."""
        members: dict[Any, Any] = {"a": "1", Lazy("a"): "2", Lazy("b"): "3", Lazy("b"): "4"}
        assert len(members) == 4
        carrier: dict[str, str] = {}

        inject(carrier, context=Context({BAGGAGE_KEY: members}))

        assert carrier == {"baggage": "a=2,b=4"}

    def test_an_enum_of_text_is_sent_as_opentelemetry_sends_it(self) -> None:
        """Whether all fits or members are left out, as a key and as a value, allowed by the name that is sent."""
        members: dict[Any, Any] = {"color": Color.RED, "shade": Color.DARK, Color.RED: "1"}
        theirs: dict[str, str] = {}
        W3CBaggagePropagator().inject(theirs, Context({BAGGAGE_KEY: members}))
        assert theirs == {"baggage": "color=Color.RED,shade=Color.DARK,Color.RED=1"}

        for further in ({}, {"large": "x" * 9000}):
            carrier: dict[str, str] = {}
            inject(carrier, context=Context({BAGGAGE_KEY: members | further}))
            assert carrier == theirs

    @pytest.mark.parametrize("key", ["baggage", "tracestate"])
    def test_a_proxy_loses_nothing(self, key: str) -> None:
        """What OpenTelemetry would send is sent."""
        proxied = wrapt.ObjectProxy("42")
        carrier: dict[str, str] = {}

        inject(carrier, context=baggage.set_baggage("user", proxied, baggage.set_baggage("plan", "gold")))

        assert carrier == {"baggage": "plan=gold,user=42"}

    def test_a_value_that_raises_is_told_in_one_line(self, lenient_guard: Callable[[], list[str]]) -> None:
        """As the user's own slip: once, without a traceback, and no bug of ours."""
        broken = raising(str, "__str__", RuntimeError)("text")
        for _ in range(3):
            inject({}, context=Context({BAGGAGE_KEY: {"k": broken}}))

        (line,) = lenient_guard()
        assert "a member of the baggage: it raised RuntimeError: str.__str__" in line
        assert "report" not in line

    def test_what_is_read_knows_no_odd_class(self) -> None:
        """Two hops of odd headers: the values are str, but for those that keep their wire form."""
        context = extract([(b"baggage", bytearray(b"a=1,b=%ff;p=1,c=3")), (Color("red"), 1)])

        kinds = {key: type(value) for key, value in baggage.get_all(context).items()}
        assert kinds == {"a": str, "b": BaggageValue, "c": str}


class Limit(Exception):
    """A library's time limit, which a timer raises wherever the program stands."""


@pytest.mark.parametrize("error", [Limit, *ERRORS[:3]])
@pytest.mark.parametrize(
    "act",
    [
        lambda odd: extract({odd(str, "__str__"): 1, "traceparent": wrapt.ObjectProxy(odd(str, "__str__"))}),
        lambda odd: extract([(wrapt.ObjectProxy(odd(str, "__str__")), 1), 5]),
        lambda odd: extract([(odd(str, "__len__"), 1)]),
        lambda odd: extract([odd(tuple, "__len__"), 5]),
        lambda odd: extract(odd(list, "__iter__")),
        lambda odd: extract(odd(dict, "items")),
        lambda odd: inject({"tracestate": 1, odd(str, "__len__"): 1}),
        lambda odd: inject(odd(dict, "__setitem__"), context=fuzz.CONTEXT),
        lambda odd: inject(odd(list, "extend"), context=fuzz.CONTEXT),
        lambda odd: inject({}, context=Context({BAGGAGE_KEY: {"k": odd(str, "__str__")}})),
        lambda odd: inject({}, context=Context({BAGGAGE_KEY: odd(dict, "items")})),
    ],
    ids=[
        "value",
        "name",
        "length",
        "pair",
        "list",
        "table",
        "header",
        "dict",
        "append",
        "baggage",
        "members",
    ],
)
def test_what_is_meant_for_the_program_goes_through(
    act: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit, and what a signal handler raises while the program is in our code, of whatever class it is."""
    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(guard, "_not_ours", (Limit,))

    def strike(*args: Any) -> Any:
        if error is Limit:
            raise Limit
        signal.raise_signal(signal.SIGUSR1)

    def handler(*args: Any) -> None:
        raise error("from a signal handler")

    def odd(base: type[Any], method: str) -> Any:
        body = {method: strike, "__bool__": lambda self: True}
        return type("Odd", (base,), body)([("a", 1)] if base is not str else "traceparent")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(error, match=None if error is Limit else "from a signal handler"):
            act(odd)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("seed", range(4))
def test_random_odd_inputs(seed: int, lenient_guard: Callable[[], list[str]]) -> None:
    """A few of what ``python -m tests.wire.fuzz`` makes many of."""
    seen = fuzz.run(400, seed)

    assert seen["read: found"] > 10
    assert seen["written: found"] > 100
    assert seen["written: refused"] > 10

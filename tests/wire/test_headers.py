"""Header containers: what is found in them, and what is left in them after writing."""

from __future__ import annotations

import logging
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queueprop import guard
from queueprop.wire import headers

NAMES = ("traceparent", "tracestate", "baggage")
SPELLINGS: list[Any] = ["traceparent", "Traceparent", "TRACEPARENT", b"traceparent", b"TraceParent"]
JUNK: list[Any] = [
    None,
    0,
    1.5,
    True,
    "traceparent",
    b"traceparent",
    ...,
    [],
    (),
    {},
    [None, 3, "ab", ("traceparent",)],
]


NAMED = (
    st.sampled_from([*SPELLINGS, "tenant", "baggage", b"tracestate"])
    | st.text()
    | st.binary()
    | st.integers()
)


class TestIsFree:
    """The short way of most messages: nothing to read, and nothing to remove before something is written."""

    @pytest.mark.parametrize("free", [{}, [], {"tenant": 1}, [("tenant", b"1")], {"": None}])
    def test_plain_headers_of_others(self, free: Any) -> None:
        """A dict or a list of pairs, of plain text."""
        assert headers.is_free_of(free, NAMES)

    @pytest.mark.parametrize(
        "unclear",
        [
            None,
            (),
            {"Baggage": ""},
            {b"tenant": ""},
            {1: ""},
            OrderedDict(),
            UserDict(),
            [("tracestate", b"")],
            [["tenant", b""]],
            [("tenant",)],
            ["tenant"],
            [(b"tenant", b"")],
            *JUNK[:4],
        ],
    )
    def test_what_only_reading_tells(self, unclear: Any) -> None:
        """Other containers, other names, and names as long as one of ours."""
        assert not headers.is_free_of(unclear, NAMES)

    @given(st.dictionaries(NAMED, st.text()) | st.lists(st.tuples(NAMED, st.text()) | st.none()))
    def test_it_is_what_the_long_way_finds(self, container: Any) -> None:
        """Where it says so, reading finds nothing, and writing only adds."""
        if headers.is_free_of(container, NAMES):
            assert headers.read_all(container, NAMES) == {}
            size = len(container)
            headers.replace(container, NAMES, {"traceparent": "1"})
            assert len(container) == size + 1


class TestRead:
    @pytest.mark.parametrize("name", SPELLINGS)
    @pytest.mark.parametrize("container", [dict, OrderedDict, UserDict, list, tuple, set, iter])
    def test_a_name_is_found_in_every_container_in_any_case_as_text_or_bytes(
        self, name: Any, container: Any
    ) -> None:
        """Mappings and pairs, names in any case, str or bytes: the value is found under the plain name."""
        found = headers.read_all(container([("other", 1), (name, "value")]), NAMES)

        assert found == {"traceparent": ["value"]}

    def test_all_occurrences_are_told_in_the_order_of_the_container(self) -> None:
        """Nothing is chosen among several headers of one name: the codec must know of all of them."""
        pairs = [("baggage", b"a=1"), ["tracestate", b"x=1"], ("Baggage", b"b=2"), (b"BAGGAGE", None)]

        assert headers.read_all(pairs, NAMES) == {"baggage": [b"a=1", b"b=2", None], "tracestate": [b"x=1"]}

    def test_a_mapping_may_have_one_name_in_several_spellings(self) -> None:
        """A dict with `traceparent` and `Traceparent` has that header twice."""
        found = headers.read_all({"traceparent": "1", "Traceparent": "2", b"TRACEPARENT": "3"}, NAMES)

        assert found == {"traceparent": ["1", "2", "3"]}

    def test_an_unusable_value_is_there_and_a_missing_name_is_not(self) -> None:
        """None, a number, a table: such a header is in the answer, so that it can be counted as malformed."""
        found = headers.read_all({"traceparent": None, "baggage": {"nested": 1}}, NAMES)

        assert found == {"traceparent": [None], "baggage": [{"nested": 1}]}

    @pytest.mark.parametrize("junk", JUNK, ids=repr)
    def test_junk_has_no_headers(self, junk: object) -> None:
        """Whatever a message has in the place of its headers is read without an exception."""
        assert headers.read_all(junk, NAMES) == {}
        assert headers.names_of(junk) == []

    def test_junk_beside_a_header_does_not_hide_it(self) -> None:
        """Entries that are no pairs, and names that are no text, are passed over."""
        good = ("traceparent", "value")
        junk: list[Any] = [None, 7, (None, 1), (3, 4), ("a", "b", "c"), {"x": 1}, ("t" * 11,), ((1,) * 11, 2)]

        assert headers.read_all([*junk, good], NAMES) == {"traceparent": ["value"]}
        assert headers.read_all({None: 1, 5: 2, (1,) * 11: 3, "traceparent": "v"}, NAMES) == {
            "traceparent": ["v"]
        }
        assert headers.read_all({(1,) * 11: 3, "traceparent": "v"}, NAMES) == {"traceparent": ["v"]}

    def test_a_container_that_raises_has_no_headers_and_is_logged_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A broken mapping is a fault that the guard takes: the message goes on."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})

        assert headers.read_all(_Broken(), NAMES) == {}
        assert headers.names_of(_Broken()) == []
        assert [record.levelno for record in caplog.records if record.levelno > logging.DEBUG] == [
            logging.WARNING
        ]

    def test_names_are_told_as_they_are_written(self) -> None:
        """Some propagators look for a prefix; bytes are decoded, and what is no text is left out."""
        assert headers.names_of({"Uberctx-User": "1", b"b": 2, 3: 4, b"\xff": 5}) == ["Uberctx-User", "b"]
        assert headers.names_of([("a", 1), "bc", (b"A", 2)]) == ["a", "A"]

    @given(
        st.recursive(
            st.none() | st.integers() | st.text() | st.binary(),
            lambda inner: (
                st.lists(inner)
                | st.tuples(st.sampled_from(SPELLINGS) | st.text() | st.none(), inner)
                | st.dictionaries(st.sampled_from(SPELLINGS) | st.binary() | st.none() | st.integers(), inner)
            ),
        )
    )
    def test_reading_never_raises(self, junk: object) -> None:
        """Property: any nesting of lists, tuples, tables and scalars is read, for the asked names."""
        assert set(headers.read_all(junk, NAMES)) <= set(NAMES)
        assert all(isinstance(name, str) for name in headers.names_of(junk))


class TestText:
    @pytest.mark.parametrize(
        "value",
        [
            "é",
            "é".encode(),
            bytearray("é".encode()),
            memoryview("é".encode()),
            memoryview("xéx".encode())[1:3],
        ],
    )
    def test_text_and_bytes_of_every_kind_are_read(self, value: object) -> None:
        """str, bytes, bytearray and memoryview are the same text."""
        assert headers.text(value) == "é"

    def test_a_strided_memoryview_is_read(self) -> None:
        """A view need not be contiguous."""
        assert headers.text(memoryview(b"a-b-")[::2]) == "ab"

    def test_a_released_memoryview_is_no_text(self) -> None:
        """A client that has given its buffer back leaves nothing to read."""
        view = memoryview(b"abc")
        view.release()

        assert headers.text(view) is None

    @pytest.mark.parametrize("value", [None, 1, 1.0, True, [], {}, ["text"], b"\xff\xfe", bytearray(b"\xc3")])
    def test_anything_else_is_no_text(self, value: object) -> None:
        """Other types and invalid UTF-8 are unusable, never converted."""
        assert headers.text(value) is None


class TestWrite:
    def test_into_a_dict_goes_text(self) -> None:
        """AMQP tables and job metadata take str names and str values."""
        carrier: dict[Any, Any] = {"other": 1}

        headers.write(carrier, "traceparent", "new")

        assert carrier == {"other": 1, "traceparent": "new"}

    def test_into_a_list_of_pairs_goes_utf8(self) -> None:
        """Kafka clients want a str name and a bytes value."""
        carrier: list[Any] = [("other", b"1")]

        headers.write(carrier, "baggage", "k=é")

        assert carrier == [("other", b"1"), ("baggage", "k=é".encode())]

    def test_into_a_mapping_of_bytes_goes_bytes(self) -> None:
        """Where all names are bytes, ours are too; one str name is enough for str."""
        all_bytes: dict[Any, Any] = {b"Traceparent": b"old"}
        mixed: dict[Any, Any] = {b"other": b"1", "text": "2"}

        headers.write(all_bytes, "traceparent", "new")
        headers.write(mixed, "traceparent", "new")

        assert all_bytes == {b"traceparent": b"new"}
        assert mixed == {b"other": b"1", "text": "2", "traceparent": "new"}

    def test_into_an_empty_mapping_goes_text(self) -> None:
        """An empty mapping tells nothing of its types: str, as everywhere but in Kafka."""
        carrier: dict[Any, Any] = {}

        headers.write(carrier, "traceparent", "new")

        assert carrier == {"traceparent": "new"}

    @pytest.mark.parametrize("make", [dict, UserDict])
    def test_every_spelling_is_removed_from_a_mapping_before_one_is_written(self, make: Any) -> None:
        """Exactly one header of the name is there afterwards, whatever was forwarded."""
        carrier = make(dict.fromkeys(SPELLINGS, "old") | {"other": 1, 5: 6, (1,) * 11: 7})

        headers.write(carrier, "traceparent", "new")

        assert dict(carrier) == {"other": 1, 5: 6, (1,) * 11: 7, "traceparent": "new"}

    def test_every_spelling_is_removed_from_a_list_before_one_is_written(self) -> None:
        """The same in pairs; entries that are no pairs stay, and so does the list object."""
        carrier: list[Any] = [
            None,
            *[(name, b"old") for name in SPELLINGS],
            ["TraceParent", b"old"],
            ("x", b"1"),
        ]
        same = carrier

        headers.write(carrier, "traceparent", "new")

        assert carrier == [None, ("x", b"1"), ("traceparent", b"new")]
        assert same is carrier

    def test_a_mapping_that_ignores_case_itself_is_written(self) -> None:
        """Removing one spelling there removes them all."""
        carrier = _CaseInsensitive()
        carrier["Traceparent"] = "old"

        headers.write(carrier, "traceparent", "new")

        assert list(carrier.items()) == [("traceparent", "new")]

    def test_several_names_are_removed_at_once(self) -> None:
        """Only the named headers go."""
        table: dict[Any, Any] = {"TraceState": 1, b"baggage": 2, "baggages": 3, "traceparent": 4}
        pairs = [("TraceState", b"1"), ("baggages", b"2")]

        headers.remove(table, ("tracestate", "baggage"))
        headers.remove(pairs, frozenset(["tracestate"]))

        assert table == {"baggages": 3, "traceparent": 4}
        assert pairs == [("baggages", b"2")]

    @pytest.mark.parametrize("container", [None, (), (("a", b"1"),), MappingProxyType({}), "text", 5, {1}])
    def test_a_container_that_cannot_be_written_is_one_clear_error(self, container: object) -> None:
        """None, a tuple, a read-only mapping: the error says what is wanted and what was given."""
        with pytest.raises(TypeError, match=rf"a dict or a list of .* pairs; got {type(container).__name__}"):
            headers.write(container, "traceparent", "new")

    @given(
        st.lists(st.tuples(st.sampled_from(SPELLINGS) | st.text() | st.binary(), st.text() | st.binary())),
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
    def test_what_was_written_is_read_and_nothing_else_changes(
        self, pairs: list[Any], as_dict: bool, value: str
    ) -> None:
        """Property: after a write one header has the name, and all others are there in their order."""
        carrier: Any = dict(pairs) if as_dict else list(pairs)
        others = [pair for pair in _items(carrier) if not headers.read_all([pair], ("traceparent",))]

        headers.write(carrier, "traceparent", value)

        (written,) = headers.read_all(carrier, ("traceparent",))["traceparent"]
        assert headers.text(written) == value
        assert _items(carrier)[:-1] == others


def _items(carrier: Any) -> list[Any]:
    return list(carrier.items()) if isinstance(carrier, dict) else list(carrier)


class _Broken(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("broken")

    def __len__(self) -> int:
        return 1


class _CaseInsensitive(MutableMapping[str, str]):
    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, str]] = {}

    def __getitem__(self, key: str) -> str:
        return self._entries[key.lower()][1]

    def __setitem__(self, key: str, value: str) -> None:
        self._entries[key.lower()] = (key, value)

    def __delitem__(self, key: str) -> None:
        del self._entries[key.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, _ in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)


class _Uncomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


def test_a_copy_that_was_written_to_is_told_from_one_that_was_not() -> None:
    """A header more, fewer or replaced is an alteration; values are not compared, which a caller's may not bear."""
    value = _Uncomparable()
    given = {"shop": value, "traceparent": "old"}
    assert not headers.is_altered(dict(given), given)
    assert headers.is_altered({"shop": value}, given)
    assert headers.is_altered({**given, "baggage": "a=1"}, given)
    assert headers.is_altered({"shop": value, "traceparent": "new"}, given)
    assert headers.is_altered({"shop": value, "Traceparent": "old"}, given)

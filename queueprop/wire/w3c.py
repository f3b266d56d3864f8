"""The W3C wire format: ``traceparent``, ``tracestate`` (Trace Context level 2) and ``baggage``.

Strict in both directions, and total: whatever the values are, reading answers with what is usable and never
raises. It does not lean on OpenTelemetry's own codec, which passes trailing newlines and repeated headers,
refuses level-2 keys, reads one baggage header of several, spoils its properties and turns ``+`` into a space.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from queueprop import guard
from queueprop.wire.headers import text

# Optional white space around a value or a member, as HTTP has it: a newline is none.
_OWS = " \t"

# A later version may be longer than 55 characters, but what is longer than this is no traceparent.
_TRACEPARENT_LONGEST = 512
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    # What a later version adds: no control character, and no comma, which would begin a second header.
    r"(-[^\x00-\x08\x0a-\x1f\x7f,]*)?"
)
_TRACEPARENT_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
_KNOWN_FLAGS = 0x03  # sampled and random
_WRITTEN_FLAGS = ("00", "01", "02", "03")
_FLAGS = {f"{flags:02x}": TraceFlags(flags & _KNOWN_FLAGS) for flags in range(256)}

_TRACESTATE_MEMBERS = 32
# 32 of the longest members have 16,447 characters; the rest is room for white space and empty members.
_TRACESTATE_LONGEST = 32_768
# The specification asks for 512 at least. OpenTelemetry's own reader drops all of a header longer than this.
_TRACESTATE_SENT = 8192
_TRACESTATE_BIG_MEMBER = 128
_TRACESTATE_MEMBER = re.compile(
    r"([a-z0-9][a-z0-9_\-*/@]{0,255})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)

_BAGGAGE_MEMBERS = 64
_BAGGAGE_BYTES = 8192
# How much of one header is looked through for members that fit.
_BAGGAGE_READ = 65_536
_BAGGAGE_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAGGAGE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
# `+` and `=` may stand as they are, but peers that read a `+` as a space, or split at every `=`, exist.
_SENT_AS_IT_IS = "!#$&'()*-./:<>?@[]^_`{|}~"
_MAY_STAND_AS_IT_IS = _SENT_AS_IT_IS + "+="
_PLAIN_VALUE = re.compile(f"[A-Za-z0-9{re.escape(_SENT_AS_IT_IS)}]*")
# A value that is written as it was read, if it is UTF-8: encoded is what has to be, and in upper case.
_AS_WRITTEN = re.compile(
    f"{_PLAIN_VALUE.pattern}(?:%(?:[0189A-F][0-9A-F]|2[025BC]|3[BD]|5C|7F){_PLAIN_VALUE.pattern})*"
)
# Under this name a member is told of whose own methods raise.
_MEMBER = "a member of the baggage"


def parse_traceparent(values: Sequence[object]) -> SpanContext | None:
    """Returns the remote span context that a message's ``traceparent`` names, without its tracestate.

    Args:
        values: every value found under that name, as found on the wire.

    None means: restart the trace. So it is for whatever level 2 calls invalid, and for more than one value.
    Unknown flags are cleared.
    """
    if len(values) != 1:
        return None
    found = values[0]
    value = found if type(found) is str else text(found)
    if value is None or len(value) > _TRACEPARENT_LONGEST:
        return None
    # Nearly all are of version 00 and valid: with less to look for this takes two thirds of the time.
    plain = _TRACEPARENT_00(value)
    if plain is not None:
        hex_trace_id, hex_span_id, plain_flags = plain.groups()
        trace_id, span_id = int(hex_trace_id, 16), int(hex_span_id, 16)
        return SpanContext(trace_id, span_id, True, _FLAGS[plain_flags]) if trace_id and span_id else None
    match = _TRACEPARENT.fullmatch(value) or _TRACEPARENT.fullmatch(value.strip(_OWS))
    if match is None:
        return None
    version, later_trace_id, later_span_id, flags, rest = match.groups()
    if rest is not None and version == "00":
        return None
    return SpanContext(int(later_trace_id, 16), int(later_span_id, 16), True, _FLAGS[flags])


def format_traceparent(span_context: SpanContext) -> str:
    """Returns the ``traceparent`` of a span context, in version 00; '' when the span context is not valid."""
    # Unpacked as the tuple that it is: each of its properties would be a call.
    trace_id, span_id, _, flags, _, is_valid = span_context
    if not is_valid:
        return ""
    # By their bytes, which takes half as long as formatting numbers.
    return (
        f"00-{trace_id.to_bytes(16, 'big').hex()}-{span_id.to_bytes(8, 'big').hex()}"
        f"-{_WRITTEN_FLAGS[flags & _KNOWN_FLAGS]}"
    )


def parse_tracestate(values: Sequence[object]) -> TraceState:
    """Returns the members of all ``tracestate`` values, joined in order; none when any of them is malformed.

    Args:
        values: every value found under that name, as found on the wire.

    Of members with the same key the first one stays, which is the newest.
    """
    texts = [text(value) for value in values]
    if None in texts:
        return _EMPTY_TRACESTATE
    header = ",".join(texts)  # type: ignore[arg-type]
    if not header or len(header) > _TRACESTATE_LONGEST:
        return _EMPTY_TRACESTATE
    members: dict[str, str] = {}
    for member in header.split(","):
        member = member.strip(_OWS)
        if not member:
            continue
        match = _TRACESTATE_MEMBER.fullmatch(member)
        if match is None:
            return _EMPTY_TRACESTATE
        members.setdefault(match[1], match[2])
    if len(members) > _TRACESTATE_MEMBERS:
        return _EMPTY_TRACESTATE
    return _TraceState._of(members)


def format_tracestate(trace_state: TraceState) -> str:
    """Returns the ``tracestate`` to send; '' when there is nothing to send.

    Where it would be longer than 8192 characters, members over 128 characters are left out, from the right.
    """
    if not isinstance(trace_state, _TraceState):
        trace_state = _TraceState(trace_state.items())
    header = trace_state.to_header()
    return header if len(header) <= _TRACESTATE_SENT else _cut_tracestate(header.split(","))


class BaggageValue(str):
    """A baggage value that goes out as it came in: equal to its text, and it takes along what that does not say.

    Copied it is the same; pickled it is plain text, since whoever loads it need not have queueprop.

    Attributes:
        properties: the raw text behind the value's first ``;``.
        raw: the value as it stands on the wire; None where that is what would be written anyway. What was encoded
            in another way, or is no UTF-8, is the same at every hop, and no longer.
    """

    __slots__ = ("properties", "raw")

    properties: str
    raw: str | None

    def __new__(cls, value: str = "", properties: str = "", raw: str | None = None) -> BaggageValue:
        self = super().__new__(cls, value)
        self.properties = text(properties) or ""
        self.raw = text(raw) if raw is not None else None
        return self

    def __copy__(self) -> BaggageValue:
        return self

    def __deepcopy__(self, memo: object) -> BaggageValue:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type[str], tuple[str]]:
        return str, (str.__str__(self),)


def parse_baggage(values: Sequence[object]) -> dict[str, str]:
    """Returns the baggage of all ``baggage`` values, in order, decoded.

    Args:
        values: every value found under that name, as found on the wire.

    A malformed member is left out, and so is one that goes beyond 64 members or 8192 bytes. Of members with
    the same key the last one stays. A value is a ``BaggageValue`` where it has properties, or was encoded otherwise
    than ``format_baggage`` would do it (broken UTF-8, which is read as U+FFFD): that writes it as it came.
    """
    baggage: dict[str, str] = {}
    room = _BAGGAGE_BYTES + 1  # the first member has no comma
    for value in values:
        for member in _baggage_members(value):
            if len(baggage) == _BAGGAGE_MEMBERS:
                return baggage
            if len(member) >= room:
                continue
            parsed = _parse_baggage_member(member)
            if parsed is None:
                continue
            room -= len(member) + 1
            baggage[parsed[0]] = parsed[1]
    return baggage


def format_baggage(baggage: Mapping[str, object]) -> str:
    """Returns the ``baggage`` to send; '' when there is nothing to send.

    Keys and values are sent as ``str()`` of them, as by OpenTelemetry, values percent-encoded. Keys are not encoded,
    so one that is no token cannot be sent. Beyond 64 members or 8192 bytes whole members are left out, and so is
    one whose key or value raises.
    """
    if not baggage:
        return ""
    for key in baggage:
        if type(key) is not str:
            baggage = _with_sent_keys(baggage)
            break
    members = list(_format_baggage_members(baggage, _SENT_AS_IT_IS))
    header = ",".join(members)
    if len(members) <= _BAGGAGE_MEMBERS and len(header) <= _BAGGAGE_BYTES:
        return header
    return ",".join(_that_fit(_format_baggage_members(baggage, _MAY_STAND_AS_IT_IS)))


def allowed_baggage(baggage: Mapping[str, object], allow: Collection[str]) -> dict[str, Any]:
    """Returns the members whose keys are among ``allow``, each with those of its properties whose keys are, too."""
    members: dict[str, Any] = {}
    for key, value in baggage.items():
        try:
            name = _sent_key(key)
            if name in allow:
                members[name] = _with_allowed_properties(value, allow)
        except Exception as error:
            guard.slip(_MEMBER, error)
    return members


class _TraceState(TraceState):
    """OpenTelemetry's TraceState with the keys of level 2, and with its header text kept for forwarding."""

    _header: str | None = None

    def __init__(self, entries: Iterable[tuple[str, str]] | None = None) -> None:
        self._dict: dict[str, str] = {}
        for key, value in entries or ():
            member = _tracestate_member(key, value)
            if member is not None and len(self._dict) < _TRACESTATE_MEMBERS:
                self._dict.setdefault(*member)

    @classmethod
    def _of(cls, members: dict[str, str]) -> _TraceState:
        """A state of members that are known to be valid and not too many."""
        state = cls()
        state._dict = members
        return state

    def add(self, key: str, value: str) -> TraceState:
        """Returns a state with a new member in front; the same state when the member cannot be added."""
        member = _tracestate_member(key, value)
        if member is not None and member[0] in self._dict:
            guard.log(logging.WARNING, "The tracestate has the key %r already.", member[0])
            return self
        return self.update(key, value)

    def update(self, key: str, value: str) -> TraceState:
        """Returns a state with a changed or new member in front; the same state when that cannot be."""
        member = _tracestate_member(key, value)
        if member is None:
            shown = guard.one_line(key), guard.one_line(value)
            guard.log(logging.WARNING, "This can be no member of a tracestate: %s=%s", *shown)
            return self
        others = [(name, old) for name, old in self._dict.items() if name != member[0]]
        if len(others) == _TRACESTATE_MEMBERS:
            guard.log(logging.WARNING, "A tracestate has at most %d members.", _TRACESTATE_MEMBERS)
            return self
        return _TraceState._of(dict([member, *others]))

    def delete(self, key: str) -> TraceState:
        """Returns a state without the member; the same state when it is not there."""
        if key not in self._dict:
            guard.log(logging.WARNING, "The tracestate has no key %s.", guard.one_line(key))
            return self
        return _TraceState._of({name: value for name, value in self._dict.items() if name != key})

    def to_header(self) -> str:
        """Returns the whole header's text."""
        if self._header is None:
            self._header = ",".join([f"{key}={value}" for key, value in self._dict.items()])
        return self._header

    @classmethod
    def from_header(cls, header_list: list[str]) -> TraceState:
        """Returns the state of these headers, as ``parse_tracestate`` reads them."""
        return parse_tracestate(header_list)


_EMPTY_TRACESTATE = _TraceState()


def _tracestate_member(key: object, value: object) -> tuple[str, str] | None:
    """The pair in plain text; None where it can be no member."""
    if not isinstance(key, str) or not isinstance(value, str):
        return None
    match = _TRACESTATE_MEMBER.fullmatch(f"{text(key)}={text(value)}")
    return (match[1], match[2]) if match is not None else None


def _cut_tracestate(members: list[str]) -> str:
    # Only big members ever have to go, the rightmost first: 32 of the others have 4127 characters.
    kept: list[str] = []
    excess = len(",".join(members)) - _TRACESTATE_SENT
    for member in reversed(members):
        if excess > 0 and len(member) > _TRACESTATE_BIG_MEMBER:
            excess -= len(member) + 1
        else:
            kept.append(member)
    return ",".join(reversed(kept))


def _baggage_members(value: object) -> list[str]:
    header = text(value)
    if header is None:
        return []
    if len(header) > _BAGGAGE_READ:
        header = header[:_BAGGAGE_READ].rpartition(",")[0]
    return [member for raw in header.split(",") if (member := raw.strip(_OWS))]


def _parse_baggage_member(member: str) -> tuple[str, str] | None:
    # Not one regular expression: with so much optional white space it would be quadratic.
    key, equals, rest = member.partition("=")
    raw, semicolon, properties = rest.partition(";")
    key = key.rstrip(_OWS)
    raw = raw.strip(_OWS)
    is_as_written = _AS_WRITTEN.fullmatch(raw) is not None
    if not equals or not _BAGGAGE_KEY.fullmatch(key) or not (is_as_written or _BAGGAGE_VALUE.fullmatch(raw)):
        return None
    if semicolon and not _are_properties(properties):
        return None
    value = raw
    if "%" in raw:
        value = unquote(raw, errors="replace")
        is_as_written = is_as_written and "\ufffd" not in value
    if is_as_written and not semicolon:
        return key, value
    return key, BaggageValue(value, properties, None if is_as_written else raw)


def _are_properties(properties: str) -> bool:
    for part in properties.split(";"):
        key, _, value = part.partition("=")
        if not _BAGGAGE_KEY.fullmatch(key.strip(_OWS)) or not _BAGGAGE_VALUE.fullmatch(value.strip(_OWS)):
            return False
    return True


def _with_allowed_properties(value: Any, allow: Collection[str]) -> Any:
    if type(value) is not BaggageValue or not value.properties:
        return value
    parts = value.properties.split(";")
    kept = ";".join([part for part in parts if part.partition("=")[0].strip(_OWS) in allow])
    return BaggageValue(value, kept, value.raw) if kept or value.raw is not None else str.__str__(value)


def _with_sent_keys(baggage: Mapping[str, object]) -> dict[str, object]:
    """The members under plain keys, of which no two are equal: who reads them keeps one of each."""
    members: dict[str, object] = {}
    for key, value in baggage.items():
        try:
            members[_sent_key(key)] = value
        except Exception as error:
            guard.slip(_MEMBER, error)
    return members


def _sent_key(key: object) -> str:
    """A key as it is sent; '' for what is no text."""
    return str.__str__(str(key)) if isinstance(key, str) else ""


def _format_baggage_members(baggage: Mapping[str, object], safe: str) -> Iterable[str]:
    for key, value in baggage.items():
        if not _BAGGAGE_KEY.fullmatch(key):
            continue
        content = value if type(value) is str else _text_of(value)
        if content is None or len(content) > _BAGGAGE_BYTES:
            continue
        encoded = content if _PLAIN_VALUE.fullmatch(content) else _percent_encoded(content, safe)
        if type(value) is BaggageValue:
            yield f"{key}={_as_it_came(value) or encoded}{_properties_of(value)}"
        else:
            yield f"{key}={encoded}"


def _text_of(value: object) -> str | None:
    try:
        return str.__str__(str(value))
    except Exception as error:
        guard.slip(_MEMBER, error)
        return None


def _as_it_came(value: BaggageValue) -> str:
    return value.raw if value.raw is not None and _BAGGAGE_VALUE.fullmatch(value.raw) else ""


def _properties_of(value: BaggageValue) -> str:
    return f";{value.properties}" if value.properties and _are_properties(value.properties) else ""


def _percent_encoded(value: str, safe: str) -> str:
    try:
        return quote(value, safe)
    except UnicodeEncodeError:  # half of a surrogate pair
        return quote(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), safe)


def _that_fit(members: Iterable[str]) -> Iterable[str]:
    count = 0
    room = _BAGGAGE_BYTES + 1  # the first member has no comma
    for member in members:
        if count == _BAGGAGE_MEMBERS:
            return
        if len(member) < room:
            count += 1
            room -= len(member) + 1
            yield member

"""The W3C wire format: ``traceparent``, ``tracestate`` (Trace Context level 2) and ``baggage``.

Strict in both directions, and total: whatever the values are, reading answers with what is usable and never
raises. It does not lean on OpenTelemetry's own codec, which passes trailing newlines and repeated headers,
refuses level-2 keys, reads one baggage header of several, spoils its properties and turns ``+`` into a space.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from queueprop import guard
from queueprop.wire.headers import text

_logger = logging.getLogger("queueprop")

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


def parse_traceparent(values: Sequence[object]) -> SpanContext | None:
    """Returns the remote span context that a message's ``traceparent`` names, without its tracestate.

    Args:
        values: every value found under that name, as found on the wire.

    None means: restart the trace. So it is for whatever level 2 calls invalid, and for more than one value.
    Unknown flags are cleared.
    """
    if len(values) != 1:
        return None
    value = values[0] if isinstance(values[0], str) else text(values[0])
    if value is None or len(value) > _TRACEPARENT_LONGEST:
        return None
    # Nearly all are of version 00 and valid: with less to look for this takes two thirds of the time.
    plain = _TRACEPARENT_00(value)
    if plain is not None:
        trace_id, span_id = int(plain[1], 16), int(plain[2], 16)
        return SpanContext(trace_id, span_id, True, _FLAGS[plain[3]]) if trace_id and span_id else None
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
    # Not an f-string: that takes twice as long here.
    return "00-%032x-%016x-%02x" % (trace_id, span_id, flags & _KNOWN_FLAGS)  # noqa: UP031


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
    """A baggage value that came with properties: equal to its text, and it takes the properties along."""

    __slots__ = ("properties",)

    # The raw text behind the value's first `;`.
    properties: str

    def __new__(cls, value: str = "", properties: str = "") -> BaggageValue:
        self = super().__new__(cls, value)
        self.properties = properties
        return self


def parse_baggage(values: Sequence[object]) -> dict[str, str]:
    """Returns the baggage of all ``baggage`` values, in order, decoded.

    Args:
        values: every value found under that name, as found on the wire.

    A malformed member is left out, and so is one that goes beyond 64 members or 8192 bytes. Of members with
    the same key the last one stays. A value with properties is a ``BaggageValue``.
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

    Values are sent as ``str(value)``, percent-encoded. Keys are not encoded, so one that is no token cannot
    be sent. Beyond 64 members or 8192 bytes whole members are left out.
    """
    if not baggage:
        return ""
    members = list(_format_baggage_members(baggage, _SENT_AS_IT_IS))
    header = ",".join(members)
    if len(members) <= _BAGGAGE_MEMBERS and len(header) <= _BAGGAGE_BYTES:
        return header
    return ",".join(_that_fit(_format_baggage_members(baggage, _MAY_STAND_AS_IT_IS)))


class _TraceState(TraceState):
    """OpenTelemetry's TraceState with the keys of level 2, and with its header text kept for forwarding."""

    _header: str | None = None

    def __init__(self, entries: Iterable[tuple[str, str]] | None = None) -> None:
        self._dict: dict[str, str] = {}
        for key, value in entries or ():
            if len(self._dict) < _TRACESTATE_MEMBERS and _is_tracestate_member(key, value):
                self._dict.setdefault(key, value)

    @classmethod
    def _of(cls, members: dict[str, str]) -> _TraceState:
        """A state of members that are known to be valid and not too many."""
        state = cls()
        state._dict = members
        return state

    def add(self, key: str, value: str) -> TraceState:
        """Returns a state with a new member in front; the same state when the member cannot be added."""
        if key in self._dict:
            _logger.warning("The tracestate has the key %r already.", key)
            return self
        return self.update(key, value)

    def update(self, key: str, value: str) -> TraceState:
        """Returns a state with a changed or new member in front; the same state when that cannot be."""
        if not _is_tracestate_member(key, value):
            _logger.warning("Invalid tracestate member: %r=%r.", key, value)
            return self
        others = [(name, old) for name, old in self._dict.items() if name != key]
        if len(others) == _TRACESTATE_MEMBERS:
            _logger.warning("A tracestate has at most %d members.", _TRACESTATE_MEMBERS)
            return self
        return _TraceState._of(dict([(key, value), *others]))

    def delete(self, key: str) -> TraceState:
        """Returns a state without the member; the same state when it is not there."""
        if key not in self._dict:
            _logger.warning("The tracestate has no key %r.", key)
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


def _is_tracestate_member(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, str)
        and _TRACESTATE_MEMBER.fullmatch(f"{key}={value}") is not None
    )


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
    if not equals or not _BAGGAGE_KEY.fullmatch(key) or not _BAGGAGE_VALUE.fullmatch(raw):
        return None
    value = unquote(raw, errors="replace") if "%" in raw else raw
    if not semicolon:
        return key, value
    return (key, BaggageValue(value, properties)) if _are_properties(properties) else None


def _are_properties(properties: str) -> bool:
    for part in properties.split(";"):
        key, _, value = part.partition("=")
        if not _BAGGAGE_KEY.fullmatch(key.strip(_OWS)) or not _BAGGAGE_VALUE.fullmatch(value.strip(_OWS)):
            return False
    return True


def _format_baggage_members(baggage: Mapping[str, object], safe: str) -> Iterable[str]:
    for key, value in baggage.items():
        if not isinstance(key, str) or not _BAGGAGE_KEY.fullmatch(key):
            continue
        content = value if isinstance(value, str) else _text_of(value)
        if content is None or len(content) > _BAGGAGE_BYTES:
            continue
        encoded = content if _PLAIN_VALUE.fullmatch(content) else _percent_encoded(content, safe)
        properties = content.properties if isinstance(content, BaggageValue) else ""
        if properties and _are_properties(properties):
            yield f"{key}={encoded};{properties}"
        else:
            yield f"{key}={encoded}"


def _text_of(value: object) -> str | None:
    try:
        return str(value)
    except Exception as error:
        guard.fault("writing a baggage value as text", error)
        return None


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

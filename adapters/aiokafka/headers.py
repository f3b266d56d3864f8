"""A message's headers: a copy that is ours to write to, and what of the context there is room for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from queueprop.kit.fitting import fitted

HEADERS_AT = 5  # their place among the arguments of send, and of the accumulator's add_message


def copied(headers: Any) -> list[Any] | None:
    """Headers that are ours to write to; None for what is not what aiokafka takes: it says so."""
    if headers is None:
        return []
    return list(headers) if type(headers) is list or _is_taken(headers) else None


def read_from(headers: Any) -> Any:
    """The same where they are only read."""
    return headers if headers and (type(headers) is list or _is_taken(headers)) else None


def _is_taken(headers: Any) -> bool:
    return isinstance(headers, list) or (
        isinstance(headers, Collection) and not isinstance(headers, (Mapping, str, bytes))
    )


def with_room(producer: Any, topic: str | None, key: Any, value: Any, given: Any, written: Any) -> Any:
    """The headers that go out: with the context in them, or with what of it there is room for."""
    if not _takes_headers(producer._message_accumulator):
        return given
    limit = producer._max_request_size
    if _size_of(key, value, written) <= limit:
        return written
    return fitted(
        written,
        lambda: list(given or ()),
        lambda headers: _size_of(key, value, headers) <= limit,
        "publishing with aiokafka",
        topic or "a batch",
    )


_size_of = DefaultRecordBatchBuilder.estimate_size_in_bytes


def _takes_headers(accumulator: Any) -> bool:
    """Whether the broker's version has headers. aiokafka 0.13 and newer speak to no other."""
    return bool(getattr(accumulator, "_api_version", _HEADERS_SINCE) >= _HEADERS_SINCE)


_HEADERS_SINCE = (0, 11)

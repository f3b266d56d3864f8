"""How the header containers of message libraries are read and written.

A container is a mapping (``str`` or ``bytes`` names, any values), as in AMQP, or a list of ``(name, value)``
pairs, as in Kafka, where a name may occur more than once. Names match case-insensitively. What a message
brings is never trusted: junk of any shape reads as "nothing there".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any

from queueprop import guard

# Names to look for, all of them lowercase. Hashable, because what is derived from them is cached.
Names = frozenset[str] | tuple[str, ...]


def read_all(headers: object, names: Names) -> dict[str, list[object]]:
    """Returns the values of each of ``names`` that occurs, in the order of the container.

    Args:
        headers: any mapping, any iterable of pairs, or whatever else a message brought. A one-shot iterator
            is used up.
        names: lowercase names. In the container they may be ``str`` or ``bytes``, in any case.

    Names that do not occur are left out. A name that is there with an unusable value (None, a number, a
    table) is in the answer: what was there and broken is not the same as what was not there. Never raises.
    """
    found: dict[str, list[object]] = {}
    try:
        pairs = headers.items() if type(headers) is dict else _pairs(headers)
        for key, value in _candidates(pairs, _lengths(names)):
            name = key.lower() if type(key) is str else _lowercase(key)
            if name is None or name not in names:
                continue
            if name in found:
                found[name].append(value)
            else:
                found[name] = [value]
    except Exception as error:
        guard.fault("reading the headers of a message", error)
    return found


def text(value: object) -> str | None:
    """Returns a header's value as text: ``str`` as it is, bytes of any kind as UTF-8.

    None for everything else, invalid UTF-8 included.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except ValueError:  # no UTF-8, or a memoryview that was released
            return None
    return None


def names_of(headers: object) -> list[str]:
    """Returns the names of all headers as they are written there, in order. Never raises."""
    try:
        keys = [key for key, _ in _well_formed(_pairs(headers))]
        return [name for name in map(text, keys) if name is not None]
    except Exception as error:
        guard.fault("reading the headers of a message", error)
        return []


def write(headers: object, name: str, value: str) -> None:
    """Writes one header in place, after every other spelling of its name was removed. See ``replace``."""
    replace(headers, (name.lower(),), {name: value})


def is_altered(written: Mapping[Any, object], given: Mapping[Any, object]) -> bool:
    """Whether something was written into, or removed from, a copy of what the caller gave.

    By identity: a caller's value need not know how to be compared.
    """
    return len(written) != len(given) or any(value is not given.get(name) for name, value in written.items())


def remove(headers: object, names: Names) -> None:
    """Removes, in place, the headers of these names (lowercase; matched in any case). See ``replace``."""
    replace(headers, names, {})


def replace(headers: object, names: Names, values: Mapping[str, str]) -> None:
    """Removes ``names`` (lowercase; matched in any case), then writes ``values``, in place.

    Into a mapping goes ``str``, or ``bytes`` where all its names are bytes; into a list of pairs
    ``(str, UTF-8 bytes)``, the types that Kafka clients want.

    Raises:
        TypeError: the container cannot be written (None, a tuple, a read-only mapping).
    """
    if isinstance(headers, (dict, MutableMapping)):
        _replace_in_mapping(headers, names, values)
    elif isinstance(headers, list):
        _replace_in_list(headers, names, values)
    else:
        raise TypeError(
            "headers are written in place, into a dict or a list of (name, value) pairs; "
            f"got {type(headers).__name__}"
        )


def _replace_in_mapping(headers: MutableMapping[Any, Any], names: Names, values: Mapping[str, str]) -> None:
    if not headers:
        headers.update(values)
        return
    in_bytes = all(isinstance(key, bytes) for key in headers)
    for key, _ in _candidates(headers.items(), _lengths(names)):
        if _lowercase(key) in names:
            # Not `del`: where the mapping itself ignores case, one deletion has taken every spelling.
            headers.pop(key, None)
    for name, value in values.items():
        if in_bytes:
            headers[name.encode()] = value.encode()
        else:
            headers[name] = value


def _replace_in_list(headers: list[object], names: Names, values: Mapping[str, str]) -> None:
    if headers and read_all(headers, names):
        headers[:] = [item for item in headers if not read_all((item,), names)]
    headers.extend([(name, value.encode()) for name, value in values.items()])


def _pairs(headers: object) -> Iterable[Any]:
    """The container's pairs, as something that can be walked through twice."""
    if isinstance(headers, Mapping):
        return headers.items()
    if isinstance(headers, (list, tuple)):
        return headers
    if isinstance(headers, (str, bytes, bytearray, memoryview)) or not isinstance(headers, Iterable):
        return ()
    return list(headers)


def _candidates(pairs: Iterable[Any], lengths: frozenset[int]) -> list[tuple[Any, object]]:
    """The pairs whose name has one of the lengths: cheap enough to ask of every header of every message."""
    try:
        return [(key, value) for key, value in pairs if len(key) in lengths]
    except (TypeError, ValueError):
        return [(key, value) for key, value in _well_formed(pairs) if len(key) in lengths]


def _well_formed(pairs: Iterable[Any]) -> list[tuple[str | bytes, object]]:
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], (str, bytes))
    ]


def _lowercase(key: object) -> str | None:
    if isinstance(key, str):
        return key.lower()
    if isinstance(key, bytes):
        return key.decode("latin-1").lower()
    return None


@lru_cache(maxsize=64)
def _lengths(names: Names) -> frozenset[int]:
    return frozenset(map(len, names))

"""How the header containers of message libraries are read and written.

A container is a mapping (``str`` or ``bytes`` names, any values), as in AMQP, or a list of ``(name, value)``
pairs, as in Kafka, where a name may occur more than once. Names match case-insensitively. What a message
brings is never trusted: junk of any shape reads as "nothing there", also where its classes are odd (a proxy, a
subclass, a method that raises), and what is text comes out as plain ``str``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from itertools import islice
from typing import Any

from queueprop import guard

# Names to look for, all of them lowercase. Hashable, because what is derived from them is cached.
Names = frozenset[str] | tuple[str, ...]

MOST_HEADERS = 65_536
"""How far a container is walked through that is no plain dict, list or tuple: an iterator may have no end."""


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
        kind = type(headers)
        if kind is dict:
            pairs: Any = headers.items()  # type: ignore[attr-defined]
        else:
            pairs = headers if kind is list or kind is tuple else _pairs(headers)
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


def is_free_of(headers: object, names: Names) -> bool:
    """Whether it is a plain dict or list, of plain text, with none of ``names`` in it: nothing to read, and nothing to
    remove before something is written. False where only ``read_all`` can tell.
    """
    lengths = _lengths(names)
    if type(headers) is dict:
        for name in headers:  # noqa: SIM110 - a generator costs more than most headers are long
            if type(name) is not str or len(name) in lengths:
                return False
        return True
    if type(headers) is list:
        for pair in headers:
            if type(pair) is not tuple or len(pair) != 2:
                return False
            name, _ = pair
            if type(name) is not str or len(name) in lengths:
                return False
        return True
    return False


def text(value: object) -> str | None:
    """Returns a header's value as plain ``str``: text as it is, bytes of any kind as UTF-8.

    Of a subclass it is the content, whatever its methods say; of a proxy what it stands for. None for everything
    else, invalid UTF-8 included. Never raises.
    """
    if type(value) is str:
        return value
    try:
        if type(value) is bytes:
            return value.decode()
        return _content(value, "utf-8")
    except Exception as error:  # no UTF-8, a memoryview that was released, a class that raises
        if _is_not_ours(error):
            raise
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
        TypeError: the container cannot be written (None, a tuple, a read-only mapping, one whose methods raise, or
            one that keeps a header of these names: a ChainMap whose second mapping has it). It may have been
            written in part.
    """
    try:
        if isinstance(headers, (dict, MutableMapping)):
            _replace_in_mapping(headers, names, values)
            return
        if isinstance(headers, list):
            _replace_in_list(headers, names, values)
            return
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        raise TypeError(_REFUSAL % type(headers).__name__) from error
    raise TypeError(_REFUSAL % type(headers).__name__)


_REFUSAL = "headers are written in place, into a dict or a list of (name, value) pairs; got %s"


def _replace_in_mapping(headers: MutableMapping[Any, Any], names: Names, values: Mapping[str, str]) -> None:
    in_bytes = _is_in_bytes(headers)
    pairs = headers.items() if type(headers) is dict else _pairs(headers)
    candidates = _candidates(pairs, _lengths(names))
    if candidates:
        _remove(headers, [key for key, _ in candidates if _lowercase(key) in names])
    for name, value in values.items():
        if in_bytes:
            headers[name.encode()] = value.encode()
        else:
            headers[name] = value


def _is_in_bytes(headers: MutableMapping[Any, Any]) -> bool:
    """Whether all of its names are bytes, and there are any."""
    key = None
    for key in headers:
        # Not isinstance: a name may lie about its class, and that may raise.
        if not issubclass(type(key), bytes):
            return False
    return key is not None


def _remove(headers: MutableMapping[Any, Any], stale: list[Any]) -> None:
    most = len(headers) - len(stale)
    for key in stale:
        # Not `del`: where the mapping itself ignores case, one deletion has taken every spelling.
        headers.pop(key, None)
    if len(headers) > most:
        raise LookupError("a header that was there cannot be removed")


def _replace_in_list(headers: list[object], names: Names, values: Mapping[str, str]) -> None:
    if headers and _candidates(headers, _lengths(names)):
        kept = [item for item in headers if not _is_one_of(item, names)]
        if len(kept) < len(headers):
            headers[:] = kept
    headers.extend([(name, value.encode()) for name, value in values.items()])


def _is_one_of(pair: object, names: Names) -> bool:
    return any(_lowercase(key) in names for key, _ in _candidates((pair,), _lengths(names)))


def _pairs(headers: object) -> Iterable[Any]:
    """The container's pairs, as something that can be walked through twice."""
    kind = type(headers)
    if kind is list or kind is tuple:
        return headers  # type: ignore[return-value]
    if isinstance(headers, Mapping):
        return headers.items() if kind is dict else list(islice(headers.items(), MOST_HEADERS))
    if isinstance(headers, (str, bytes, bytearray, memoryview)) or not isinstance(headers, Iterable):
        return ()
    return list(islice(headers, MOST_HEADERS))


def _candidates(pairs: Iterable[Any], lengths: frozenset[int]) -> list[tuple[Any, object]]:
    """The pairs whose name has one of the lengths: cheap enough to ask of every header of every message.

    Where one of them is no such pair: all that are well formed.
    """
    try:
        return [(key, value) for key, value in pairs if len(key) in lengths]
    except Exception as error:
        if _is_not_ours(error):
            raise
    return _well_formed(pairs)


def _well_formed(pairs: Iterable[Any]) -> list[tuple[Any, object]]:
    found = []
    for pair in pairs:
        try:
            if _is(pair, (tuple, list)) and len(pair) == 2 and _is(pair[0], (str, bytes)):
                found.append((pair[0], pair[1]))
        except Exception as error:
            if _is_not_ours(error):
                raise
    return found


def _lowercase(key: object) -> str | None:
    """The name as it is compared; None for what is none."""
    if type(key) is str:
        return key.lower()
    try:
        name = _content(key, "latin-1") if _is(key, (str, bytes)) else None
        return name.lower() if name is not None else None
    except Exception as error:
        if _is_not_ours(error):
            raise
        return None


def _content(value: Any, encoding: str) -> str | None:
    """What a text holds, whatever the methods of its class say; of a proxy, what it stands for. It may raise."""
    kind = type(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, bytes):
        return bytes.decode(value, encoding)
    if issubclass(kind, bytearray):
        return bytearray.decode(value, encoding)
    if isinstance(value, str):
        return str.__str__(str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes.decode(bytes(value), encoding)
    return None


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    # The first is true of every instance; the second asks the object itself, which may raise.
    return issubclass(type(value), kinds) or isinstance(value, kinds)


@lru_cache(maxsize=64)
def _lengths(names: Names) -> frozenset[int]:
    return frozenset(map(len, names))


_JUNK = (TypeError, ValueError, UnicodeDecodeError)


def _is_not_ours(error: Exception) -> bool:
    """``guard.is_not_ours``, but junk is common, and to be told at once: what Python itself raised in this file."""
    if type(error) in _JUNK:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        if trace is None:
            return False
    return guard.is_not_ours(error)

"""Odd objects in the place of headers, names, values and baggage: subclasses, proxies, enums, liars, what raises.

Each maker is given a text (or pairs) and makes an object that stands for it. What is readable or honest still says
what it holds, and so must be read; of the others it is only asked that nothing raises.
"""

from __future__ import annotations

import enum
import random
from array import array
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import wrapt

Pairs = Sequence[tuple[Any, Any]]
Make = Callable[[str], Any]
Contain = Callable[[Pairs], Any]

ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    StopIteration,
    RecursionError,
    MemoryError,
    AssertionError,
    NotImplementedError,
)

_OF_ANY = (
    "__class__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__hash__",
    "__str__",
    "__repr__",
    "__format__",
    "__bool__",
    "__len__",
    "__iter__",
    "__contains__",
    "__getitem__",
    "__getattribute__",
    "__reduce_ex__",
    "__sizeof__",
)
_OF_TEXT = (
    "__add__",
    "__mod__",
    "__bytes__",
    "__buffer__",
    "__index__",
    "lower",
    "casefold",
    "strip",
    "rstrip",
    "split",
    "partition",
    "replace",
    "join",
    "encode",
    "decode",
    "isascii",
    "startswith",
    "translate",
)
_OF_CONTAINERS = (
    "__setitem__",
    "__delitem__",
    "__reversed__",
    "__next__",
    "items",
    "keys",
    "values",
    "get",
    "pop",
    "popitem",
    "update",
    "setdefault",
    "clear",
    "copy",
    "append",
    "extend",
    "insert",
    "remove",
    "index",
)


def raising(base: type[Any], method: str, error: type[Exception]) -> type[Any]:
    """A subclass whose ``method`` raises; made once."""
    if (base, method, error) not in _made:
        _made[base, method, error] = _raising(base, method, error)
    return _made[base, method, error]


_made: dict[tuple[type[Any], str, type[Exception]], type[Any]] = {}


def _raising(base: type[Any], method: str, error: type[Exception]) -> type[Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error(f"{base.__name__}.{method}")

    def make_only(self: Any, name: str) -> Any:
        raise error(f"{base.__name__}.{name}")

    body: dict[str, Any] = {method: property(fail) if method == "__class__" else fail}
    if method == "__getattribute__":
        body = {method: make_only}
    if method == "__eq__" and base is not dict and base is not list:
        body["__hash__"] = base.__hash__  # else it could be no key of a dict
    return type(f"{base.__name__}_{method}", (base,), body)


class Text(str):
    """A subclass of str with methods that lie."""

    def lower(self) -> str:
        return "lied"

    def strip(self, chars: str | None = None, /) -> str:
        return "lied"

    def __str__(self) -> str:
        return "lied"

    def __format__(self, spec: str) -> str:
        return "lied"


class Bytes(bytes):
    """The same of bytes."""

    def decode(self, encoding: str = "", errors: str = "") -> str:
        return "lied"

    def __bytes__(self) -> bytes:
        return b"lied"


class Lazy:
    """A lazy text that says of itself that it is one, as frameworks have them."""

    def __init__(self, made: Any) -> None:
        self._made = made

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._made)

    def __str__(self) -> str:
        return str(self._made)

    def __bytes__(self) -> bytes:
        return bytes(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def lower(self) -> Any:
        return self._made.lower()


def _enum_of(text: str) -> Any:
    return enum.Enum("Color", {"RED": text}, type=str).RED  # type: ignore[attr-defined]


READABLE: dict[str, Make] = {
    "str": str,
    "bytes": str.encode,
    "bytearray": lambda text: bytearray(text.encode()),
    "memoryview": lambda text: memoryview(text.encode()),
    "strided memoryview": lambda text: memoryview(
        b"".join(bytes([byte]) + b"-" for byte in text.encode()) or b""
    )[::2],
    "subclass of str": Text,
    "subclass of bytes": lambda text: Bytes(text.encode()),
    "proxy of str": wrapt.ObjectProxy,
    "proxy of bytes": lambda text: wrapt.ObjectProxy(text.encode()),
    "proxy of bytearray": lambda text: wrapt.ObjectProxy(bytearray(text.encode())),
    "proxy of a proxy": lambda text: wrapt.ObjectProxy(wrapt.ObjectProxy(text)),
    "lazy str": Lazy,
    "lazy bytes": lambda text: Lazy(text.encode()),
    "enum": _enum_of,
}


def text_that_raises(error: type[Exception]) -> dict[str, Make]:
    """Subclasses one of whose methods raises, and whose content is there all the same."""
    return {
        f"{base.__name__} whose {method} raises {error.__name__}": partial(_raising_text, base, method, error)
        for base in (str, bytes)
        for method in (*_OF_ANY, *_OF_TEXT)
    }


def _raising_text(base: type[Any], method: str, error: type[Exception], text: str) -> Any:
    return raising(base, method, error)(text if base is str else text.encode())


def _released(text: str) -> memoryview:
    view = memoryview(text.encode())
    view.release()
    return view


def _liar(claimed: type[Any]) -> Make:
    """An object that says it is of this class, and has nothing of it."""
    kind = type(f"Liar_{claimed.__name__}", (), {"__class__": property(lambda self: claimed)})
    return lambda text: kind()


class Everything:
    """Every method that Python looks for on the class raises."""


for _name in {*_OF_ANY, *_OF_TEXT, *_OF_CONTAINERS} - {"__class__", "__getattribute__", "__reduce_ex__"}:
    setattr(Everything, _name, lambda *args: (_ for _ in ()).throw(RuntimeError("everything raises")))


class _Number(enum.IntEnum):
    ONE = 1


class _Plain(enum.Enum):
    RED = "red"


UNREADABLE: dict[str, Make] = {
    "None": lambda text: None,
    "an int": len,
    "a large int": lambda text: 10**5000,
    "nan": lambda text: float("nan"),
    "a bool": bool,
    "a type": lambda text: str,
    "an object": lambda text: object(),
    "an exception": ValueError,
    "an ellipsis": lambda text: ...,
    "a list": lambda text: [text],
    "a dict": lambda text: {text: text},
    "a tuple": lambda text: (text,),
    "a function": lambda text: len,
    "a UserString": UserString,
    "an array": lambda text: array("d", [1.5]),
    "a memoryview of numbers": lambda text: memoryview(array("d", [1.5])),
    "a released memoryview": _released,
    "bytes that are no UTF-8": lambda text: b"\xff" + text.encode(),
    "half of a surrogate pair": lambda text: text + "\ud800",
    "an IntEnum": lambda text: _Number.ONE,
    "an Enum": lambda text: _Plain.RED,
    "everything raises": lambda text: Everything(),
    "a proxy of None": lambda text: wrapt.ObjectProxy(None),
    "a proxy of a text that raises": lambda text: wrapt.ObjectProxy(raising(str, "__str__", KeyError)(text)),
    "a proxy of bytes that are no UTF-8": lambda text: wrapt.ObjectProxy(b"\xff"),
    **{
        f"it says it is a {kind.__name__}": _liar(kind)
        for kind in (str, bytes, bytearray, memoryview, int, dict, list, tuple)
    },
}


def object_that_raises(error: type[Exception]) -> dict[str, Make]:
    return {
        f"an object whose {method} raises {error.__name__}": partial(_raising_object, method, error)
        for method in (*_OF_ANY, *_OF_TEXT)
    }


def _raising_object(method: str, error: type[Exception], text: str) -> Any:
    return raising(object, method, error)()


# What makes a pair of a name and a value, not always one that is any.
PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda name, value: (name, value),
    "list": lambda name, value: [name, value],
    "proxy": lambda name, value: wrapt.ObjectProxy((name, value)),
    "three": lambda name, value: (name, value, value),
    "one": lambda name, value: (name,),
    "the name alone": lambda name, value: name,
    "a dict": lambda name, value: {"name": name, "value": value},
    "nothing": lambda name, value: None,
}


def pair_that_raises(error: type[Exception]) -> dict[str, Callable[[Any, Any], Any]]:
    return {
        f"tuple whose {method} raises {error.__name__}": partial(_raising_pair, method, error)
        for method in _OF_ANY
    }


def _raising_pair(method: str, error: type[Exception], name: Any, value: Any) -> Any:
    return raising(tuple, method, error)((name, value))


class Table(Mapping[Any, Any]):
    """A mapping that cannot be written."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = dict(pairs)

    def __getitem__(self, key: Any) -> Any:
        return self._pairs[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


class OneShot(dict[Any, Any]):
    """Its items can be walked through once."""

    def items(self) -> Any:
        return iter(super().items())


class Frozen(dict[Any, Any]):
    """A dict that refuses every change, and not by a TypeError."""

    def _refuse(self, *args: Any) -> Any:
        raise AttributeError("frozen")

    __setitem__ = __delitem__ = update = pop = setdefault = clear = _refuse  # type: ignore[assignment]


class CaseInsensitive(MutableMapping[Any, Any]):
    """As HTTP libraries have them."""

    def __init__(self, pairs: Pairs = ()) -> None:
        self._entries: dict[Any, tuple[Any, Any]] = {}
        for key, value in pairs:
            self[key] = value

    def _folded(self, key: Any) -> Any:
        return key.lower() if type(key) in (str, bytes) else key

    def __getitem__(self, key: Any) -> Any:
        return self._entries[self._folded(key)][1]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._entries[self._folded(key)] = (key, value)

    def __delitem__(self, key: Any) -> None:
        del self._entries[self._folded(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter([key for key, _ in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)


# Into these a context can be written, into the second ones not.
WRITABLE: dict[str, Contain] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda pairs: defaultdict(list, pairs),
    "Counter": lambda pairs: Counter(dict(pairs)),
    "UserDict": UserDict,
    "subclass of dict": type("Headers", (dict,), {}),
    "dict whose items are walked through once": OneShot,
    "ignores case": CaseInsensitive,
    "ChainMap": lambda pairs: ChainMap(dict(pairs)),
    "proxy of dict": lambda pairs: wrapt.ObjectProxy(dict(pairs)),
    "list": list,
    "subclass of list": type("Headers", (list,), {}),
    "list of lists": lambda pairs: [[*pair] for pair in pairs],
    "proxy of list": lambda pairs: wrapt.ObjectProxy([*pairs]),
    "list of proxies": lambda pairs: [wrapt.ObjectProxy(tuple(pair)) for pair in pairs],
}
READ_ONLY: dict[str, Contain] = {
    "tuple": tuple,
    "proxy of tuple": lambda pairs: wrapt.ObjectProxy(tuple(pairs)),
    "MappingProxyType": lambda pairs: MappingProxyType(dict(pairs)),
    "Mapping": Table,
    "Frozen": Frozen,
    "deque": deque,
    "UserList": UserList,
    "iterator": iter,
    "generator": lambda pairs: (pair for pair in pairs),
    "dict_items": lambda pairs: dict(pairs).items(),
}
HONEST = {**WRITABLE, **READ_ONLY}


def _ends_in(error: type[Exception]) -> Contain:
    def generate(pairs: Pairs) -> Iterator[Any]:
        yield from pairs
        raise error("in the middle")

    return generate


def _without_end(pairs: Pairs) -> Iterator[Any]:
    while True:
        yield from [*pairs, ("x", "y")]


def _instead(make: Make, pairs: Pairs) -> Any:
    return make("traceparent")


# What says it is a container and is none, or keeps what was to go.
FALSE: dict[str, Contain] = {
    "ChainMap of read-only headers": lambda pairs: ChainMap({}, dict(pairs)),
    "a class": lambda pairs: dict,
    **{name: partial(_instead, make) for name, make in (READABLE | UNREADABLE).items()},
}


def container_that_raises(error: type[Exception]) -> dict[str, Contain]:
    """Subclasses one of whose methods raises, what says it is a container and is none, and what stops in the middle."""
    return {
        f"generator that ends in {error.__name__}": _ends_in(error),
        **{
            f"{base.__name__} whose {method} raises {error.__name__}": raising(base, method, error)
            for base in (dict, OrderedDict, UserDict, list, tuple, deque, CaseInsensitive, Table)
            for method in (*_OF_ANY, *_OF_CONTAINERS)
        },
    }


ENDLESS: dict[str, Contain] = {"iterator without an end": _without_end}


def contained(contain: Contain, pairs: Pairs) -> Any:
    """The container; a dict of what can be no keys, and one that cannot even be made, is a list."""
    try:
        return contain(pairs)
    except Exception:
        return [*pairs]


class Chooser:
    """Random inputs of all these kinds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._readable = _all(READABLE, text_that_raises)
        self._unreadable = _all(UNREADABLE, object_that_raises)
        self._pairs = _all(PAIRS, pair_that_raises)
        self._honest, self._broken = [*HONEST.values()], _all(FALSE, container_that_raises)

    def value(self, text: str) -> Any:
        choose = self.random
        if choose.random() < 0.2:
            return text
        return choose.choice(self._readable if choose.random() < 0.6 else self._unreadable)(text)

    def pair(self, name: str, text: str) -> Any:
        choose = self.random
        given, value = (name if choose.random() < 0.4 else self.value(name)), self.value(text)
        return (given, value) if choose.random() < 0.8 else choose.choice(self._pairs)(given, value)

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Any]:
        return [self.pair(*self.random.choice(texts)) for _ in range(self.random.randrange(6))]

    def container(self, pairs: Pairs) -> Any:
        choose = self.random
        return contained(choose.choice(self._honest if choose.random() < 0.7 else self._broken), pairs)


def _all(plain: Mapping[str, Any], raising_too: Callable[[type[Exception]], Mapping[str, Any]]) -> list[Any]:
    return [*plain.values(), *(one for error in ERRORS for one in raising_too(error).values())]

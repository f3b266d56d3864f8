"""What fuzzers publish and deliver: headers that are legal, broken or odd objects, chosen by somebody's ``random``."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

from tests.wire.fuzz import HEADERS
from tests.wire.odd import Chooser

_TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
_VALUE = "".join(
    map(chr, [0x21, *range(0x23, 0x2C), *range(0x2D, 0x3B), *range(0x3C, 0x5C), *range(0x5D, 0x7F)])
)
_STATE_KEY = string.ascii_lowercase + string.digits + "_-*/@"
_STATE_VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")


def legal_baggage(chance: random.Random, members: int) -> dict[str, str]:
    """Whatever a user may put in: any text under a token. As many members, which fit together."""
    found: dict[str, str] = {}
    for _ in range(members):
        key = "".join(chance.choices(_TOKEN, k=chance.randint(1, 12)))
        length = chance.randint(0, 10)
        found[key] = "".join(chance.choice(_VALUE + ' ,;%\\"\u00e9\u4e2d\U0001f600') for _ in range(length))
    return found


def legal_tracestate(chance: random.Random, members: int) -> list[tuple[str, str]]:
    """Up to 32 members of at most 512 characters together: all of that must be carried."""
    found: dict[str, str] = {}
    room = 512
    for _ in range(members):
        key = chance.choice(string.ascii_lowercase + string.digits)
        key += "".join(chance.choices(_STATE_KEY, k=chance.randint(0, 14)))
        value = "".join(chance.choices(_STATE_VALUE, k=chance.randint(0, 20))) + chance.choice(
            _STATE_VALUE[1:]
        )
        if key in found or len(key) + len(value) + 2 > room:
            continue
        room -= len(key) + len(value) + 2
        found[key] = value
    return list(found.items())


class Inputs:
    """Headers for a library, and names.

    Args:
        chance: what chooses; a fuzzer's bytes, too.
        carrier: ``dict`` or ``pairs``, as the library takes them when nothing is odd.
    """

    def __init__(self, chance: random.Random, carrier: str) -> None:
        self.chooser = Chooser(0)
        self.chooser.random = chance
        self._carrier = carrier

    def headers(self) -> Any:
        """A third is as the library wants it, a third has odd values in it, a third is odd itself."""
        chance, kind = self.chooser.random, self.chooser.random.random()
        if kind < 0.3:
            return self._plain(lambda text: self.mutated(text))
        if kind < 0.6:
            return self._plain(self.chooser.value)
        if kind < 0.65:
            return None
        if kind < 0.75:
            return self._nested(chance.randint(1, 6))
        return self.chooser.container(self.chooser.pairs(HEADERS))

    def mutated(self, text: str) -> Any:
        """A text, with some of its characters another."""
        chance = self.chooser.random
        found = list(text)
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            at = chance.randrange(len(found) + 1)
            found[at : at + chance.randint(0, 2)] = chance.choice(_ODD_TEXTS)
        made = "".join(found)
        if self._carrier == "pairs" or chance.random() < 0.2:
            return made.encode("utf-8", "surrogatepass")
        return made

    def name(self) -> Any:
        """Nearly always the one that is known."""
        return "orders" if self.chooser.random.random() < 0.97 else self.chooser.value("orders")

    def _plain(self, value_of: Callable[[str], Any]) -> Any:
        chance = self.chooser.random
        pairs = [chance.choice(HEADERS) for _ in range(chance.randint(0, 5))]
        made: list[Any] = [(name, value_of(text)) for name, text in pairs]
        return dict(made) if self._carrier == "dict" else made

    def _nested(self, depth: int) -> Any:
        """JSON and AMQP tables have these."""
        made: Any = self.chooser.random.choice([None, 1, "x", True, 1.5, [], {}])
        for _ in range(depth):
            made = self.chooser.random.choice(
                [{"traceparent": made}, [made], {"other": made, "baggage": [made]}]
            )
        return made


_ODD_TEXTS = [
    *"-,=;% \t+0fFz\x00\n\r\x7f\u00e9\u212a\ud800",
    "",
    "00-",
    "%",
    "%F",
    "%FF",
    ";p",
    "traceparent",
    "," * 40,
]

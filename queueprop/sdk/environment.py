"""The variables ``OTEL_*``: what somebody set from outside. A wrong value is one warning and the default."""

from __future__ import annotations

import os

from queueprop import guard


def variable(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def number(name: str, default: int) -> int:
    """A whole number above 0."""
    given = variable(name, str(default))
    if given.isdecimal() and int(given[:_DIGITS]) > 0:
        return int(given[:_DIGITS])
    guard.mistake(name, f"wants a whole number above 0, not {given!r}; {default} is used instead")
    return default


_DIGITS = 18  # more mean "never" in any unit, and Python refuses to read thousands of them


def is_disabled() -> bool:
    return variable("OTEL_SDK_DISABLED").lower() == "true"

"""What the commands cannot do: one clear line, and the exit status 2."""

from __future__ import annotations

from queueprop import guard

STATUS = 2
"""Of what was asked wrongly, and of what does not answer."""

_LONGEST = 500


class Refused(Exception):
    """What a command was given cannot be used, or does not answer. Its text is one line, whatever it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__(guard.one_line(text, _LONGEST))


def reason(error: BaseException) -> str:
    """Why a library's call failed, as a part of a line: with its cause where it says nothing itself."""
    told = error
    while not str(told).strip(" ()'\",") and (told.__cause__ or told.__context__ or told.args):
        inner = told.__cause__ or told.__context__ or told.args[0]
        if not isinstance(inner, BaseException):
            break
        told = inner
    text = " ".join(str(told).split())
    name = type(told).__name__
    return guard.one_line(f"{name}: {text}" if text else name, 300)

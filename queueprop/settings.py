"""``Settings``: from code, else from ``QUEUEPROP_*`` variables, else the default. A wrong value is one warning."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, TracerProvider

from queueprop import guard

Trust = Literal["all", "none"]
TrustFunction = Callable[[Any, Any], bool]
"""Is given the ``Destination`` and the ``Message`` (which lie above these settings)."""
SpanHook = Callable[[Span, Any], None]
Patterns = Mapping[str, str] | tuple[tuple[str, str], ...]


def _setting(default: Any) -> Any:
    return field(default=_UNSET, metadata={"default": default})


class _Unset:
    def __repr__(self) -> str:
        return "from the environment"


_UNSET: Any = _Unset()


@dataclass(frozen=True)
class Settings:
    """How messages are traced. What is not given here is read from the environment when the object is made.

    Each is also an environment variable, ``QUEUEPROP_PROPAGATION`` and so on, except the last two rows.

    Args:
        propagation: ``parent`` makes the message's creation context the parent of its process span, and links it;
            ``link`` only links it, and the span current at that moment, or none, is the parent.
        trust: whose context is continued: ``all``, ``none``, or (in code) a function of destination and message.
            From an untrusted source: a new root that links to it, and no baggage.
        baggage_allow: keys of the baggage that may leave and enter; ``*`` for all.
        exclude: patterns (``tmp.*``) of destinations that get no spans; their context still passes.
        settle_spans: spans for ack, nack, reject and commit.
        receive_spans: a CLIENT span for a pull call of the user's that returned messages.
        capture_headers: names of headers that become attributes ``messaging.header.<name>``: of each header at most 16
            values, of each value its first 1,024 characters.
        body_size: the attribute ``messaging.message.body.size``.
        loop_spans: the body of a loop runs inside its message's span. With false loops are pulls, for programs that
            hand what a loop gives to workers, which handle it inside ``traced_message``.
        destination_templates: what names of destinations stand for, by patterns: ``{"orders.*": "orders.{id}"}``, as a
            variable ``orders.*=orders.{id},...``. A template names spans, and metrics instead of the name; the first
            pattern that matches counts. It goes before a template that the destination has already.
        destination_limit: how many destinations metrics tell apart in one process, each of them counted once for every
            operation on it (publish, process, ack); further ones, and those with names of more than 1,024 characters,
            are measured as one ``_other``. Spans keep their names.
        flush_timeout: seconds that a forked child may spend on handing over its spans before it exits.
        tracer_provider, meter_provider: instead of the global ones.
        publish_hook, consume_hook: called with the recorded span and the library's own message.

    A wrong value is one warning that names the field, and the default; nothing is raised. So is a misspelt variable.
    """

    propagation: Literal["parent", "link"] = _setting("parent")
    trust: Trust | TrustFunction = _setting("all")
    baggage_allow: tuple[str, ...] = _setting(("*",))
    exclude: tuple[str, ...] = _setting(())
    settle_spans: bool = _setting(False)
    receive_spans: bool = _setting(True)
    capture_headers: tuple[str, ...] = _setting(())
    body_size: bool = _setting(False)
    loop_spans: bool = _setting(True)
    destination_templates: Patterns = _setting(())
    destination_limit: int = _setting(1000)
    flush_timeout: float = _setting(2.0)
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    publish_hook: SpanHook | None = None
    consume_hook: SpanHook | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            parse, default = _PARSERS[setting.name], setting.metadata.get("default")
            given = getattr(self, setting.name)
            if given is _UNSET:
                value = _from_environment(setting.name, parse, default)
            elif given is None and default is None:
                continue
            else:
                value = _checked(f"Settings({setting.name}=...)", given, parse, default)
            object.__setattr__(self, setting.name, value)
        _look_for_misspelt_variables()

    def __getstate__(self) -> dict[str, Any]:
        # Copied or pickled without its engine: that one belongs to this object and to this process.
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}


def _from_environment(name: str, parse: Callable[[Any], Any], default: Any) -> Any:
    variable = f"QUEUEPROP_{name.upper()}"
    given = os.environ.get(variable, "").strip()
    return _checked(variable, given, parse, default) if given else default


_PREFIX = "QUEUEPROP_"


def _look_for_misspelt_variables() -> None:
    """Says of a variable that looks like a setting's which one may be meant. All others are somebody else's."""
    settings = {setting.name.upper(): setting for setting in fields(Settings)}
    for variable in os.environ:
        if not variable.upper().startswith(_PREFIX):
            continue
        meant = difflib.get_close_matches(variable.upper().removeprefix(_PREFIX), settings, n=1)
        if not meant:
            continue
        name = settings[meant[0]].name
        if "default" not in settings[meant[0]].metadata:
            _say_of_variable(variable, f"{name} is given in code alone: Settings({name}=...)")
        elif variable != _PREFIX + meant[0]:
            _say_of_variable(variable, f"no setting has this name; did you mean {_PREFIX}{meant[0]}?")


def _say_of_variable(variable: str, text: str) -> None:
    guard.mistake(f"reading {guard.one_line(variable, 60)}", f"it changes nothing: {text}")


def _checked(where: str, given: Any, parse: Callable[[Any], Any], default: Any) -> Any:
    try:
        return parse(given)
    except ValueError as error:
        guard.mistake(f"reading {where}", f"{error}, not {_shown(given)}; {default!r} is used instead")
        return default


def _shown(given: Any) -> str:
    try:
        return reprlib.repr(given)
    except ValueError:  # a number of more digits than Python likes to print
        return f"<{type(given).__name__}>"


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def parse(given: Any) -> str:
        if isinstance(given, str) and given.strip().lower() in allowed:
            return given.strip().lower()
        raise ValueError(f"wants {' or '.join(map(repr, allowed))}")

    return parse


def _trust(given: Any) -> Any:
    return given if callable(given) else _one_of("all", "none")(given)


def _names(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, (list, tuple, set, frozenset)) or not all(
        isinstance(item, str) for item in given
    ):
        raise ValueError("wants comma-separated names or a list of them")
    return tuple(name for name in (item.strip() for item in given) if name)


def _names_of(setting: str) -> Callable[[Any], tuple[str, ...]]:
    """As ``_names``, with a word about text that was meant to be several names."""

    def parse(given: Any) -> tuple[str, ...]:
        names = _names(given)
        odd = next((name for name in names if _OTHER_SEPARATORS.search(name)), None)
        if odd is not None and isinstance(given, str):
            guard.mistake(
                f"reading the setting {setting}",
                "this is taken for one name: names are separated by commas alone, and have no quotes (if it is one "
                f"name, give it in code, in a list: Settings({setting}=[...]))",
                about=odd,
            )
        return names

    return parse


_OTHER_SEPARATORS = re.compile(r"""[;|\s"']""")


def _templates(given: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(given, str):
        given = [item.partition("=")[::2] for item in given.split(",") if item.strip()]
    elif isinstance(given, Mapping):
        given = given.items()
    try:
        found = tuple((pattern.strip(), template.strip()) for pattern, template in given)
    except (TypeError, ValueError, AttributeError):
        found = (("", ""),)
    if not all(pattern and template for pattern, template in found):
        raise ValueError("wants patterns with their templates (orders.*=orders.{id},...) or a dict of them")
    return found


_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _boolean(given: Any) -> bool:
    value = _BOOLEANS.get(str(given).strip().lower()) if isinstance(given, (str, int)) else None
    if value is None:
        raise ValueError("wants true or false")
    return value


def _seconds(given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("wants a number of seconds") from None
    if not 0 <= value < float("inf"):
        raise ValueError("wants seconds, zero or more")
    return value


def _number(given: Any) -> int:
    try:
        value = int(given) if isinstance(given, (str, int)) and not isinstance(given, bool) else -1
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError("wants a whole number, zero or more")
    return value


def _having(method: str, what: str) -> Callable[[Any], Any]:
    def parse(given: Any) -> Any:
        if not callable(getattr(given, method, None)):
            raise ValueError(f"wants {what}")
        return given

    return parse


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "propagation": _one_of("parent", "link"),
    "trust": _trust,
    "baggage_allow": _names_of("baggage_allow"),
    "exclude": _names_of("exclude"),
    "settle_spans": _boolean,
    "receive_spans": _boolean,
    "capture_headers": _names_of("capture_headers"),
    "body_size": _boolean,
    "loop_spans": _boolean,
    "destination_templates": _templates,
    "destination_limit": _number,
    "flush_timeout": _seconds,
    "tracer_provider": _having("get_tracer", "a TracerProvider"),
    "meter_provider": _having("get_meter", "a MeterProvider"),
    "publish_hook": _having("__call__", "a function"),
    "consume_hook": _having("__call__", "a function"),
}

"""What the public words refuse. Where a program is set up, a wrong object is a ``TypeError`` of one line that shows the
right form; where a message is at hand already, it is one line of the guard's, and the message goes on.

A callable of the user's own around a library's call is never refused (a function, a partial, a method of a subclass, a
double of ``unittest.mock``), but what cannot be right is.
"""

from __future__ import annotations

import inspect
import reprlib
import types
from collections.abc import Collection, Iterable
from typing import Any

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.message import Destination
from queueprop.kit.calls import beneath_partials
from queueprop.settings import Settings

LIBRARIES = frozenset(
    (
        *("aio_pika", "aiokafka", "bullmq", "celery", "confluent_kafka"),
        *("dramatiq", "faststream", "kombu", "pika", "rq"),
    )
)
"""The top-level modules of those that there are adapters for."""


def module_of(library: str) -> str:
    """The top-level module of a library, of which users say ``aio-pika``, as pip does."""
    return library.replace("-", "_")


def refused(word: str, wants: str, given: object) -> TypeError:
    """The error of a word: ``carry_context wants a function, as in ..., not 42``."""
    return TypeError(f"{word} wants {wants}, not {shown(given)}")


def check_settings(word: str, given: object) -> None:
    """Raises TypeError for what are no settings. None are those of the environment."""
    if given is not None and not isinstance(given, Settings):
        raise refused(word, _SETTINGS, given)


def engine_of(settings: Settings | None, word: str) -> Engine:
    """The engine of these settings. Raises TypeError for what are none."""
    check_settings(word, settings)
    return engine_for(settings)


def at_hand(
    word: str, settings: Settings | None, destination: Destination | None
) -> tuple[Engine, Destination | None]:
    """The engine of these settings, and the destination, where a message is at hand. For what are none, it is the
    environment's engine, and the destination that the message tells."""
    if settings is not None and not isinstance(settings, Settings):
        say_settings(word, settings)
        settings = None
    if destination is not None and not isinstance(destination, Destination):
        say(word, f"it wants {_DESTINATION}; what the message tells is used", destination)
        destination = None
    return engine_for(settings), destination


def say_settings(word: str, given: object) -> None:
    """Tells of settings that are none, where a message is at hand."""
    say(word, f"it wants {_SETTINGS}; those of the environment are used", given)


def check_destination(word: str, given: object) -> None:
    """Raises TypeError for what is no destination. None is what the message tells."""
    if given is not None and not isinstance(given, Destination):
        raise refused(word, _DESTINATION, given)


def check_name(word: str, option: str, given: object) -> None:
    """Raises TypeError for what is no name. None is one that is not known."""
    if given is not None and not isinstance(given, (str, bytes)):
        raise refused(word, f'a name, as in {option}="orders"', given)


def messages_at_hand(word: str, given: Any) -> Iterable[Any]:
    """The messages of a batch; none where what was given is no list of them."""
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return given
    say(word, "it wants a list of messages; there is no span", given)
    return ()


def check_iterable(word: str, given: object, form: str) -> None:
    """Raises TypeError for what no loop can be over, as a loop would."""
    if (
        not hasattr(given, "__aiter__")
        and not hasattr(given, "__iter__")
        and not hasattr(given, "__getitem__")
    ):
        raise refused(word, form, given)


def check_handler(word: str, given: object, form: str) -> None:
    """Raises TypeError for what is no function to decorate. ``form``: ``a function, as in ...``."""
    is_callable = callable(given) or isinstance(given, (staticmethod, classmethod))
    if isinstance(given, type) or not is_callable or library_of(type(given)) is not None:
        raise refused(word, form, given)


def check_call(
    word: str, given: object, library: str, names: Collection[str], form: str, takes: str | None = None
) -> None:
    """Raises TypeError for what cannot be one of the methods ``names`` of the library's objects, or stand for it.

    ``library`` is its module; ``takes`` is the argument by which a function of the user's hands on what carries
    the context.
    """
    function: Any = beneath_partials(given)
    if not callable(function) or isinstance(function, type):
        raise refused(word, form, given)
    package = library_of(function)
    if package is None and issubclass(type(function), _OF_C):
        raise refused(word, form, given)
    if package is not None and (
        package != library or getattr(function, "__name__", "") not in names or _is_unbound(function)
    ):
        raise refused(word, form, given)
    if takes is not None and not _takes(function, takes):
        raise refused(word, f"{form}, or a function that takes {takes}", given)


def library_of(function: object) -> str | None:
    """The library that has this function, where it is one that there is an adapter for."""
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    if package in LIBRARIES:
        return package
    if isinstance(function, types.BuiltinMethodType):  # it tells no module; the type of its object does
        modules = {kind.__module__ for kind in type(function.__self__).__mro__}
        return next((library for module, library in _EXTENSIONS.items() if module in modules), None)
    return None


def say(word: str, text: str, given: object) -> None:
    """Tells of a wrong object where a message is at hand, once a word and kind of mistake. What it says is nobody's."""
    guard.mistake(word, text, about=f"given {type(given).__qualname__}")


def say_no_message(handler: object, what: str) -> None:
    """Tells of a decorated handler that was called without what it is decorated for."""
    guard.mistake(
        f"traced_consumer on {shown(handler)}",
        f"none of its arguments is {what}, so it runs without a span; decorate the function that is given one",
    )


def shown(given: object) -> str:
    """What somebody gave, in a few words, whatever its own ``repr`` says or does."""
    if isinstance(given, type):
        return f"the class {given.__qualname__}"
    if inspect.isroutine(given):
        return f"the function {getattr(given, '__qualname__', given.__name__)}"
    if not isinstance(given, _PLAIN):
        return f"an object of {type(given).__qualname__}"
    try:
        return guard.one_line(reprlib.repr(given), 100)
    except ValueError:  # a number of more digits than Python likes to print
        return f"an object of {type(given).__qualname__}"


_DESTINATION = 'a Destination, as in destination=queueprop.Destination("my-queue", "orders")'
_SETTINGS = 'Settings, as in settings=queueprop.Settings(propagation="link")'

_EXTENSIONS = {"cimpl": "confluent_kafka"}  # modules of C, as their types call them

# Functions of C. But for methods of the extensions above, none takes a publish's arguments.
_OF_C = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
_PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset)


def _is_unbound(function: Any) -> bool:
    """Whether it is a function of a class, without an object; and not one that ``functools.wraps`` named so."""
    if hasattr(function, "__self__") or hasattr(function, "__wrapped__"):
        return False
    parts = str(getattr(function, "__qualname__", "")).split(".")
    return len(parts) > 1 and parts[-2] != "<locals>"


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # what does not tell its arguments may take it
    return name in parameters or any(it.kind is it.VAR_KEYWORD for it in parameters.values())

"""confluent-kafka's clients are C types, whose methods nobody can replace: what stands for them meanwhile.

Each has a subclass here, the same in all but that its methods can be wrapped. While the library is instrumented it has
the C type's place: under the names that modules have it by, and as the base of the classes that were derived before.
What holds on to the C type by other ways is not reached: a client that was made before, a copy of the name in a class's
attribute or in a function's default.

The C types keep their configuration to themselves, so what is needed of it is noted where a client is made. An AIO
client has one of them beneath it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import cimpl

from queueprop import guard
from queueprop.engine.message import Destination
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.kept import Kept
from queueprop.kit.rebinding import rebind

_OURS = __name__.rpartition(".")[0]
C_PRODUCER: Any = cimpl.Producer
C_CONSUMER: Any = cimpl.Consumer
"""By names that keep them: elsewhere what stands for them has their names, in ``cimpl`` as well."""


class _Absent:
    """In place of a class that this version does not have: nothing is an instance of it."""


C_SHARE_CONSUMER: Any = getattr(cimpl, "ShareConsumer", _Absent)  # since 2.15
HAS_SHARES = C_SHARE_CONSUMER is not _Absent
AIO_PRODUCER: Any = _Absent
AIO_CONSUMER: Any = _Absent
ASYNC_DESERIALIZING_CONSUMER: Any = _Absent
try:  # since 2.13
    from confluent_kafka import aio
except ImportError:
    HAS_AIO = False
else:
    HAS_AIO = True
    AIO_PRODUCER, AIO_CONSUMER = aio.AIOProducer, aio.AIOConsumer
    ASYNC_DESERIALIZING_CONSUMER = getattr(aio, "AsyncDeserializingConsumer", _Absent)  # since 2.16


def _stand_in(c_type: Any) -> Any:
    """What stands in a C type's place. A program that derives no class of its own gets one that something can be kept
    beside; the other has no slots, else classes that were derived from the C type could not be put below it.
    """

    class StandIn(c_type):  # type: ignore[misc]
        __slots__ = ()
        __module__ = "cimpl"

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__new__(Referable if cls is StandIn else cls, *args, **kwargs)

    class Referable(StandIn):
        __slots__ = ("__weakref__",)
        __module__ = "cimpl"

    for it in (StandIn, Referable):
        it.__name__ = it.__qualname__ = c_type.__name__
        it.__doc__ = c_type.__doc__
    return StandIn


Producer: Any = _stand_in(C_PRODUCER)
Consumer: Any = _stand_in(C_CONSUMER)
ShareConsumer: Any = _stand_in(C_SHARE_CONSUMER) if HAS_SHARES else _Absent

_STAND_INS: tuple[tuple[Any, Any], ...] = (
    (C_PRODUCER, Producer),
    (C_CONSUMER, Consumer),
    *([(C_SHARE_CONSUMER, ShareConsumer)] if HAS_SHARES else ()),
)


# Their places


class Substitution:
    """The stand-ins in the places of the C types; ``undo`` puts the C types back, wherever they are by then."""

    def __init__(self) -> None:
        self._derived: list[tuple[weakref.ref[Any], type, type]] = []
        for c_type, stand_in in _STAND_INS:
            for found in c_type.__subclasses__():
                if found is not stand_in and _rebase(found, c_type, stand_in):
                    self._derived.append((weakref.ref(found), c_type, stand_in))
        rebind(_STAND_INS, but=_OURS)

    def undo(self) -> None:
        rebind(((stand_in, c_type) for c_type, stand_in in _STAND_INS), but=_OURS)
        for reference, c_type, stand_in in self._derived:
            derived: Any = reference()
            if derived is not None:
                _rebase(derived, stand_in, c_type)


def _rebase(derived: type, old: type, new: type) -> bool:
    try:
        derived.__bases__ = tuple(new if base is old else base for base in derived.__bases__)
    except TypeError as error:  # a layout or an order of bases that does not allow it
        guard.mistake(
            "instrumenting confluent-kafka",
            f"a class derived from its clients stays as it is ({error}); "
            "wrap the calls of its objects: traced_publish(producer.produce)",
            about=derived.__qualname__,
        )
        return False
    return True


# What is known of each


class Known(NamedTuple):
    """What a client was configured with, as far as it is told."""

    client_id: str | None = None
    group: str | None = None
    host: str | None = None
    port: int | None = None
    on_delivery: int = 0
    """The number (``id``) of the callback for all reports. Kept itself, it would keep alive what it belongs to."""


NOTHING = Known()
_known: Kept[Known] = Kept()


class _Somebody:
    """Stands for all clients that nothing can be kept beside: those that were made by the C types themselves."""


SOMEBODY = _Somebody()


def note(wrapped: Wrapped, client: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``__init__``."""
    wrapped(*args, **kwargs)
    if referable(client) is SOMEBODY:
        return
    try:
        given = args[0] if args and isinstance(args[0], Mapping) else {}
        _known.put(client, None, _told({**given, **kwargs}))
    except Exception as error:
        guard.fault("reading the configuration of a client of confluent-kafka", error)


def _told(configuration: Mapping[str, Any]) -> Known:
    def text(*names: str) -> str | None:
        found = (configuration.get(name) for name in names)
        return next((it for it in found if isinstance(it, str)), None)

    address = kafka.address(text("bootstrap.servers", "metadata.broker.list") or "")
    on_delivery = configuration.get("on_delivery")
    number = 0 if on_delivery is None else id(on_delivery)
    return Known(text("client.id"), text("group.id"), *address, number)


def find_known(client: Any) -> Known | None:
    """What is known of a client; None of one that was made before the library was instrumented."""
    return _known.find(client)


def known(client: Any) -> Known:
    """The same, and nothing of such a one."""
    return _known.find(client) or NOTHING


def referable(client: Any) -> Any:
    """The client, or ``SOMEBODY`` where it takes no weak reference."""
    return client if type(client).__weakrefoffset__ else SOMEBODY


def destination_of(places: Sequence[tuple[Any, Any]], client: Any) -> Destination:
    """Where these are all from, each a topic and a partition, by what is known of the client that consumes them."""
    facts = known(beneath_of(client))
    return kafka.destination_of_all(places, facts.group, facts.client_id, facts.host, facts.port)


def configured_callback(producer: Any, facts: Known | None) -> tuple[bool, Callable[..., Any] | None]:
    """The callback that a producer was configured with for all reports; and before it, whether that is known.

    A producer holds it itself, among what it shows to the garbage collector.
    """
    if facts is not None and not facts.on_delivery:
        return True, None
    held = gc.get_referents(producer)
    if facts is not None:
        found: Any = next((it for it in held if id(it) == facts.on_delivery), None)
        return found is not None, found
    may_be = [it for it in held if callable(it) and not isinstance(it, type)]
    return not may_be, None


# The clients beneath AIO ones


beneath: Kept[bool] = Kept()
"""By them, True: nobody but their AIO client calls them."""


def keep_beneath(client: Any) -> None:
    """What an AIO client's own client does, in a pool's threads, is the AIO client's."""
    its_own = beneath_of(client)
    if its_own is not client and isinstance(its_own, (Producer, Consumer)):
        beneath.put(referable(its_own), None, True)


def is_of_aio(publish: Any) -> bool:
    """Whether it is a method of an AIOProducer, whose class may be the user's."""
    return isinstance(getattr(calls.beneath_partials(publish), "__self__", None), AIO_PRODUCER)


def beneath_of(client: Any) -> Any:
    """The C client beneath an AIO one, which knows the configuration; else the client itself."""
    if isinstance(client, AIO_PRODUCER):
        return getattr(client, "_producer", None)
    if isinstance(client, AIO_CONSUMER):
        return getattr(client, "_consumer", None)
    return client

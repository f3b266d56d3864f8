"""The ladder: which broker a test gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .broker import Broker, EnvironmentBroker, Protocol, Rung, Unavailable

CHOICES = ("auto", "containers", "native", "embedded")
"""The values of ``--brokers``: the whole ladder, or one rung of it."""


@dataclass(frozen=True)
class Service:
    """One kind of broker: the environment variable that may name one, and the rungs below in their order.

    A rung is a function that returns a broker, not yet started, or raises Unavailable with the reason.
    ``stand_ins`` are those of the rungs that only imitate the broker: CI takes them where it names them.
    """

    protocol: Protocol
    variable: str
    rungs: Mapping[Rung, Callable[[], Broker]]
    stand_ins: tuple[Rung, ...] = ()

    @property
    def name(self) -> str:
        return self.protocol.name


SERVICES: list[Service] = []
"""Every kind of broker that the tests know."""


def find(service: Service, choice: str = "auto", *, private: bool = False) -> Broker:
    """Return the first broker of the ladder that can be had, not yet started.

    ``choice`` is one of CHOICES; a rung that is named leaves out the others, the environment's URL too.
    ``private`` asks for one that is ours to stop, so the environment's is left out as well.
    Raises Unavailable with the reason of every rung.
    """
    if choice not in CHOICES:
        raise ValueError(f"brokers are one of {', '.join(CHOICES)}, not {choice!r}")
    url = os.environ.get(service.variable)
    if url and choice == "auto" and not private:
        return EnvironmentBroker(service.protocol, service.variable, url)
    reasons = [] if url or choice != "auto" else [f"url: {service.variable} is not set"]
    for rung, make in service.rungs.items():
        if choice not in ("auto", rung):
            continue
        if choice == "auto" and rung in service.stand_ins and in_ci():
            reasons.append(f"{rung}: only a stand-in, and this is CI")
            continue
        try:
            return make()
        except Unavailable as reason:
            reasons.append(f"{rung}: {reason}")
    if not reasons:
        reasons.append(f"{choice}: there is no such server")
    raise Unavailable(f"no {service.name} for the tests ({'; '.join(reasons)})")


def in_ci() -> bool:
    """Whether ``CI`` is set: there, a broker that cannot be had is a failure and not a skip."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")

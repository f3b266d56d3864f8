"""URLs of brokers, as a person types them."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from queueprop.cli.refusal import Refused, reason

Kind = Literal["rabbitmq", "redis", "kafka"]

_SCHEMES: Mapping[str, Kind] = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "pyamqp": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "kafka": "kafka",
}
_AS_CLIENTS_KNOW_IT = {"pyamqp": "amqp", "valkey": "redis", "valkeys": "rediss"}
_KAFKA_PORT = 9092
_PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379}
_TIMEOUT = 5.0

FORMS = "amqp://user:password@host:5672/vhost, redis://host:6379/0 or kafka://host:9092,host:9092"
T = TypeVar("T")


@dataclass(frozen=True)
class BrokerURL:
    """Where a broker is."""

    kind: Kind
    url: str
    """As its clients take it, passwords included."""
    shown: str
    """As it may be shown: without passwords."""

    @property
    def places(self) -> list[tuple[str, int]]:
        """Host and port of each server."""
        if self.kind == "kafka":
            pairs = (server.rpartition(":") for server in self.servers)
            return [(host.strip("[]"), int(port)) for host, _, port in pairs]
        parts = urlsplit(self.url)
        return [(parts.hostname or "localhost", parts.port or _PORTS[parts.scheme])]

    @property
    def servers(self) -> list[str]:
        """``host:port`` of each, as clients of Kafka take it."""
        places = self.url.partition("://")[2].partition("/")[0].split(",")
        return [place if ":" in place else f"{place}:{_KAFKA_PORT}" for place in places]


def is_url(text: str) -> bool:
    """Whether it is meant as a URL, and not as a program or a name."""
    return "://" in text


def parse(text: str) -> BrokerURL:
    """Raises Refused, which names the forms, for what is no URL of a broker."""
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    kind = _SCHEMES.get(scheme)
    if not separator or kind is None:
        near = difflib.get_close_matches(scheme, _SCHEMES, n=1)
        hint = f"did you mean {near[0]}://? " if near and separator else ""
        raise Refused(
            f"{_without_password(text)!r} is no broker that queueprop knows: {hint}it takes {FORMS}"
        )
    url = f"{_AS_CLIENTS_KNOW_IT.get(scheme, scheme)}://{rest}"
    parts = _refusing(lambda: urlsplit(url), text)
    if kind == "kafka":
        return BrokerURL(kind, url, _kafka(parts, text))
    _refusing(lambda: parts.port, text)
    if not parts.hostname:
        raise Refused(f"{_without_password(text)!r} names no host: it takes {FORMS}")
    if parts.port == 0:
        raise Refused(f"{_without_password(text)!r} has the port 0: it takes {FORMS}")
    return BrokerURL(kind, url, _without_password(url))


def connect_once(broker: BrokerURL) -> None:
    """Raises Refused where no server of the broker takes a connection: clients would try again, for long."""
    error: OSError | None = None
    for place in broker.places:
        try:
            with socket.create_connection(place, timeout=_TIMEOUT):
                return
        except OSError as failed:
            error = failed
    assert error is not None  # there is a host, else it would have been refused before
    raise Refused(f"{broker.shown} does not answer: {reason(error)}")


def _kafka(parts: SplitResult, text: str) -> str:
    """One host or several, and nothing else: a name and a password would go to a broker that takes none here."""
    if "@" in parts.netloc:
        raise Refused("kafka:// takes no user and password, and no TLS: kafka://host:9092,host:9092")
    for place in parts.netloc.split(","):
        host, _, port = place.rpartition(":") if ":" in place else (place, "", str(_KAFKA_PORT))
        if not host or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
            raise Refused(f"{text!r} has no host and port in {place!r}: it takes {FORMS}")
    return f"kafka://{parts.netloc}"


def _refusing(call: Callable[[], T], text: str) -> T:
    try:
        return call()
    except ValueError as error:
        raise Refused(f"{_without_password(text)!r} is no URL ({error}): it takes {FORMS}") from None


def _without_password(text: str) -> str:
    """Whatever stands between the first colon and the last ``@`` of the address is nobody's to read."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    place, slash, path = rest.partition("/")
    login, at, host = place.rpartition("@")
    user = login.partition(":")[0]
    hidden = f"{user}:***@{host}" if ":" in login else f"{login}{at}{host}"
    return f"{scheme}://{hidden}{slash}{path.partition('?')[0]}"

"""kombu, below the libraries that use it: the broker behind a producer or a channel, without opening anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from queueprop.engine.message import Destination
from queueprop.kit.fitting import fitted
from queueprop.kit.rabbitmq import OTHER_PROPERTIES, fits_a_frame, surely_fits


def client_of(producer: Any) -> Any:
    """The Connection of a producer; None where there is none, or where the producer is a double of somebody's tests."""
    return getattr(producer, "__connection__", None) or client_at(getattr(producer, "_channel", None))


def client_at(channel: Any) -> Any:
    """The Connection of a channel; None where there is none."""
    return getattr(getattr(channel, "connection", None), "client", None)


def broker_of(client: Any) -> tuple[str, str | None, int | None]:
    """``messaging.system``, host and port."""
    if client is None:
        return "kombu", None, None
    transport = client.transport
    kind: str = transport.driver_type
    if transport.can_parse_url or not transport.default_port:
        # No server, or one that is not found by host and port, or all of its URL is the name: with the password.
        return _SYSTEMS.get(kind, kind), None, None
    host: str = client.hostname or "localhost"
    if host.startswith("socket://"):
        return kind, host.removeprefix("socket://"), None
    return _SYSTEMS.get(kind, kind), host, int(client.port or transport.default_port)


def frame_max_of(client: Any) -> int:
    """In bytes, for a transport that sends its headers in one frame; else 0.

    Of one that is not connected yet it is what py-amqp asks the broker for.
    """
    if client is None or client.transport.driver_type != "amqp":
        return 0
    agreed = getattr(getattr(client, "_connection", None), "frame_max", None)
    return agreed if isinstance(agreed, int) else _FRAME_MAX


_FRAME_MAX = 131_072


def fitted_to_frame(
    headers: dict[Any, Any],
    given: Mapping[Any, Any] | None,
    client: Any,
    where: str,
    destination: Destination,
    beside: Mapping[Any, Any] | None = None,
) -> dict[Any, Any]:
    """What of the context goes out, where the transport sends all headers in one frame.

    Args:
        headers: with all of the context.
        given: as they were.
        client: the Connection that they go through; None where it is not known.
        where, destination: for the log, where nothing of it has room.
        beside: what else the layer above has in the same table.
    """
    frame_max = frame_max_of(client)
    if not frame_max:
        return headers

    def fits(headers: Mapping[Any, Any]) -> bool:
        table = {**beside, **headers} if beside else headers
        return surely_fits(table, frame_max) or fits_a_frame(
            frame_max, lambda: _encoded(table) + OTHER_PROPERTIES
        )

    return fitted(headers, lambda: dict(given or {}), fits, where, destination.name)


def _encoded(table: Mapping[Any, Any]) -> int:
    from amqp.serialization import dumps  # kombu requires it, and whoever has no kombu does not come here

    return len(dumps("F", [table]))


# Where the conventions have a name of their own for a transport's broker.
_SYSTEMS = {
    "amqp": "rabbitmq",
    "azureservicebus": "servicebus",
    "gcpubsub": "gcp_pubsub",
    "sqs": "aws_sqs",
}

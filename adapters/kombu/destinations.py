"""The broker behind a producer, a channel or a queue of kombu, without opening what is not open yet."""

from __future__ import annotations

from typing import Any


def client_of(producer: Any) -> Any:
    """The Connection of a producer."""
    return producer.__connection__ or client_at(producer._channel)


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


# Where the conventions have a name of their own for a transport's broker.
_SYSTEMS = {
    "amqp": "rabbitmq",
    "azureservicebus": "servicebus",
    "gcpubsub": "gcp_pubsub",
    "sqs": "aws_sqs",
}

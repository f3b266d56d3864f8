"""Where a client of redis-py connects to."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from opentelemetry.util.types import AttributeValue

from queueprop.kit.redis import address_of


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://broker.example:6380/1", ("broker.example", 6380)),
        ("redis://broker.example", ("broker.example", 6379)),
        ("unix:///run/redis.sock", ("/run/redis.sock", None)),
    ],
)
def test_of_a_url(url: str, address: tuple[AttributeValue, ...]) -> None:
    """Host and port; the path of a Unix socket."""
    assert address_of(redis.Redis.from_url(url)) == address


@pytest.mark.parametrize("client", [None, object(), redis.Redis(connection_pool=redis.ConnectionPool())])
def test_what_does_not_tell(client: Any) -> None:
    """A client of another kind, or one whose pool has only defaults: nothing is made up."""
    assert address_of(client) == (None, None)

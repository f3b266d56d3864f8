"""Who an order is for: told once, by the headers of the HTTP request, and carried by baggage through every hop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import baggage, context, trace

# Baggage goes wherever a request or a message goes, other people's services included: ids, and no names or addresses.
HEADERS = {"tenant.id": "x-tenant-id", "user.id": "x-user-id"}


@contextmanager
def customer_of(headers: Mapping[str, str]) -> Iterator[None]:
    """The customer is in the baggage of what is done inside, and on the span that is current here."""
    now = context.get_current()
    for key, header in HEADERS.items():
        if value := headers.get(header):
            now = baggage.set_baggage(key, value, now)
    token = context.attach(now)
    try:
        trace.get_current_span().set_attributes(customer())
        yield
    finally:
        context.detach(token)


def customer() -> dict[str, str]:
    """What the baggage tells of the customer, as attributes of a span. Baggage is no attribute by itself."""
    found = {key: baggage.get_baggage(key) for key in HEADERS}
    return {key: str(value) for key, value in found.items() if value is not None}

"""The payment provider, which is somebody else's, and here a stand-in whose answer depends on the card."""

from __future__ import annotations

import asyncio

from opentelemetry import trace

tracer = trace.get_tracer("order-service")

ATTEMPTS = 2
SLOW = 2.5
"""Seconds that the provider takes for the card ``slow``."""


class PaymentFailed(Exception):
    """The money was not to be had, and nobody knows why."""


class ProviderTimeout(Exception):
    """The provider did not answer."""


async def charge(card: str, amount: int) -> None:
    """Raises PaymentFailed. What leaves the block of a span is recorded on it, and makes it an error: by itself."""
    with tracer.start_as_current_span("payment.charge", attributes={"payment.amount": amount}) as span:
        for attempt in range(1, ATTEMPTS + 1):
            span.set_attribute("payment.attempts", attempt)
            try:
                return await _ask_provider(card, attempt)
            except ProviderTimeout as error:
                if attempt == ATTEMPTS:
                    raise PaymentFailed(f"no answer in {attempt} attempts") from error
                # Handled: to be seen in the trace, but no error of the span, since the next attempt may do.
                span.record_exception(error)


async def _ask_provider(card: str, attempt: int) -> None:
    await asyncio.sleep(SLOW if card == "slow" else 0.01)
    if card == "fails" or (card == "flaky" and attempt == 1):
        raise ProviderTimeout("the payment provider did not answer")

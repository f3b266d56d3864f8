"""Where django_dramatiq finds them."""

from __future__ import annotations

import dramatiq

from integration.contract.telemetry import tell
from integration.live import current


@dramatiq.actor
def work(note: str) -> None:
    trace_id, span_id = current()
    tell("seen", {"note": note, "trace_id": trace_id, "span_id": span_id})

"""A job whose module sets up the SDK when it is imported: in a spawned work horse, when the job has begun."""

from __future__ import annotations

from opentelemetry import trace

from integration import rq_tasks
from integration.contract.telemetry import set_providers

if not hasattr(trace.get_tracer_provider(), "force_flush"):
    set_providers()

work = rq_tasks.work

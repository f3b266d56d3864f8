"""A real OpenTelemetry Collector, Jaeger and Prometheus, built from their Go modules once and kept in a cache.

Tests only look into the cache, since building takes minutes; ``make sampling`` and ``make dashboard`` build what is not
there.
"""

from .build import built, fetched
from .collector import CONFIGURATIONS, Collector, validation
from .jaeger import Jaeger
from .prometheus import Prometheus

__all__ = ["CONFIGURATIONS", "Collector", "Jaeger", "Prometheus", "built", "fetched", "validation"]

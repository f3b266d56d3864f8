"""Every test here starts and ends as the engine's do."""

from tests.engine.conftest import _fresh, _no_context_left_behind, guarded, telemetry

__all__ = ["_fresh", "_no_context_left_behind", "guarded", "telemetry"]

"""Tests of the engine: spans, operations, scopes, handlers, loops, adapters, settings, the guard. No broker."""

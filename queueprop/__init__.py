"""Carries OpenTelemetry context through message queues."""

__version__ = "0.1.0"

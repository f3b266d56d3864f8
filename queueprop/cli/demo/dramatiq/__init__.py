"""The demo on Dramatiq."""

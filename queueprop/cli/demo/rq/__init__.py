"""The demo on RQ."""

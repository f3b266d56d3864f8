"""The demo on kombu."""

"""The demo on BullMQ."""

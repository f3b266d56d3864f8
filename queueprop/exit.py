"""The end of a process: what ends how, and who hands over the last spans (``queueprop.process.exit``)."""

from queueprop.process.exit import SIGTERM_STATUS, HandOver

__all__ = ["SIGTERM_STATUS", "HandOver"]

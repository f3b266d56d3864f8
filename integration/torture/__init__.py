"""Torture: what breaks everything around queueprop on purpose. ``make torture`` runs it; see ``__main__``."""

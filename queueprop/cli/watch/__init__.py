"""``queueprop watch``: an OTLP/HTTP receiver that shows the traces as they come, and which deliveries are orphaned."""

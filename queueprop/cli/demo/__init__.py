"""``queueprop demo``. The two services are in a folder for each broker: short files, to be read and copied."""

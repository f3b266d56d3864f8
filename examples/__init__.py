"""Programs as people would write them, with queueprop."""

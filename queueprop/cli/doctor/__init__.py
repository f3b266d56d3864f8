"""``queueprop doctor``: what is installed, set up and in force, and whether spans would come out."""

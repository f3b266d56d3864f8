"""One module a library, installed and imported as ``queueprop.adapters.<library>``."""

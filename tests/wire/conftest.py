"""Property tests here have no time limit an example: a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("wire", deadline=None)
settings.load_profile("wire")

"""What holds for the tests without brokers and for those with them."""

from __future__ import annotations

import gc
import os

_was_enabled: list[bool] = []


def _before_fork() -> None:
    _was_enabled.append(gc.isenabled())
    gc.disable()


def _after_in_parent() -> None:
    if _was_enabled.pop():
        gc.enable()


def _after_in_child() -> None:
    gc.freeze()
    _after_in_parent()


# The garbage of the process that forks is not its child's to collect: a Kafka client of librdkafka's among it, whose
# threads are no more there, brings the child down (SIGSEGV, or an assertion of its own) where it is collected.
os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)

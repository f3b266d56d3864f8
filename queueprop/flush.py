"""``flush()``: hand over what is recorded, in bounded time. For a process that ends without its exit hooks."""

from queueprop.process.flush import flush

__all__ = ["flush"]

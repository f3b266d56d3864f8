"""A connection of pika's asynchronous kinds, run for as long as something takes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection


class Loop:
    """Connects at once. ``run`` runs the loop until ``stop`` is called inside it, or the connection ends."""

    def __init__(self, style: str, parameters: Any, connection_class: Any = None) -> None:
        self.error: BaseException | None = None
        """What a callback raised, as pika was given it: it logs it, and tells no one else more than its text."""
        self._thread = 0
        options: dict[str, Any] = {}
        if style == "AsyncioConnection":
            options["custom_ioloop"] = asyncio.new_event_loop()
        self.connection = (connection_class or self.class_of(style))(
            parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._ended,
            on_close_callback=self._ended,
            **options,
        )
        self.native = self.connection.ioloop
        self._start: Callable[[], None] = (
            self.native.run_forever if style == "AsyncioConnection" else self.native.start
        )
        self._close_native = self.native.close
        self.run()
        if self.error is not None:
            raise self.error

    @staticmethod
    def class_of(style: str) -> Any:
        return AsyncioConnection if style == "AsyncioConnection" else pika.SelectConnection

    def run(self) -> None:
        if self.connection.is_closed:
            return
        self._thread = threading.get_ident()
        _logger.addFilter(self._take_error)
        try:
            self._start()
        finally:
            _logger.removeFilter(self._take_error)

    def stop(self, *_: Any) -> None:
        self.native.stop()

    def flush(self, queue: str) -> None:
        """Ends the consumers, and returns when the broker has all that was sent."""
        if self.connection.is_open:
            for tag in self.channel.consumer_tags:
                self.channel.basic_cancel(tag)
            self.channel.queue_declare(queue, passive=True, callback=self.stop)
            self.run()

    def close(self) -> None:
        if self.connection.is_open:
            self.connection.close()
            self.run()
        self._close_native()

    def _opened(self, connection: Any) -> None:
        self.channel = connection.channel(on_open_callback=self.stop)

    def _ended(self, connection: Any, reason: Any) -> None:
        if self.error is None and not isinstance(reason, pika.exceptions.ConnectionClosed):
            self.error = reason
        self.stop()

    def _take_error(self, record: logging.LogRecord) -> bool:
        if record.exc_info and threading.get_ident() == self._thread:
            self.error = record.exc_info[1]
        return False


_logger = logging.getLogger("pika.adapters.utils.io_services_utils")

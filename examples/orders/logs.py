"""Logs as JSON, a line each, with the ids of the span that is current: from stdlib, structlog or loguru.

Whatever ORDERS_LOGGER says, the lines look the same, and the libraries' own (uvicorn's, SQLAlchemy's), which all come
through stdlib, are among them.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from loguru import logger as loguru_logger

from queueprop.logs import TraceContextFilter, add_trace_context, patch_record

from . import config

if TYPE_CHECKING:
    from loguru import Message

IDS = ("trace_id", "span_id", "trace_flags")


class Logger(Protocol):
    """What the services ask of a logger: an event, whose text is constant (loguru formats it), and fields by names."""

    def info(self, event: str, /, **fields: Any) -> Any: ...

    def exception(self, event: str, /, **fields: Any) -> Any: ...


def configure() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(TraceContextFilter())  # on the handler: a logger's would not see the loggers below it
    handler.setFormatter(_JSON())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("orders").setLevel(logging.INFO)
    if config.LOGGER == "structlog":
        _configure_structlog()
    elif config.LOGGER == "loguru":
        _configure_loguru()


def get_logger(name: str) -> Logger:
    if config.LOGGER == "structlog":
        return cast(Logger, structlog.get_logger(logger_name=name))
    if config.LOGGER == "loguru":
        return cast(Logger, loguru_logger.bind(logger_name=name))
    return _WithFields(logging.getLogger(f"orders.{name}"))


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ids = {name: getattr(record, name) for name in IDS if getattr(record, name)}
        line = {
            "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger_name": record.name.removeprefix("orders."),
            **getattr(record, "fields", {}),
            **ids,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _WithFields:
    """Fields by their names, which stdlib takes in ``extra``."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, event: str, /, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def exception(self, event: str, /, **fields: Any) -> None:
        self._logger.exception(event, extra={"fields": fields})


def _configure_structlog() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_trace_context,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    )


def _configure_loguru() -> None:
    loguru_logger.remove()
    # In the patcher, and not in the sink: with enqueue=True that one runs in a thread where no span is current.
    loguru_logger.configure(patcher=patch_record)
    loguru_logger.add(_write_loguru, format="{message}", level="INFO")


def _write_loguru(message: Message) -> None:
    record = message.record
    line = {
        "timestamp": record["time"].astimezone(timezone.utc).isoformat(),
        "level": record["level"].name.lower(),
        "event": record["message"],
        **{name: value for name, value in record["extra"].items() if value or name not in IDS},
    }
    if record["exception"]:
        line["exception"] = str(message).partition("\n")[2]
    print(json.dumps(line, default=str), flush=True)

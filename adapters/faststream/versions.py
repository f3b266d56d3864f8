"""What of FastStream's own has another place, or another form, in one of its versions."""

from __future__ import annotations

import re
from typing import Any

from faststream.__about__ import __version__

try:
    from faststream._internal.broker import BrokerUsecase
    from faststream._internal.endpoint.publisher.usecase import PublisherUsecase
    from faststream._internal.endpoint.subscriber.usecase import SubscriberUsecase
    from faststream.message import StreamMessage
    from faststream.response import PublishCommand

    _PUBLISHES = ("_basic_publish", "_basic_publish_batch", "_basic_request")
    STEPS_OF_A_MESSAGE: list[tuple[Any, str]] = [
        *((owner, name) for owner in (BrokerUsecase, PublisherUsecase) for name in _PUBLISHES),
        (SubscriberUsecase, "process_message"),
    ]
except ModuleNotFoundError:  # before 0.6
    from faststream.broker.core.usecase import BrokerUsecase  # type: ignore[import-not-found, no-redef]
    from faststream.broker.message import StreamMessage  # type: ignore[import-not-found, no-redef]
    from faststream.broker.subscriber.usecase import (  # type: ignore[import-not-found, no-redef]
        SubscriberUsecase,
    )

    STEPS_OF_A_MESSAGE = []
    PublishCommand = None  # type: ignore[assignment, misc]

LAST_IS_OUTERMOST = re.match(r"0\.5\.([12]?\d|30)(?!\d)", __version__) is not None
"""Before 0.5.31 the last of a broker's middlewares is around the others."""

__all__ = [
    "LAST_IS_OUTERMOST",
    "STEPS_OF_A_MESSAGE",
    "BrokerUsecase",
    "PublishCommand",
    "StreamMessage",
    "SubscriberUsecase",
]

"""The core: ``send_span`` and ``process_span``, for a queue that no adapter knows."""

from __future__ import annotations

from typing import Any

import queueprop
from integration.torture.lines import Handler, Line
from queueprop import Destination


class Core(Line):
    library = "core"
    carrier = "dict"
    settles = True

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        sent = {} if headers is None else headers
        if self.settings is not None:
            with queueprop.send_span(_destination(name), headers=sent, settings=self.settings):
                pass
        return sent

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        if self.settings is None:
            return handler(body)
        destination = _destination(name)
        with queueprop.process_span(destination, headers=headers, settings=self.settings):
            found = handler(body)
            if self.settle:
                with queueprop.settle_span(destination, headers=headers, settings=self.settings):
                    pass
        return found


def _destination(name: str) -> Destination:
    return Destination(system="my-queue", name=name)


make = Core

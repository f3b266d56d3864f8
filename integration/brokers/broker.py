"""What a test sees of a broker, whichever rung it stands on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

Rung = Literal["url", "containers", "native", "embedded"]


class Unavailable(Exception):
    """A broker, or one rung of its ladder, cannot be had on this machine. The message is the reason."""


class BrokerError(Exception):
    """A broker that should be there does not work. The message says what happened and ends with its log."""


@dataclass(frozen=True)
class Protocol:
    """How one kind of broker is greeted.

    ``handshake(url, timeout)`` speaks the broker's own protocol, waits ``timeout`` seconds for each answer,
    and raises whatever it met when there was none. ``patience`` is how long a start may take, in seconds.
    """

    name: str
    handshake: Callable[[str, float], None]
    patience: float


class Broker(ABC):
    """One broker.

    ``rung`` is the rung of the ladder that it stands on, ``what`` says what is running there, and ``url`` is
    where it answers: the same place from the first ``start()`` to ``close()``. ``str()`` tells the first two.
    """

    rung: Rung

    def __init__(self, protocol: Protocol, what: str) -> None:
        self.protocol = protocol
        self.what = what
        self.url = ""

    def __str__(self) -> str:
        return f"{self.protocol.name} ({self.rung}: {self.what})"

    def start(self) -> str:
        """Start the broker, or start it again after ``stop()``, and return its URL once it answers.

        Raises BrokerError when it ends or stays silent; nothing is left running then.
        """
        try:
            self._launch()
            self._await_handshake()
        except BaseException:
            self.close()
            raise
        return self.url

    @abstractmethod
    def stop(self) -> None:
        """Stop the broker in order. Its port and what it keeps on disk stay, for the next ``start()``."""

    def restart(self) -> str:
        """Stop the broker and start it again on the same URL, with what it keeps on disk."""
        self.stop()
        return self.start()

    @abstractmethod
    def close(self) -> None:
        """Stop the broker for good and remove everything that belongs to it. Closing twice does no harm."""

    @abstractmethod
    def _launch(self) -> None:
        """Set the broker going, and ``url``."""

    def _ended(self) -> str | None:
        """How the broker ended, if it did."""
        return None

    def _log(self) -> str:
        """What the broker has logged."""
        return ""

    def _await_handshake(self) -> None:
        deadline = time.monotonic() + self.protocol.patience
        while True:
            ended = self._ended()
            if ended is not None:
                raise BrokerError(f"{self} {ended} before it answered{self._log_tail()}")
            try:
                return self.protocol.handshake(self.url, 2.0)
            except Exception as error:
                if time.monotonic() >= deadline:
                    raise BrokerError(
                        f"{self} did not answer on {_address(self.url)} within {self.protocol.patience:g} s: "
                        f"{type(error).__name__}: {error}{self._log_tail()}"
                    ) from error
            time.sleep(0.05)

    def _log_tail(self) -> str:
        lines = self._log().strip().splitlines()[-25:]
        return "\n".join(["; its log ends with:", *lines]) if lines else ""


class EnvironmentBroker(Broker):
    """A broker that the environment names: it is used, and never stopped."""

    rung = "url"

    def __init__(self, protocol: Protocol, variable: str, url: str) -> None:
        # It runs already, or it does not: there is no start to be patient with.
        super().__init__(
            replace(protocol, patience=min(protocol.patience, 5)), f"{variable} at {_address(url)}"
        )
        self._variable = variable
        self.url = url

    def stop(self) -> None:
        raise Unavailable(f"the broker of {self._variable} is not ours to stop")

    def close(self) -> None:
        pass

    def _launch(self) -> None:
        pass


def _address(url: str) -> str:
    """Host and port alone, so that no password comes into a message."""
    return urlsplit(url).netloc.rpartition("@")[2]

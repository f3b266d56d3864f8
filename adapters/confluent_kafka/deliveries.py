"""What is known of each message that was consumed: confluent-kafka's take neither an attribute nor a weak reference."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from confluent_kafka.cimpl import Message

from queueprop.kit.deliveries import Deliveries, Delivery

Key = tuple[int, Any, Any, Any, str]


class MessageDeliveries(Deliveries):
    """Each message has a text of its own for its topic, made anew for each delivery. As long as that text is kept here
    no other message can have it, so it tells one delivery from every other: of another consumer, after a seek, after
    a rebalance. And where nobody else has it any longer, the message is gone.

    (The partition and the offset are for topics of one character, of whose text Python has only one.)
    """

    def __init__(self, most: int = 10_000) -> None:
        super().__init__(lambda native: (native, None))  # a double of somebody's tests
        self._most = most
        self._of_messages: dict[Key, Delivery] = {}
        self._keys: deque[Key] = deque()

    def find(self, native: Any) -> Delivery | None:
        if not isinstance(native, Message):
            return super().find(native)
        return self._of_messages.get(_key(native))

    def of(self, native: Any) -> Delivery:
        if not isinstance(native, Message):
            return super().of(native)
        key = _key(native)
        delivery = self._of_messages.get(key)
        if delivery is None:
            self._forget_gone()
            delivery = self._of_messages[key] = Delivery()
            self._keys.append(key)
        return delivery

    def begin(self, pulled: Sequence[Any]) -> None:
        """These were delivered just now."""
        self._forget_gone()
        for message in pulled:
            if len(message.topic()) > 1:
                continue
            delivery = self._of_messages.pop(_key(message), None)
            if delivery is not None:
                self._gone(delivery)

    def _forget_gone(self) -> None:
        """Looks at the oldest two, and forgets what is gone. At each new one that is enough."""
        for _ in range(2):
            try:
                key = self._keys.popleft()
            except IndexError:
                return
            if _holders(key) > _NONE and len(self._keys) < self._most:
                self._keys.append(key)
                continue
            delivery = self._of_messages.pop(key, None)
            if delivery is not None:
                self._gone(delivery)


_topics: dict[str, str] = {}


def topic_of(message: Any) -> Any:
    """A message's topic, as a text that is kept: the message's own must go with it."""
    topic = message.topic()
    try:
        return _topics[topic]
    except (KeyError, TypeError):
        if not isinstance(topic, str):
            return topic
    if len(_topics) >= _MOST_TOPICS:
        _topics.clear()
    copied = topic.encode().decode()
    return _topics.setdefault(copied, copied)


_MOST_TOPICS = 1000


def _key(message: Any) -> Key:
    topic = message.topic()
    epoch = message.leader_epoch() if _HAS_EPOCH else None
    return id(topic), message.partition(), message.offset(), epoch, topic


def _holders(key: Key) -> int:
    return sys.getrefcount(key[4])


_HAS_EPOCH = hasattr(Message, "leader_epoch")
_NONE = _holders((0, 0, 0, 0, "".join(("no", "body"))))  # of a text that only its key has

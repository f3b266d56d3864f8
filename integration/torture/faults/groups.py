"""Kafka's groups: a member that comes while a handler is at work."""

from __future__ import annotations

from integration.torture.report import Row

from .comparing import SETTLED, compared
from .trial import Trial


def rebalanced(library: str, url: str, messages: int) -> Row:
    """Another member comes while a handler is at work, and gets one of the two partitions."""

    def break_it(trial: Trial) -> None:
        trial.wait(lambda: bool(trial.told("lingers")), "a handler at work")
        trial.add_worker()

    return compared(
        library,
        "a rebalance while a handler is at work",
        url,
        break_it,
        equal=SETTLED,
        most_redelivered=4,
        messages=messages,
        fates={10: "linger", messages // 2: "linger"},
        again=0,
        partitions=2,
    )


def node_is_killed(library: str, cluster: object, messages: int) -> Row:
    """One of three nodes, which leads the topic's partition, or takes part in it."""
    nodes = list(cluster.nodes)  # type: ignore[attr-defined]

    def break_it(trial: Trial) -> None:
        for share, node in ((0.2, nodes[0]), (0.5, nodes[1])):
            trial.wait_until_published(share)
            node.kill()
            trial.wait_until_published(share + 0.2)
            node.start()

    return compared(
        library,
        "two of three nodes killed, one after the other, and started again",
        cluster.url,  # type: ignore[attr-defined]
        break_it,
        equal=SETTLED,
        most_redelivered=20,
        messages=messages,
        again=0,
        partitions=3,
    )

"""The same on live brokers: what is delivered, redelivered, dead, left and unacknowledged is what a plain run leaves.

python -m integration.torture.hostile_live LIBRARY URL MESSAGES BEHAVIOURS [PLACE ...]      prints a report as JSON
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from integration.brokers import KAFKA, RABBITMQ, REDIS, Broker, Service, find
from integration.brokers.kafka import addresses
from integration.torture import children
from integration.torture.hostilities import BEHAVIOURS, HOSTILITIES
from integration.torture.lines import instrumented
from integration.torture.report import Row
from queueprop import Settings

LIVE: tuple[tuple[str, Service], ...] = (
    ("pika", RABBITMQ),
    ("rq", REDIS),
    ("celery", REDIS),
    ("aiokafka", KAFKA),
)

BEHAVING = ("raises", "gives None", "blocks")
PLACES_OF_SHORT = (
    "processor.on_end",
    "sampler.should_sample",
    "span.end",
    "consume_hook",
    "propagator.inject",
)


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    for library, service in LIVE[:3] if is_short else LIVE:
        try:
            broker = find(service)
        except Exception as error:
            yield Row("hostile", library, "live", False, {"no broker": error})
            continue
        yield _row(library, broker, is_short, say)


def _row(library: str, broker: Broker, is_short: bool, say: Callable[[str], None]) -> Row:
    say(f"{library} on {broker}")
    places = PLACES_OF_SHORT if is_short else tuple(HOSTILITIES)
    behaving = BEHAVING[:1] if is_short else BEHAVING
    url = broker.start()
    try:
        arguments = (library, url, 10 if is_short else 30, ",".join(behaving), *places)
        report = children.run("hostile_live", *arguments, timeout=1800)
    except children.ChildFailed as failed:
        return Row("hostile", library, f"live: {broker}", False, {"failed": failed})
    finally:
        broker.close()
    differing = report.pop("differing")
    for text in differing:
        say(f"{library}, live: {text}")
    return Row("hostile", library, f"live: {broker}", not differing, {**report, "differing": len(differing)})


PATIENCE = 120.0
"""Seconds after which a message that has not come is missing."""

Counts = Counter[str]
"""What became of the messages, by where the broker or the library has them in the end."""


class Refused(Exception):
    """What a handler raises."""


# pika: a third is refused the first time, some are dead-lettered


def pika_counts(url: str, messages: int) -> Counts:
    import pika

    found: Counts = Counter()
    rejected: set[int] = set()
    name = _unique()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(f"{name}-dead", durable=True)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}-dead"}
    channel.queue_declare(name, durable=True, arguments=arguments)
    channel.confirm_delivery()

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        found["redelivered" if method.redelivered else "delivered"] += 1
        if int(body) % 3 == 2 and not method.redelivered:
            channel.basic_nack(method.delivery_tag, requeue=True)
        elif int(body) % 5 == 4:
            channel.basic_reject(method.delivery_tag, requeue=False)
            rejected.add(int(body))
        else:
            channel.basic_ack(method.delivery_tag)

    for number in range(messages):
        channel.basic_publish("", name, str(number).encode(), pika.BasicProperties(delivery_mode=2))
        found["confirmed"] += 1
    channel.basic_consume(name, on_message)
    again = sum(number % 3 == 2 for number in range(messages))
    deadline = time.monotonic() + PATIENCE  # what is missing then is counted
    while found.total() < 2 * messages + again and time.monotonic() < deadline:
        connection.process_data_events(time_limit=1)
    connection.close()  # what is not acknowledged by now is in the queue again
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    found["left"] = channel.queue_declare(name, passive=True).method.message_count
    dead = partial(channel.queue_declare, f"{name}-dead", passive=True)
    found["dead"] = _awaited(lambda: dead().method.message_count, len(rejected))
    for queue in (name, f"{name}-dead"):
        channel.queue_delete(queue)
    connection.close()
    return found


def _awaited(count: Callable[[], int], wanted: int) -> int:
    """A queue's count, which its broker tells a moment later: once it is as many, or in the end what there is."""
    deadline = time.monotonic() + PATIENCE
    while count() < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return count()


# RQ: some jobs fail, and one in three of those is tried again; in the worker's process, and in horses that it forks


def job(number: int) -> int:
    if number % 3 == 2:
        raise Refused(str(number))
    return number


def rq_counts(url: str, messages: int) -> Counts:
    from redis import Redis
    from rq import Queue, Retry, SimpleWorker, Worker

    found: Counts = Counter()
    redis: Any = Redis.from_url(url)
    for kind, number in ((SimpleWorker, messages), (Worker, max(messages // 6, 2))):
        queue = Queue(_unique(), connection=redis)
        for one in range(number):
            queue.enqueue(
                f"{__spec__.name}.job",
                one,
                retry=Retry(max=1) if one % 2 else None,
                failure_ttl=60,
                result_ttl=60,
            )
        worker = kind([queue], connection=redis)
        worker.log.setLevel("CRITICAL")
        worker.work(burst=True)
        name = kind.__name__
        found[f"{name} left"] = queue.count
        found[f"{name} finished"] = len(queue.finished_job_registry)
        found[f"{name} failed"] = len(queue.failed_job_registry)
        found[f"{name} started"] = len(queue.started_job_registry)
        found[f"{name} retried"] = sum(
            getattr(queue.fetch_job(one), "retries_left", None) == 0
            for one in queue.failed_job_registry.get_job_ids()
        )
    return found


# Celery: a worker in a thread; some tasks fail, some are retried


def celery_counts(url: str, messages: int) -> Counts:
    from celery import Celery
    from celery.contrib.testing.worker import start_worker

    found: Counts = Counter()
    name = _unique()
    app: Any = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_default_queue=name,
        task_acks_late=True,
        worker_hijack_root_logger=False,
        broker_transport_options={"polling_interval": 0.01},
        result_expires=60,
    )

    def work(task: Any, number: int) -> int:
        found["retried" if task.request.retries else "performed"] += 1
        if number % 3 == 2 and not task.request.retries:
            raise task.retry(countdown=0, max_retries=1)
        if number % 5 == 4:
            raise Refused(str(number))
        return number

    task = app.task(work, name="work", bind=True, shared=False)
    results = [task.delay(number) for number in range(messages)]
    with start_worker(
        app, pool="solo", perform_ping_check=False, shutdown_timeout=PATIENCE, loglevel="CRITICAL"
    ):
        for result in results:
            result.get(timeout=PATIENCE, propagate=False)
            found[result.state] += 1
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        found["left"] = client.llen(name)
        unacked = client.hvals("unacked")
        found["unacked"] = sum(name.encode() in one for one in unacked)
    app.close()
    return found


# aiokafka: a group that commits each message


def aiokafka_counts(url: str, messages: int) -> Counts:
    return asyncio.run(_aiokafka_counts(addresses(url), messages))


async def _aiokafka_counts(servers: str, messages: int) -> Counts:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    found: Counts = Counter()
    topic = _unique()
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        for number in range(messages):
            await producer.send_and_wait(topic, str(number).encode(), headers=[("tenant", b"acme")])
            found["acknowledged"] += 1
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=topic,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with consumer:
        async for message in consumer:
            found["delivered"] += 1
            await consumer.commit()
            if int(message.value) == messages - 1:
                break
        partition = TopicPartition(topic, 0)
        end = (await consumer.end_offsets([partition]))[partition]
        found["left"] = end - (await consumer.committed(partition) or 0)
    return found


def _unique() -> str:
    return f"torture-{uuid.uuid4().hex[:12]}"


COUNTS: dict[str, Callable[[str, int], Counts]] = {
    "pika": pika_counts,
    "rq": rq_counts,
    "celery": celery_counts,
    "aiokafka": aiokafka_counts,
}


def tried(library: str, url: str, messages: int, behaviours: list[str], places: list[str]) -> children.Report:
    logging.raiseExceptions = False
    plain = COUNTS[library](url, messages)
    differing: list[str] = []
    hostilities = calls = 0
    for place in places:
        for behaves in behaviours:
            behaviour = BEHAVIOURS[behaves]()
            with HOSTILITIES[place](behaviour, {}) as settings:
                found = _counted(library, settings, url, messages)
            hostilities, calls = hostilities + 1, calls + behaviour.calls
            if found != plain:
                differing.append(f"{place} {behaves}: {_shown(found)} instead of {_shown(plain)}")
    return {"hostilities": hostilities, "calls": calls, "each": _shown(plain), "differing": differing}


def _counted(library: str, settings: Settings | None, url: str, messages: int) -> Counts:
    """What is raised out of a publish or a worker is a count, too."""
    with instrumented(library, settings):
        try:
            return COUNTS[library](url, messages)
        except Exception as error:
            return Counter({f"{type(error).__qualname__}: {str(error)[:200]}": 1})


def _shown(counts: Counts) -> str:
    return ", ".join(f"{what} {times}" for what, times in sorted(counts.items()) if times)


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(tried(given[0], given[1], int(given[2]), given[3].split(","), given[4:])))

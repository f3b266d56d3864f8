"""RQ's jobs as messages: the context in ``meta``, the destination, which attempt it is."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterable
from typing import Any, cast

from opentelemetry.util.types import AttributeValue
from rq.job import Job

from queueprop import guard
from queueprop.engine.message import Destination, Message, bounded, remembered
from queueprop.kit import redis
from queueprop.kit.jobs import SCHEDULE, with_carrier

META_KEY = "queueprop"
"""Where in ``job.meta`` the context travels."""


SYSTEM = "rq"
"""``messaging.system``: the conventions have no value for RQ, and this is what its users would search for."""


class Published(list[Any]):
    """The jobs' data of one ``enqueue_many`` that is traced already."""


@remembered
def _destination_at(name: str, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def destination_of(queue_name: str, connection: Any) -> Destination:
    return _destination_at(queue_name, *redis.address_of(connection))


def put_context(job: Any, carrier: dict[str, str]) -> None:
    """Into a copy: the caller may use one ``meta`` for many jobs."""
    try:
        if carrier and job.retries_left:
            carrier[_RETRIES] = str(job.retries_left)
        if holds_meta(job):
            job.meta = with_carrier(job.meta, META_KEY, carrier)
    except Exception as error:
        guard.fault("writing the context of a job", error)


def put_contexts(datas: Published, messages: Iterable[Message]) -> None:
    try:
        for index, message in enumerate(messages):
            data, carrier = datas[index], cast("dict[str, str]", message.headers)
            if carrier and data.retry:
                carrier[_RETRIES] = str(data.retry.max)
            datas[index] = data._replace(meta=with_carrier(data.meta or {}, META_KEY, carrier))
    except Exception as error:
        guard.fault("writing the context of several jobs", error)


def holds_meta(job: Any) -> bool:
    """Whether ``meta`` is what is stored. What RQ could not read it must write back untouched."""
    return getattr(job, "_unreadable_meta", None) is None


_RETRIES = "retries"
"""Beside the context: how many retries the job began with, for RQ only counts how many are left."""

BESIDE = (_RETRIES, SCHEDULE)
"""What stands beside the context, and goes with each publish anew."""


_DIGITS = 9
"""Of a number of retries. What stands there is input, and ``int`` refuses thousands."""


def attempt_of(job: Any, carrier: Any) -> int | None:
    """Which attempt this is, where RQ tells: not for a job that repeats. A job requeued by hand begins anew."""
    returned = getattr(job, "number_of_retries", None) or 0
    most = carrier.get(_RETRIES) if isinstance(carrier, dict) else None
    if isinstance(most, str) and most.isdecimal() and len(most) <= _DIGITS and job.retries_left is not None:
        return 1 + max(0, int(most) - int(job.retries_left)) + int(returned)
    if job.retries_left is None and (returned or job.ended_at is None):
        return 1 + int(returned)
    return None


def seconds_of(moment: datetime.datetime | None) -> float | None:
    if moment is None:
        return None
    # RQ 1 has naive times in UTC.
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    return aware.timestamp()


def delay_until(moment: Any) -> float | None:
    return max(0.0, moment.timestamp() - time.time()) if isinstance(moment, datetime.datetime) else None


def with_id(data: Any, queue: Any) -> Any:
    """The id that RQ itself would make up a moment later, so that the create span has it."""
    return data._replace(job_id=str(uuid.uuid4())) if data.job_id is None and queue.job_class is Job else data


def function_of(job: Any) -> dict[str, AttributeValue]:
    # Not func_name: it would unpickle the job.
    name = job._func_name
    return {FUNCTION: bounded(name)} if isinstance(name, str) else {}


def function_in(data: Any) -> dict[str, AttributeValue]:
    if isinstance(data.func, str):
        return {FUNCTION: bounded(data.func)}
    name = getattr(data.func, "__qualname__", None)
    return {FUNCTION: f"{getattr(data.func, '__module__', '')}.{name}"} if name else {}


FUNCTION = "code.function.name"

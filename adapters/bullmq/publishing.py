"""BullMQ's calls that publish, read: a queue's, a flow producer's, a scheduler's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from bullmq import FlowProducer, Queue
from opentelemetry.util.types import AttributeValue

from queueprop.adapters.bullmq.options import (
    MAPPING,
    SYSTEM,
    attributes_of,
    delay_in,
    destination_of,
    headers_for,
    omits_context,
    with_headers,
)
from queueprop.engine import semconv
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message, bounded
from queueprop.engine.operations import Create, Send
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.jobs import SCHEDULE, made_by
from queueprop.kit.library import Publication

PUBLISHES = ("add", "addBulk", "upsertJobScheduler")


JOB_REFUSED = "job_refused"
"""``error.type`` of a bulk with a job that was not added. BullMQ raises nothing for it."""


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: a job that goes out, with the caller's own options."""

    queue: str | None
    name: Any
    data: Any
    opts: Mapping[str, Any]


def publication_of(producer: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Publication | None:
    """Of a call of theirs, or of a function of the user's around it, which is known by what it is given.

    None for a flow producer that is closed, which adds nothing and says so by None.
    """
    if isinstance(producer, FlowProducer) and getattr(producer, "closing", False):
        return None
    name = getattr(call, "__name__", None)
    if name == "upsertJobScheduler":
        found = calls.bound(_upsert_arguments, args, kwargs)
        return None if found is None else _Scheduled(producer, *found, checks.library_of(call) == SYSTEM)
    first: Any = args[0] if args else None
    if isinstance(producer, FlowProducer) or (not isinstance(producer, Queue) and _is_flow(first)):
        return _several(producer, calls.bound(_flow_arguments, args, kwargs))
    if name == "addBulk" or _is_list(first):
        return _several(producer, calls.bound(_bulk_arguments, args, kwargs))
    given = calls.bound(_add_arguments, args, kwargs)
    return None if given is None else _Added(producer, *given)


def listed(hook: Hook) -> Hook:
    """The hook around a call that may be given an iterator, which is read once, also where we fail."""

    async def call(wrapped: Wrapped, owner: Any, args: Arguments, kwargs: Options) -> Any:
        if args and isinstance(args[0], Iterator):
            args = ([*args[0]], *args[1:])
        for name in ("jobs", "flows"):
            if isinstance(kwargs.get(name), Iterator):
                kwargs = {**kwargs, name: [*kwargs[name]]}
        return await hook(wrapped, owner, args, kwargs)

    return call


# What goes out


class _Outgoing:
    """A job, with headers that are ours to write to."""

    __slots__ = ("_found", "destination", "headers", "message", "opts")

    def __init__(
        self, owner: Any, queue: Any, name: Any, data: Any, opts: Mapping[str, Any], defaults: Any
    ) -> None:
        self.opts = opts
        self.destination = destination_of(owner, queue)
        self.headers = None if omits_context(opts) or omits_context(defaults) else headers_for(opts)
        self.message = Message(
            headers=self.headers,
            id=calls.text(opts.get("jobId")),
            delay=delay_in(opts),
            native=Publish(queue, name, data, opts),
            attributes=attributes_of(name),
        )
        self.read()

    def read(self) -> None:
        """Nothing has been written into its headers yet."""
        self._found = dict(self.headers) if self.headers else None

    def written(self, send: Send) -> Mapping[str, Any]:
        """Its options with the context; as they are where the publish was asked to leave it alone."""
        if send.closed and (self.headers or None) == self._found:
            return self.opts
        return with_headers(self.opts, self.headers)


class _Added(Publication):
    """A queue's ``add``."""

    place = (2, "opts")

    def __init__(self, queue: Any, name: Any, data: Any, opts: Mapping[str, Any]) -> None:
        queue_name, defaults = getattr(queue, "name", None), getattr(queue, "jobsOpts", None)
        self.job = _Outgoing(queue, queue_name, name, data, opts, defaults)
        super().__init__(self.job.destination, self.job.message)

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        return calls.replaced(*self.place, self.job.written(self.send), args, kwargs)

    def end(self, result: Any) -> None:
        self.send.close_with(result, _id_of)


class _Scheduled(_Added):
    """``upsertJobScheduler``: by who makes the schedule, and for each next job by the worker.

    A worker hands in the options of the job before. The next one begins a trace, which is linked to the schedule's
    making, however many there were between.

    ``tells_by_none``: whether it is BullMQ's own call, whose None says that there is no job. (A function of the user's
    around it need not return what it was given.)
    """

    place = (4, "opts")

    def __init__(
        self,
        owner: Any,
        name: Any,
        data: Any,
        opts: Mapping[str, Any],
        makes_schedule: bool,
        tells_by_none: bool,
    ) -> None:
        super().__init__(getattr(owner, "queue", owner), name, data, opts)
        self._makes_schedule = makes_schedule
        self._tells_by_none = tells_by_none or not makes_schedule
        headers = self.job.headers or {}
        self._made = None if makes_schedule else made_by(headers, headers)
        if self._made is not None:
            self.job.read()

    def begin(self, engine: Engine) -> Send:
        send = super().begin(engine)
        send.begins_trace = not self._makes_schedule
        return send

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        if not self._makes_schedule:
            self.send.detach()  # where no job is due any more there is no span, so nothing may be its child
        if self._made is not None and self.job.headers is not None:
            self.job.headers[SCHEDULE] = self._made
        return super().arguments(args, kwargs)

    def end(self, result: Any) -> None:
        if result is None and self._tells_by_none:
            self.send.drop()  # the schedule is over, or this job has been made: the worker asks at each attempt
        else:
            super().end(result)


def _id_of(job: Any) -> dict[str, AttributeValue]:
    found = calls.text(getattr(job, "id", None))
    return {} if found is None else {semconv.MESSAGE_ID: bounded(found)}


# Several at once


class _Given(NamedTuple):
    """What a call was given that publishes several jobs: a list of them, or flows, at this place."""

    jobs: Any
    place: tuple[int, str]
    are_flows: bool = False
    opts: Any = None
    """A flow producer's ``add`` has options for its queues."""


class _Several(Publication):
    """A create span for each job, whose context it carries; a flow's jobs are all of its tree."""

    def __init__(self, owner: Any, given: _Given) -> None:
        self._owner, self._given = owner, given
        self._jobs: list[tuple[dict[str, Any], _Outgoing]] = []
        self._created: dict[int, Create] = {}
        opts = given.opts if isinstance(given.opts, MAPPING) else {}
        queues = opts.get("queuesOptions")
        self._queues: Mapping[Any, Any] = queues if isinstance(queues, MAPPING) else {}
        is_one = isinstance(given.jobs, MAPPING)
        self._copied = self._copy(given.jobs) if is_one else [self._copy(job) for job in given.jobs]
        destinations = {job.destination for _, job in self._jobs}
        destination = destinations.pop() if len(destinations) == 1 else destination_of(owner, None)
        super().__init__(destination, [job.message for _, job in self._jobs])

    def _copy(self, node: Any) -> Any:
        if not isinstance(node, MAPPING):
            return node  # which the library is about to refuse
        copied = dict(node)
        if self._given.are_flows:
            queue = copied.get("queueName")
            defaults = _defaults(self._queues.get(queue))
        else:
            queue, defaults = getattr(self._owner, "name", None), getattr(self._owner, "jobsOpts", None)
        opts = copied.get("opts")
        known = opts if isinstance(opts, MAPPING) else {}
        job = _Outgoing(self._owner, queue, copied.get("name"), copied.get("data"), known, defaults)
        self._jobs.append((copied, job))
        if self._given.are_flows and isinstance(copied.get("children"), (list, tuple)):
            copied["children"] = [self._copy(child) for child in copied["children"]]
        return copied

    def begin(self, engine: Engine) -> Send:
        for copied, job in self._jobs if not engine.excludes(self.destination) else ():
            if engine.excludes(job.destination):
                with engine.send(job.destination, job.message):
                    continue  # no span: it carries what is current
            create = self._created[id(copied)] = engine.create(job.destination, job.message)
            create.open()
        messages = cast("Sequence[Message]", self.message)
        return engine.send(self.destination, messages, created=[*self._created.values()])

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        for copied, job in self._jobs:
            if job.opts or not copied.get("opts"):
                copied["opts"] = job.written(self.send)
        args, kwargs = calls.replaced(*self._given.place, self._copied, args, kwargs)
        if not self._queues:
            return args, kwargs
        # BullMQ 2 writes each job's options into its queue's defaults.
        own = {name: _with_own_defaults(options) for name, options in self._queues.items()}
        return calls.replaced(1, "opts", {**self._given.opts, "queuesOptions": own}, args, kwargs)

    def fail(self, error: BaseException) -> None:
        self._end_created()
        super().fail(error)

    def end(self, result: Any) -> None:
        refused: list[int] = []
        try:
            for (copied, _), job in zip(self._jobs, _added(result), strict=False):
                found = getattr(job, "id", None)
                if isinstance(found, int) and found < 0:
                    refused.append(found)
                if id(copied) in self._created:
                    self._created[id(copied)].span.set_attributes(_id_of(job))
            if refused:
                # A code of a script's, by which a single add raises.
                text = f"{len(refused)} of {len(self._jobs)} jobs were not added: code {refused[0]}"
                self.send.fail(JOB_REFUSED, text)
        finally:
            self._end_created()
        super().end(result)

    def _end_created(self) -> None:
        for create in self._created.values():
            create.close()


def _added(result: Any) -> Iterator[Any]:
    """The jobs in what such a call returns, in the order of those that it was given."""
    if isinstance(result, Mapping):
        yield result.get("job")
        result = result.get("children")
    elif not isinstance(result, (list, tuple)):
        yield result
    for part in result if isinstance(result, (list, tuple)) else ():
        yield from _added(part)


def _several(owner: Any, given: _Given | None) -> _Several | None:
    if given is None or not (_is_list(given.jobs) or isinstance(given.jobs, MAPPING)):
        return None
    return _Several(owner, given)


def _defaults(options: Any) -> Any:
    return options.get("defaultJobOptions") if isinstance(options, MAPPING) else None


def _with_own_defaults(options: Any) -> Any:
    defaults = _defaults(options)
    return {**options, "defaultJobOptions": dict(defaults)} if isinstance(defaults, MAPPING) else options


def _is_list(given: Any) -> bool:
    return not isinstance(given, (str, bytes, *MAPPING)) and isinstance(given, Iterable)


def _is_flow(given: Any) -> bool:
    first = next(iter(given), None) if _is_list(given) else given
    return isinstance(first, MAPPING) and "queueName" in first


# Their arguments


def _add_arguments(name: Any, data: Any, opts: Any = None) -> tuple[Any, Any, Mapping[str, Any]]:
    return name, data, _checked(opts)


def _bulk_arguments(jobs: Any) -> _Given:
    return _Given(None if isinstance(jobs, MAPPING) else jobs, (0, "jobs"))


def _flow_arguments(flow: Any = None, opts: Any = None, *, flows: Any = None) -> _Given:
    given, name = (flow, "flow") if flows is None else (flows, "flows")
    return _Given(given, (0, name), True, opts)


def _upsert_arguments(
    job_scheduler_id: Any,
    repeat_opts: Any,
    job_name: Any = None,
    job_data: Any = None,
    opts: Any = None,
    override: Any = True,
    producer_id: Any = None,
) -> tuple[Any, Any, Mapping[str, Any], bool]:
    return job_name or job_scheduler_id, job_data, _checked(opts), bool(override)


def _checked(opts: Any) -> Mapping[str, Any]:
    if opts is not None and not isinstance(opts, MAPPING):
        raise TypeError("no options")  # which the library is about to say
    return opts or {}

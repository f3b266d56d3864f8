"""Wrong objects for the adapters' words: refused where a program is set up, told of where a message is at hand."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("aiokafka")
pytest.importorskip("dramatiq")
pytest.importorskip("kombu")
pytest.importorskip("pika")
pytest.importorskip("rq")

import kombu
import rq
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from opentelemetry.trace import INVALID_SPAN, get_current_span
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel
from pika.spec import Basic
from redis import Redis

from queueprop import Destination, Settings, guard
from queueprop.adapters import aiokafka as of_aiokafka
from queueprop.adapters import dramatiq as of_dramatiq
from queueprop.adapters import kombu as of_kombu
from queueprop.adapters import pika as of_pika
from queueprop.adapters import rq as of_rq
from queueprop.adapters.rq import publishing as rq_publishing
from queueprop.testing import CapturedSpans

LINK: Any = {"propagation": "link"}


class Job:
    """A class where a function is wanted."""


def handle(*given: object) -> str:
    return "handled"


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_logged", {})


@pytest.fixture
def channel() -> Any:
    """Pika's, on a connection that goes nowhere."""
    connection = SimpleNamespace(
        params=SimpleNamespace(host="rabbit.example", port=5672, frame_max=131_072),
        callbacks=SimpleNamespace(add=lambda *_, **__: None, remove=lambda *_, **__: None),
        _send_method=lambda *_: None,
    )
    channel = Channel(connection, 1, None)
    channel._set_state(Channel.OPEN)
    return channel


@pytest.fixture
def blocking(channel: Any) -> Any:
    """Its facade, as much of it as has methods."""
    blocking = object.__new__(BlockingChannel)
    blocking._impl = channel
    blocking._pending_returned_messages = []
    return blocking


@pytest.fixture
def kafka() -> tuple[Any, Any]:
    """A producer and a consumer of aiokafka, which talk to nobody."""

    async def make() -> tuple[Any, Any]:
        return AIOKafkaProducer(bootstrap_servers="localhost:1"), AIOKafkaConsumer(
            bootstrap_servers="localhost:1"
        )

    producer, consumer = asyncio.run(make())
    producer._closed = True
    consumer._closed = None
    return producer, consumer


@pytest.fixture
def connection() -> Iterator[kombu.Connection]:
    with kombu.Connection("memory://") as made:
        yield made


@pytest.fixture
def queue() -> rq.Queue:
    return rq.Queue("orders", connection=Redis(port=1))


def refused(word: Callable[..., object], given: Any, form: str, **options: Any) -> None:
    """It is a TypeError of one line, with the word and the right form."""
    with pytest.raises(TypeError) as raised:
        word(given, **options)
    text = str(raised.value)
    name = getattr(word, "__name__", "")
    assert text.startswith(f"{name} wants ") or not name.startswith("traced")
    assert form in text
    assert "\n" not in text
    assert len(text) < 300, text


def told(caplog: pytest.LogCaptureFixture, *parts: str) -> str:
    """It is one line of the log, of one warning, that asks nobody to report it."""
    (record,) = caplog.records
    text = record.getMessage()
    assert record.exc_info is None
    assert "report" not in text
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


class TestPika:
    PUBLISH = "as in traced_publish(channel.basic_publish)"

    def test_what_publishes_nothing(self, channel: Any, blocking: Any) -> None:
        """The channel itself, its class, another method, a method of no channel, another library's, print, nothing."""
        producer = kombu.Connection("memory://").Producer
        wrong: tuple[Any, ...] = (
            channel,
            blocking,
            BlockingChannel,
            channel.basic_get,
            blocking.basic_get,
            blocking.basic_ack,
            functools.partial(channel.basic_ack, 1),
            BlockingChannel.basic_publish,
            producer,
            print,
            [].append,
            "basic_publish",
            None,
        )
        for given in wrong:
            refused(of_pika.traced_publish, given, self.PUBLISH)
        refused(of_pika.traced_publish, channel.basic_publish, "settings=queueprop.Settings(", settings=LINK)

    def test_what_may_stand_for_a_publish(
        self, channel: Any, blocking: Any, captured_spans: CapturedSpans
    ) -> None:
        """Either channel's, whatever is around it, a subclass's, an instrumented one, and doubles: each is traced."""

        class Mine(Channel):  # type: ignore[misc]
            def basic_publish(self, *args: Any, **kwargs: Any) -> Any:
                return super().basic_publish(*args, **kwargs)

            def publish_order(self, exchange: str, key: str, body: bytes, properties: Any = None) -> Any:
                return self.basic_publish(exchange, key, body, properties)

        mine = Mine(channel.connection, 1, None)
        mine._set_state(Channel.OPEN)

        @functools.wraps(channel.basic_publish)
        def retried(*args: Any, **kwargs: Any) -> Any:
            return channel.basic_publish(*args, **kwargs)

        given: list[Any] = [
            channel.basic_publish,
            functools.partial(channel.basic_publish),
            of_pika.traced_publish(channel.basic_publish),
            retried,
            lambda *args, **kwargs: channel.basic_publish(*args, **kwargs),
            mine.basic_publish,
            mine.publish_order,
            mock.Mock(),
            mock.MagicMock(spec=channel.basic_publish),
            mock.create_autospec(channel.basic_publish),
            mock.create_autospec(BlockingChannel, instance=True).basic_publish,
        ]
        for publish in given:
            of_pika.traced_publish(publish)("", "orders", b"hello")
        assert [span.name for span in captured_spans] == ["publish orders"] * len(given)
        instrumentor = of_pika.PikaInstrumentor()
        instrumentor.instrument()
        try:
            of_pika.traced_publish(channel.basic_publish)("", "orders", b"hello")
            of_pika.traced_publish(blocking.basic_publish)
            of_pika.traced_get(blocking.basic_get)
            of_pika.traced_settle(channel.basic_ack)
            refused(of_pika.traced_publish, channel.basic_get, self.PUBLISH)
        finally:
            instrumentor.uninstrument()
        assert len(captured_spans) == len(given) + 1

    def test_a_function_that_cannot_hand_on_a_context(self) -> None:
        """One that takes no properties would fail at each publish."""

        def publish(exchange: str, routing_key: str, body: bytes) -> None: ...

        refused(of_pika.traced_publish, publish, "or a function that takes properties")

    def test_the_other_calls(self, channel: Any, blocking: Any) -> None:
        """traced_get and traced_settle; an asynchronous channel has a basic_get that returns nothing."""
        for given in (channel, blocking.basic_publish, print, None):
            refused(of_pika.traced_get, given, "as in traced_get(channel.basic_get)")
            refused(of_pika.traced_settle, given, "as in traced_settle(channel.basic_ack)")
        refused(of_pika.traced_get, channel.basic_get, "decorate the callback by @traced_consumer")
        for call in (channel.basic_ack, blocking.basic_nack, channel.basic_reject, mock.Mock()):
            assert callable(of_pika.traced_settle(call))
        for call in (blocking.basic_get, lambda queue: None, mock.Mock()):
            assert callable(of_pika.traced_get(call))
        refused(of_pika.traced_get, blocking.basic_get, "queueprop.Settings(", settings=LINK)
        refused(of_pika.traced_settle, channel.basic_ack, "queueprop.Settings(", settings=LINK)

    def test_a_double_of_a_settlement(self, captured_spans: CapturedSpans) -> None:
        """It has no name, and settles what is in hand."""
        settings = Settings(settle_spans=True)
        ack = mock.Mock()
        message = (Basic.GetOk(7, False, "", "orders"), BasicProperties(), b"x")
        with of_pika.traced_message(message, settings=settings):
            of_pika.traced_settle(ack, settings=settings)(7)
        ack.assert_called_once_with(7)
        assert [span.name for span in captured_spans] == ["settle orders", "process orders"]

    def test_handlers(self, caplog: pytest.LogCaptureFixture, captured_spans: CapturedSpans) -> None:
        """What is no function; what is no queue, destination or settings; and a call without a message."""
        form = 'as in @traced_consumer(queue="orders")'
        for given in (Job, "orders", Destination("rabbitmq", "orders"), Settings(), 7):
            refused(of_pika.traced_consumer, given, form)
            refused(of_pika.traced_consumer(queue="orders"), given, form)
        with pytest.raises(TypeError, match=r'^traced_consumer wants a name, as in queue="orders", not '):
            of_pika.traced_consumer(queue=Destination("rabbitmq", "orders"))  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^traced_consumer wants a Destination, as in destination="):
            of_pika.traced_consumer(destination="orders")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^traced_consumer wants Settings, as in settings="):
            of_pika.traced_consumer(settings=LINK)
        decorated = of_pika.traced_consumer(handle)
        assert [decorated(b"hello"), decorated()] == ["handled"] * 2
        told(caplog, "traced_consumer on the function handle: none of its arguments is a delivery of pika's")
        assert len(captured_spans) == 0

    def test_a_callback_that_nobody_decorated(self, channel: Any, caplog: pytest.LogCaptureFixture) -> None:
        """One that the instrumentor has wrapped is its own affair when somebody calls it without a message."""
        registered: list[Any] = []
        instrumentor = of_pika.PikaInstrumentor()
        instrumentor.instrument()
        try:
            channel.basic_consume("orders", handle, consumer_tag="ours")
            registered.append(channel._consumers["ours"])
        finally:
            instrumentor.uninstrument()
        assert registered[0]("no message") == "handled"
        assert caplog.records == []

    def test_loops(self, channel: Any) -> None:
        """What no loop can be over is refused as a loop would, with the right form."""
        for given in (channel, channel.basic_get, 7, None):
            refused(of_pika.traced_messages, given, 'as in traced_messages(channel.consume("orders"))')

    MESSAGES: dict[str, Any] = {  # noqa: RUF012
        "a body": b"x",
        "three bytes": b"abc",
        "a number": 42,
        "an object": Job(),
        "a tuple of two": (Basic.GetOk(1), BasicProperties()),
        "in another order": (Basic.GetOk(1), b"x", BasicProperties()),
        "a dictionary": {"body": b"x"},
    }

    @pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
    def test_messages(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture, message: Any
    ) -> None:
        """Each is handled, without a span; one line for all."""
        with of_pika.traced_message(message) as span:
            assert span is INVALID_SPAN
        assert list(of_pika.traced_messages([message])) == [message]
        with of_pika.traced_batch([message]):
            pass
        assert of_pika.traced_get(lambda queue: message)("orders") is message
        told(caplog, f"(given {type(message).__name__})", "(method, properties, body)")
        assert len(captured_spans) == 0

    def test_a_message_instead_of_a_batch(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """traced_batch(message): no span, and one line."""
        with of_pika.traced_batch((Basic.GetOk(1), BasicProperties(), b"x")):
            pass
        told(caplog, "reading a message of pika")
        assert len(captured_spans) == 0


class TestAiokafka:
    PUBLISH = "as in traced_publish(producer.send)"

    def test_what_publishes_nothing(self, kafka: Any, channel: Any) -> None:
        """The producer itself, its class, another method, another library's, print, nothing."""
        producer, consumer = kafka
        for given in (
            producer,
            AIOKafkaProducer,
            producer.flush,
            producer.create_batch,
            consumer.getone,
            AIOKafkaProducer.send,
            channel.basic_publish,
            print,
            "send",
            None,
        ):
            refused(of_aiokafka.traced_publish, given, self.PUBLISH)
        refused(of_aiokafka.traced_publish, producer.send, "queueprop.Settings(", settings=LINK)

    def test_what_may_stand_for_a_publish(self, kafka: Any, captured_spans: CapturedSpans) -> None:
        """Every one of the producer's, a function around it, and doubles."""
        producer, _ = kafka

        async def send(topic: str, value: bytes, headers: Any = None) -> None: ...

        async def without_headers(topic: str, value: bytes) -> None: ...

        refused(of_aiokafka.traced_publish, without_headers, "or a function that takes headers")

        for publish in (
            producer.send,
            producer.send_and_wait,
            producer.send_batch,
            functools.partial(producer.send),
        ):
            assert callable(of_aiokafka.traced_publish(publish))
        doubles = (mock.AsyncMock(), mock.create_autospec(AIOKafkaProducer, instance=True).send, send)
        for publish in doubles:
            asyncio.run(of_aiokafka.traced_publish(publish)("orders", b"hello"))
        assert [span.name for span in captured_spans] == ["publish orders"] * len(doubles)

    def test_the_other_calls(self, kafka: Any) -> None:
        """traced_get, traced_settle and traced_create_batch."""
        producer, consumer = kafka
        for given in (producer, consumer, consumer.seek, producer.send, print, None):
            refused(of_aiokafka.traced_get, given, "as in traced_get(consumer.getone)")
            refused(of_aiokafka.traced_settle, given, "as in traced_settle(consumer.commit)")
            refused(
                of_aiokafka.traced_create_batch, given, "as in traced_create_batch(producer.create_batch)"
            )
        assert all(
            map(callable, map(of_aiokafka.traced_get, (consumer.getone, consumer.getmany, mock.AsyncMock())))
        )
        for settle in (consumer.commit, producer.send_offsets_to_transaction, mock.AsyncMock()):
            assert callable(of_aiokafka.traced_settle(settle))
        assert callable(of_aiokafka.traced_create_batch(producer.create_batch))
        refused(of_aiokafka.traced_get, consumer.getone, "queueprop.Settings(", settings=LINK)
        refused(of_aiokafka.traced_settle, consumer.commit, "queueprop.Settings(", settings=LINK)
        refused(of_aiokafka.traced_create_batch, producer.create_batch, "queueprop.Settings(", settings=LINK)

    def test_handlers(self, caplog: pytest.LogCaptureFixture, captured_spans: CapturedSpans) -> None:
        """What is no function, no destination, no settings; and a call without a record."""
        for given in (Job, "orders", Destination("kafka", "orders"), 7):
            refused(of_aiokafka.traced_consumer, given, "as in @traced_consumer")
            refused(of_aiokafka.traced_consumer(), given, "as in @traced_consumer")
        with pytest.raises(TypeError, match=r"^traced_consumer wants a Destination, as in destination="):
            of_aiokafka.traced_consumer(destination="orders")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^traced_consumer wants Settings, as in settings="):
            of_aiokafka.traced_consumer(settings=LINK)
        decorated = of_aiokafka.traced_consumer(handle)
        assert [decorated(b"hello"), decorated()] == ["handled"] * 2
        told(
            caplog, "traced_consumer on the function handle: none of its arguments is a record of aiokafka's"
        )
        assert len(captured_spans) == 0

    def test_loops(self, kafka: Any) -> None:
        """What no loop can be over is refused as a loop would, with the right form."""
        for given in (kafka[1].getone, 7, None):
            refused(of_aiokafka.traced_messages, given, "as in traced_messages(consumer)")

    @pytest.mark.parametrize(
        "record", [b"x", 42, None, Job(), {"topic": "orders"}, SimpleNamespace(topic="orders")]
    )
    def test_records(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture, record: Any
    ) -> None:
        """Each is handled, without a span; one line for all."""
        with of_aiokafka.traced_message(record) as span:
            assert span is INVALID_SPAN
        assert list(of_aiokafka.traced_messages([record])) == [record]
        with of_aiokafka.traced_batch([record]):
            pass
        told(
            caplog,
            f"(given {type(record).__name__})",
            "it is no record of aiokafka's, as getone and getmany give them",
        )
        assert len(captured_spans) == 0

    def test_what_looks_like_a_record_is_one(self, captured_spans: CapturedSpans) -> None:
        """A test's own double of it is traced."""
        names = ConsumerRecord.__dataclass_fields__
        record = SimpleNamespace(
            **{
                **dict.fromkeys(names),
                "topic": "orders",
                "offset": 7,
                "headers": (),
                "serialized_value_size": 1,
            }
        )
        with of_aiokafka.traced_message(record):
            assert get_current_span().is_recording()
        assert [span.name for span in captured_spans] == ["process orders"]


class TestKombu:
    def test_what_publishes_nothing(self, connection: kombu.Connection) -> None:
        """The producer itself, another method of it or of a queue, another's, nothing."""
        producer, simple = connection.Producer(), connection.SimpleQueue("orders")
        for given in (
            producer,
            kombu.Producer,
            producer.maybe_declare,
            producer.release,
            simple,
            simple.get,
            print,
            None,
        ):
            refused(of_kombu.traced_publish, given, "as in traced_publish(producer.publish)")
        assert callable(of_kombu.traced_publish(producer.publish))
        assert callable(of_kombu.traced_publish(simple.put))
        refused(of_kombu.traced_publish, producer.publish, "queueprop.Settings(", settings=LINK)

    def test_the_other_calls(self, connection: kombu.Connection) -> None:
        """traced_get and traced_settle."""
        simple = connection.SimpleQueue("orders")
        queue = kombu.Queue("orders", channel=connection.default_channel)
        simple.put("hello")
        message = simple.get()
        for given in (
            queue,
            queue.purge,
            queue.delete,
            simple,
            simple.put,
            simple.clear,
            handle,
            print,
            None,
        ):
            refused(of_kombu.traced_get, given, "as in traced_get(queue.get)")
        for given in (message, message.decode, message.ack_log_error, handle, print, None):
            refused(of_kombu.traced_settle, given, "as in traced_settle(message.ack)")
        refused(of_kombu.traced_get, queue.get, "queueprop.Settings(", settings=LINK)
        refused(of_kombu.traced_settle, message.ack, "queueprop.Settings(", settings=LINK)
        for get in (queue.get, simple.get, simple.get_nowait):
            assert callable(of_kombu.traced_get(get))
        of_kombu.traced_settle(message.ack)()

    def test_handlers(self, caplog: pytest.LogCaptureFixture, captured_spans: CapturedSpans) -> None:
        """What is no function, queue, destination or settings; and a call without a message."""
        for given in (Job, "orders", kombu.Queue("orders"), 7):
            refused(of_kombu.traced_consumer, given, 'as in @traced_consumer(queue="orders")')
            refused(of_kombu.traced_consumer(), given, 'as in @traced_consumer(queue="orders")')
        with pytest.raises(TypeError, match=r'^traced_consumer wants a name, as in queue="orders", not '):
            of_kombu.traced_consumer(queue=kombu.Queue("orders"))
        with pytest.raises(TypeError, match=r"^traced_consumer wants a Destination, as in destination="):
            of_kombu.traced_consumer(destination="orders")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"^traced_consumer wants Settings, as in settings="):
            of_kombu.traced_consumer(settings=LINK)
        decorated = of_kombu.traced_consumer(handle)
        assert [decorated(b"hello"), decorated()] == ["handled"] * 2
        told(caplog, "traced_consumer on the function handle: none of its arguments is a message of kombu's")
        assert len(captured_spans) == 0

    def test_loops(self, connection: kombu.Connection) -> None:
        """What no loop can be over is refused as a loop would, with the right form."""
        for given in (connection.default_channel, 7, None):
            refused(of_kombu.traced_messages, given, "as in traced_messages(itermessages(")

    @pytest.mark.parametrize("message", [b"x", 42, Job(), ("body", b"x"), {"body": b"x"}])
    def test_messages(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture, message: Any
    ) -> None:
        """Each is handled, without a span; one line for all."""
        with of_kombu.traced_message(message) as span:
            assert span is INVALID_SPAN
        assert list(of_kombu.traced_messages([message, None])) == [message, None]
        with of_kombu.traced_batch([message]):
            pass
        told(
            caplog,
            f"(given {type(message).__name__})",
            "it is no message of kombu's, as get and itermessages give them",
        )
        assert len(captured_spans) == 0

    def test_a_message_instead_of_a_batch(
        self, connection: kombu.Connection, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """traced_batch(message): no span, and one line."""
        simple = connection.SimpleQueue("orders")
        simple.put("hello")
        with of_kombu.traced_batch(simple.get()):
            pass
        told(caplog, "traced_batch (given Message): it wants a list of messages")
        assert len(captured_spans) == 0


class TestRQ:
    PUBLISH = "traced_publish wants a method of a queue that enqueues, or a job function's delay, as in "

    def test_what_publishes_nothing(self, queue: rq.Queue) -> None:
        """The queue itself, another method of it, a method of no queue, print, nothing."""
        for given in (
            queue,
            queue.empty,
            queue.get_jobs,
            queue.fetch_job,
            rq.Queue.enqueue,
            rq.Queue,
            print,
            None,
        ):
            refused(of_rq.traced_publish, given, self.PUBLISH)
        group: Any = vars(rq_publishing)["Group"]
        if group is not None:  # from RQ 2 on
            refused(of_rq.traced_publish, group.create(queue.connection).get_jobs, self.PUBLISH)
        refused(of_rq.traced_publish, queue.enqueue, "queueprop.Settings(", settings=LINK)

    def test_what_publishes(self, queue: rq.Queue) -> None:
        """Each of RQ's, and what a subclass makes of them."""

        class Mine(rq.Queue):
            def enqueue_mail(self, to: str) -> Any:
                return self.enqueue(handle, to)

        names = (
            "enqueue",
            "enqueue_call",
            "enqueue_in",
            "enqueue_at",
            "enqueue_many",
            "enqueue_job",
            "schedule_job",
        )
        for publish in (
            *(getattr(queue, name) for name in names),
            Mine("mails", connection=queue.connection).enqueue_mail,
        ):
            assert callable(of_rq.traced_publish(publish))

    def test_handlers(self) -> None:
        """What is no function, and what are no settings."""
        for given in (Job, "jobs.work", Settings(), 7):
            refused(of_rq.traced_consumer, given, "a job's function, as in @traced_consumer")
            refused(
                of_rq.traced_consumer(settings=Settings()), given, "a job's function, as in @traced_consumer"
            )
        with pytest.raises(TypeError, match=r"^traced_consumer wants Settings, as in settings="):
            of_rq.traced_consumer(settings=LINK)

    def test_worker_classes(self) -> None:
        """A mixin behind RQ's class would trace nothing, and settings that are none would end the worker."""
        with pytest.raises(TypeError, match=r"class Mine\(TracedWorkerMixin, Worker\)"):
            type("Mine", (rq.Worker, of_rq.TracedWorkerMixin), {})
        with pytest.raises(TypeError, match=r"^queueprop_settings of Mine wants Settings, as in settings="):
            type("Mine", (of_rq.TracedWorkerMixin, rq.Worker), {"queueprop_settings": LINK})
        mine = type("Mine", (of_rq.TracedWorkerMixin, rq.Worker), {"queueprop_settings": Settings()})
        assert issubclass(type("Further", (mine,), {}), rq.Worker)

    def test_settings_of_a_worker_that_were_exchanged(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where jobs are at hand: one line, and those of the environment."""
        monkeypatch.setattr(of_rq.TracedSimpleWorker, "queueprop_settings", LINK)
        worker = object.__new__(of_rq.TracedSimpleWorker)
        assert worker._hooks.engine.settings == Settings()
        told(caplog, "queueprop_settings (given dict)")


def test_dramatiq() -> None:
    """QueuepropMiddleware wants settings."""
    refused(of_dramatiq.QueuepropMiddleware, LINK, "QueuepropMiddleware wants Settings, as in settings=")


AT_HAND: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "pika": of_pika.traced_message,
    "pika's batch": lambda message, *args, **options: of_pika.traced_batch([], *args, **options),
    "aiokafka": of_aiokafka.traced_message,
    "aiokafka's batch": lambda message, *args, **options: of_aiokafka.traced_batch([], *args, **options),
    "kombu": of_kombu.traced_message,
    "kombu's batch": lambda message, *args, **options: of_kombu.traced_batch([], *args, **options),
}


@pytest.mark.parametrize("word", AT_HAND.values(), ids=AT_HAND.keys())
@pytest.mark.parametrize("wrong", ["settings", "destination"])
def test_options_where_a_message_is_at_hand(
    caplog: pytest.LogCaptureFixture, word: Callable[..., AbstractContextManager[Any]], wrong: str
) -> None:
    """A destination and settings that are none: one line, and the body runs."""
    ran = False
    with word(None, **({"settings": LINK} if wrong == "settings" else {"destination": "orders"})):
        ran = True
    assert ran
    records = [record.getMessage() for record in caplog.records if "it wants" in record.getMessage()]
    assert len(records) == 1
    assert ("queueprop.Settings(" if wrong == "settings" else "queueprop.Destination(") in records[0]


@pytest.mark.parametrize("word", [of_pika.traced_batch, of_aiokafka.traced_batch, of_kombu.traced_batch])
@pytest.mark.parametrize("given", [None, 7, "orders", b"x"])
def test_what_is_no_batch(
    captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture, word: Any, given: Any
) -> None:
    """One line, no span, and the body runs."""
    ran = False
    with word(given):
        ran = True
    assert ran
    told(caplog, f"traced_batch (given {type(given).__name__}): it wants a list of messages")
    assert len(captured_spans) == 0

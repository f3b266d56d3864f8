"""The brokers of the tests themselves: the ladder, readiness, restart, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
import redis

from .brokers import (
    KAFKA,
    RABBITMQ,
    REDIS,
    Broker,
    BrokerError,
    KafkaCluster,
    Service,
    Unavailable,
    find,
    in_ci,
)
from .brokers.broker import EnvironmentBroker, Protocol
from .brokers.kafka import addresses
from .brokers.program import Port, ProgramBroker

CHECKOUT = Path(__file__).resolve().parent.parent


class TestLadder:
    def test_the_url_in_the_environment_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A URL in the environment wins, whatever else the machine has, and is used as it is."""
        monkeypatch.setenv(REDIS.variable, "redis://:secret@elsewhere:7000/3")
        broker = find(REDIS)
        assert (broker.rung, broker.url) == ("url", "redis://:secret@elsewhere:7000/3")
        assert str(broker) == "Redis (url: QUEUEPROP_REDIS_URL at elsewhere:7000)"

    @pytest.mark.parametrize(("choice", "private"), [("native", False), ("auto", True)])
    def test_the_environment_is_passed_over(
        self, monkeypatch: pytest.MonkeyPatch, choice: str, private: bool
    ) -> None:
        """A rung that is named, and a broker that a test may stop, are never the environment's broker."""
        monkeypatch.setenv("QUEUEPROP_TEST_URL", "test://elsewhere")
        assert find(_service(), choice, private=private).rung == "native"

    def test_the_first_rung_that_can_be_had_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rung that cannot be had is passed over; those below the first that can are not tried."""
        monkeypatch.delenv("QUEUEPROP_TEST_URL", raising=False)
        assert find(_service()).rung == "native"

    @pytest.mark.parametrize(
        ("ci", "choice", "taken"), [("", "auto", True), ("true", "auto", False), ("true", "native", True)]
    )
    def test_a_stand_in_is_not_for_ci(
        self, monkeypatch: pytest.MonkeyPatch, ci: str, choice: str, taken: bool
    ) -> None:
        """What only imitates a broker is taken on a laptop, and in CI where --brokers names its rung."""
        monkeypatch.setenv("CI", ci)
        service = replace(_service(), rungs={"native": lambda: _Script("")}, stand_ins=("native",))
        if taken:
            assert find(service, choice).rung == "native"
            return
        with pytest.raises(Unavailable, match="native: only a stand-in, and this is CI"):
            find(service, choice)

    def test_every_rung_says_why_it_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason names each rung that was tried."""
        monkeypatch.delenv("QUEUEPROP_TEST_URL", raising=False)
        service = Service(_service().protocol, "QUEUEPROP_TEST_URL", {"containers": _no_docker})
        with pytest.raises(Unavailable) as reason:
            find(service)
        assert str(reason.value) == (
            "no Test for the tests (url: QUEUEPROP_TEST_URL is not set; containers: no Docker daemon answers)"
        )

    def test_a_rung_that_a_broker_does_not_have(self) -> None:
        """There is no embedded RabbitMQ, and asking for one says so."""
        with pytest.raises(
            Unavailable, match=r"no RabbitMQ for the tests \(embedded: there is no such server\)"
        ):
            find(RABBITMQ, "embedded")

    def test_an_unknown_choice(self) -> None:
        """A choice that is none is refused."""
        with pytest.raises(ValueError, match="not 'docker'"):
            find(REDIS, "docker")

    @pytest.mark.parametrize(
        ("value", "expected"), [("true", True), ("1", True), ("", False), ("false", False)]
    )
    def test_ci(self, monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
        """CI is what the variable CI says."""
        monkeypatch.setenv("CI", value)
        assert in_ci() is expected

    @pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
    def test_what_cannot_be_had(self, tmp_path: Path, ci: str, outcome: str) -> None:
        """It is a skip with the reason on a laptop, and a failure in CI."""
        arguments = _pytest(tmp_path, "def test_it(rabbitmq_url): pass", "-rsE", "--brokers=embedded")
        run = subprocess.run(
            arguments, env={**os.environ, "CI": ci}, capture_output=True, text=True, timeout=120
        )
        assert outcome in run.stdout, run.stdout + run.stderr
        assert "broker: no RabbitMQ for the tests (embedded: there is no such server)" in run.stdout


class TestReadiness:
    def test_a_server_that_ends_at_once(self) -> None:
        """A server that ends before it answers is an error with its status and its log, at once."""
        began = time.monotonic()
        with pytest.raises(
            BrokerError, match="ended with status 3 before it answered; its log ends with:\nno memory"
        ):
            _Script("print('no memory'); raise SystemExit(3)", patience=60).start()
        assert time.monotonic() - began < 20

    def test_a_server_that_never_answers(self) -> None:
        """A server that stays silent is an error at the deadline, with its log, and it is stopped."""
        broker = _Thinking("print('thinking', flush=True); import time; time.sleep(600)", patience=1)
        with pytest.raises(
            BrokerError,
            match=r"did not answer on 127.0.0.1:\d+ within 1 s: ConnectionRefusedError: .*\nthinking",
        ):
            broker.start()
        assert broker.folder is None

    def test_a_url_in_the_environment_that_does_not_answer(self) -> None:
        """The error tells host and port, and no password."""
        port = Port()
        broker = EnvironmentBroker(
            Protocol("Redis", REDIS.protocol.handshake, patience=0.1),
            REDIS.variable,
            f"redis://:hush@127.0.0.1:{port.number}",
        )
        with pytest.raises(
            BrokerError, match=f"did not answer on 127.0.0.1:{port.number} within 0.1 s"
        ) as error:
            broker.start()
        port.release()
        assert "hush" not in str(error.value)
        with pytest.raises(Unavailable, match="not ours to stop"):
            broker.stop()

    def test_a_port_is_given_once(self) -> None:
        """While a server of ours has a port, also when it is down, nobody else gets it."""
        port = Port()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port.number))
        port.release()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port.number))


class TestRedis:
    def test_it_answers(self, redis_broker: Broker, redis_url: str) -> None:
        """The session's Redis answers where its URL says."""
        assert redis_url == redis_broker.url
        with redis.Redis.from_url(redis_url) as client:
            assert client.echo("here") == b"here"

    def test_a_restart_keeps_url_and_data(self, private_redis: Broker) -> None:
        """A broker of a test's own may be stopped and started: same URL, and what it held is still there."""
        url = private_redis.url
        with redis.Redis.from_url(url) as client:
            client.rpush("queue", "first", "second")
        private_redis.stop()
        with pytest.raises(OSError, match="refused"):
            _connect(url)
        assert private_redis.start() == url
        assert private_redis.restart() == url
        with redis.Redis.from_url(url) as client:
            assert client.lrange("queue", 0, -1) == [b"first", b"second"]

    def test_two_private_brokers_are_two(self, pytestconfig: pytest.Config, private_redis: Broker) -> None:
        """Each is on its own port with its own data."""
        other = _private(pytestconfig, REDIS)
        try:
            assert other.start() != private_redis.url
        finally:
            other.close()
            other.close()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
    def test_nothing_outlives_pytest(
        self, pytestconfig: pytest.Config, tmp_path: Path, number: signal.Signals
    ) -> None:
        """A pytest that is interrupted or killed leaves no server and no folder behind."""
        _assert_nothing_outlives_pytest(pytestconfig, REDIS, tmp_path, number)


class TestRabbitMQ:
    def test_a_restart_keeps_url_and_data(self, private_rabbitmq: Broker) -> None:
        """A durable queue with its message outlives a restart; a wrong password or virtual host is told."""
        pika = pytest.importorskip("pika")
        url = private_rabbitmq.url
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.queue_declare("kept", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"one", pika.BasicProperties(delivery_mode=2))
        connection.close()

        assert private_rabbitmq.restart() == url
        connection = pika.BlockingConnection(pika.URLParameters(url))
        assert connection.channel().basic_get("kept", auto_ack=True)[2] == b"one"
        connection.close()

        with pytest.raises(OSError, match="closed the connection: ACCESS_REFUSED"):
            RABBITMQ.protocol.handshake(url.replace("guest:guest", "guest:wrong"), 60)
        with pytest.raises(OSError, match="vhost nowhere not found"):
            RABBITMQ.protocol.handshake(url.replace("/%2F", "/nowhere"), 60)

    def test_nothing_outlives_pytest(self, pytestconfig: pytest.Config, tmp_path: Path) -> None:
        """A pytest that is killed leaves no node, no port mapper and no folder behind."""
        _assert_nothing_outlives_pytest(pytestconfig, RABBITMQ, tmp_path, signal.SIGKILL)


class TestKafka:
    def test_it_answers(self, kafka_broker: Broker) -> None:
        """The session's Kafka answers at each of the addresses of its URL."""
        for address in addresses(kafka_broker.url).split(","):
            KAFKA.protocol.handshake(f"kafka://{address}", 60)

    def test_a_restart_keeps_url_and_data(self, private_kafka: Broker) -> None:
        """A record outlives a restart, and what a group has committed is there as soon as the broker is."""
        aiokafka = pytest.importorskip("aiokafka")
        url = private_kafka.url
        partition = aiokafka.TopicPartition("kept", 0)

        async def write() -> None:
            async with aiokafka.AIOKafkaProducer(bootstrap_servers=addresses(url)) as producer:
                await producer.send_and_wait("kept", b"one", partition=0)
            async with aiokafka.AIOKafkaConsumer(
                bootstrap_servers=addresses(url), group_id="kept"
            ) as consumer:
                consumer.assign([partition])
                await consumer.commit({partition: 1})

        async def read() -> object:
            async with aiokafka.AIOKafkaConsumer(
                bootstrap_servers=addresses(url), group_id="kept"
            ) as consumer:
                consumer.assign([partition])
                assert await consumer.committed(partition) == 1
                consumer.seek(partition, 0)
                return (await asyncio.wait_for(consumer.getone(), 60)).value

        asyncio.run(write())
        private_kafka.stop()
        with pytest.raises(OSError, match="refused"):
            _connect(url)
        assert private_kafka.start() == url
        assert asyncio.run(read()) == b"one"

    def test_the_mock_cluster_says_that_it_cannot_come_back(self) -> None:
        """A mock cluster that is to be stopped says why it is not, and goes on; closed, it is gone."""
        pytest.importorskip("confluent_kafka")
        broker = find(KAFKA, "embedded")
        broker.start()
        try:
            with pytest.raises(Unavailable, match=r"mock cluster\) cannot be started again"):
                broker.restart()
            KAFKA.protocol.handshake(broker.url, 60)
        finally:
            broker.close()
        with pytest.raises(OSError, match="refused"):
            _connect(broker.url)

    def test_nothing_outlives_pytest(self, pytestconfig: pytest.Config, tmp_path: Path) -> None:
        """A pytest that is killed leaves no node and no folder behind."""
        _assert_nothing_outlives_pytest(pytestconfig, KAFKA, tmp_path, signal.SIGKILL)


class TestKafkaCluster:
    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_a_node_that_ends_may_come_back(self, kafka_cluster: KafkaCluster, end: str) -> None:
        """Stopped in order or killed: its port refuses, the others go on, and it is back where it was."""
        assert kafka_cluster.url == f"kafka://{','.join(addresses(node.url) for node in kafka_cluster.nodes)}"
        first, *others = kafka_cluster.nodes
        getattr(first, end)()
        assert not first.is_running
        with pytest.raises(OSError, match="refused"):
            _connect(first.url)
        for node in others:
            _until(lambda node=node: _is_ready(KAFKA, node.url), 60)  # type: ignore[misc]  # the groups move first
        assert first.start() == first.url


class _Script(ProgramBroker):
    """A server that is a few lines of Python and listens nowhere."""

    def __init__(self, script: str, patience: float = 5) -> None:
        super().__init__(Protocol("Test", lambda url, timeout: _connect(url), patience), "native", "a script")
        self._script = script

    def _prepare(self, folder: Path) -> None:
        self.url = f"test://127.0.0.1:{self._port()}"

    def _run(self, folder: Path) -> None:
        self._program([sys.executable, "-c", self._script])


class _Thinking(_Script):
    """It has said so before anybody asks it: two Pythons may take longer to start than it is waited for."""

    def _run(self, folder: Path) -> None:
        super()._run(folder)
        _until(lambda: "thinking" in self._log(), 60)


def _service() -> Service:
    def unreached() -> NoReturn:
        raise AssertionError("a rung below the first that can be had was tried")

    return Service(
        Protocol("Test", lambda url, timeout: None, patience=1),
        "QUEUEPROP_TEST_URL",
        {"containers": _no_docker, "native": lambda: _Script(""), "embedded": unreached},
    )


def _no_docker() -> NoReturn:
    raise Unavailable("no Docker daemon answers")


def _private(config: pytest.Config, service: Service) -> Broker:
    try:
        return find(service, str(config.getoption("--brokers", "auto")), private=True)
    except Unavailable as reason:
        pytest.skip(str(reason))


def _connect(url: str) -> None:
    where = urlsplit(url.split(",")[0])
    socket.create_connection((where.hostname or "", where.port or 0), 2).close()


def _pytest(folder: Path, test: str, *arguments: str) -> list[str]:
    """The command for a pytest of its own, with the fixtures of this folder, over one test."""
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.append({str(CHECKOUT)!r})\nfrom integration.conftest import *\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(test)
    # What a script starts in its background ignores Ctrl-C, and so would whatever that starts: this pytest, too.
    told = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    pytest_of_its_own = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), str(folder)]
    return [sys.executable, "-c", told, *pytest_of_its_own, *arguments]


_WAITING = """
import pathlib, time

def test_it({fixture}):
    new = pathlib.Path({folder!r}, "new")
    new.write_text({fixture}.url + " " + str(getattr({fixture}, "folder", "")))
    new.rename(new.with_name("ready"))
    time.sleep(600)
"""


def _assert_nothing_outlives_pytest(
    config: pytest.Config, service: Service, folder: Path, number: signal.Signals
) -> None:
    embedded = _private(config, service).rung == "embedded" and service is KAFKA
    name = "kafka_broker" if embedded else f"private_{service.name.lower()}"  # private is what may be stopped
    test = _WAITING.format(fixture=name, folder=str(folder))
    run = subprocess.Popen(
        _pytest(folder, test, f"--brokers={config.getoption('--brokers', 'auto')}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _until(lambda: (folder / "ready").exists() or run.poll() is not None, 150)
        assert (folder / "ready").exists(), run.communicate()[0]
        url, server_folder = (folder / "ready").read_text().split(" ")
        _connect(url)
        run.send_signal(number)
        output = run.communicate(timeout=60)[0]
    finally:
        run.kill()
    assert run.returncode == (2 if number == signal.SIGINT else -number), output
    _until(lambda: _refused(url) and not (server_folder and Path(server_folder).exists()), 60)
    if server_folder:
        # The keepers that have removed the folder end behind that.
        _until(lambda: server_folder not in _processes(), 60)


def _processes() -> str:
    return subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout


def _is_ready(service: Service, url: str) -> bool:
    try:
        service.protocol.handshake(url, 60)
    except OSError:
        return False
    return True


def _refused(url: str) -> bool:
    try:
        _connect(url)
    except OSError:
        return True
    return False


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
        time.sleep(0.05)

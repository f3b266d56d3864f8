"""Real brokers for the tests, each on a ladder where the first rung that can be had wins.

``url``: an address in the environment.
``containers``: testcontainers, where a Docker daemon answers and has or can pull the image.
``native``: a server program on the PATH, started privately.
``embedded``: a server that a Python package brings.

Nothing is ever installed here.
"""

from .broker import Broker, BrokerError, Unavailable
from .kafka import KAFKA, KafkaCluster, kafka_cluster
from .ladder import CHOICES, SERVICES, Service, find, in_ci
from .nats import NATS
from .rabbitmq import RABBITMQ
from .redis import REDIS

SERVICES.extend([REDIS, RABBITMQ, KAFKA, NATS])

__all__ = [
    "CHOICES",
    "KAFKA",
    "NATS",
    "RABBITMQ",
    "REDIS",
    "SERVICES",
    "Broker",
    "BrokerError",
    "KafkaCluster",
    "Service",
    "Unavailable",
    "find",
    "in_ci",
    "kafka_cluster",
]

"""The demo on RabbitMQ, with pika."""

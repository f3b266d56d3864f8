"""The demo on RabbitMQ, with aio-pika."""

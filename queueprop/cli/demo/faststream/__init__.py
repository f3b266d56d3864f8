"""The demo on RabbitMQ, with FastStream."""

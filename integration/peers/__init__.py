"""Python and another language on the two sides of a queue of RabbitMQ or Kafka."""

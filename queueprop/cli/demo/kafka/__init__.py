"""The demo on Kafka, with aiokafka."""

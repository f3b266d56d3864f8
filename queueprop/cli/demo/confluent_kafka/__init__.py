"""The demo on Kafka, with confluent-kafka."""

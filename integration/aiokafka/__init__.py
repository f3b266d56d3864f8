"""What aiokafka and Kafka alone have. What every library has is in the contract."""

import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Users' programs of Kafka's own kafka-clients. */
final class Kafka implements Program.Client {
  @Override
  public void publish(Program.Asked asked) throws Exception {
    send(asked, new ProducerRecord<>(asked.queue, asked.publish.bytes()));
  }

  @Override
  public Program.Handled consume(Program.Asked asked) throws Exception {
    Map<String, Object> configuration =
        Map.of(
            "bootstrap.servers", servers(asked),
            "group.id", asked.queue,
            "auto.offset.reset", "earliest",
            "fetch.max.wait.ms", 50);
    var bytes = new ByteArrayDeserializer();
    Program.Handled handled = null;
    try (var consumer = new KafkaConsumer<>(configuration, bytes, bytes)) {
      consumer.subscribe(List.of(asked.queue));
      for (long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(30); handled == null; ) {
        if (System.nanoTime() > end) throw new TimeoutException("no record came");
        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
          handled = handle(asked, record);
        }
      }
    }
    return handled;
  }

  private Program.Handled handle(Program.Asked asked, ConsumerRecord<byte[], byte[]> record) throws Exception {
    Program.Handled handled = new Program.Handled(record.value());
    for (Header header : record.headers()) handled.header(header.key(), header.value());
    if (asked.consume.forward_to != null) {
      send(asked, new ProducerRecord<>(asked.consume.forward_to, null, record.key(), record.value(), record.headers()));
    }
    return handled;
  }

  private void send(Program.Asked asked, ProducerRecord<byte[], byte[]> record) throws Exception {
    var bytes = new ByteArraySerializer();
    try (var producer = new KafkaProducer<>(Map.of("bootstrap.servers", servers(asked)), bytes, bytes)) {
      producer.send(record).get();
    }
  }

  private String servers(Program.Asked asked) {
    return asked.url.substring("kafka://".length());
  }
}

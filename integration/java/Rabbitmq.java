import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import com.rabbitmq.client.GetResponse;
import java.io.IOException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** Users' programs of RabbitMQ's amqp-client. */
final class Rabbitmq implements Program.Client {
  @Override
  public void publish(Program.Asked asked) throws Exception {
    try (Connection connection = connect(asked); Channel channel = connection.createChannel()) {
      channel.basicPublish("", asked.queue, null, asked.publish.bytes());
    } // a channel is closed behind whatever was sent on it
  }

  @Override
  public Program.Handled consume(Program.Asked asked) throws Exception {
    try (Connection connection = connect(asked); Channel channel = connection.createChannel()) {
      return asked.consume.way.equals("basicGet") ? get(channel, asked) : deliver(channel, asked);
    }
  }

  private Program.Handled deliver(Channel channel, Program.Asked asked) throws Exception {
    CompletableFuture<Program.Handled> handled = new CompletableFuture<>();
    CompletableFuture<Void> cancelled = new CompletableFuture<>();
    String tag =
        channel.basicConsume(
            asked.queue,
            new DefaultConsumer(channel) {
              @Override
              public void handleDelivery(String tag, Envelope envelope, BasicProperties properties, byte[] body)
                  throws IOException {
                handled.complete(handle(channel, asked, envelope, properties, body));
              }

              @Override
              public void handleCancelOk(String tag) {
                cancelled.complete(null);
              }
            });
    Program.Handled it = handled.get(30, TimeUnit.SECONDS);
    channel.basicCancel(tag);
    cancelled.get(30, TimeUnit.SECONDS); // told behind the delivery, whose span is ended then
    return it;
  }

  private Program.Handled get(Channel channel, Program.Asked asked) throws IOException {
    GetResponse response = channel.basicGet(asked.queue, false);
    return handle(channel, asked, response.getEnvelope(), response.getProps(), response.getBody());
  }

  private Program.Handled handle(
      Channel channel, Program.Asked asked, Envelope envelope, BasicProperties properties, byte[] body)
      throws IOException {
    Program.Handled handled = new Program.Handled(body);
    if (properties.getHeaders() != null) properties.getHeaders().forEach(handled::header);
    if (asked.consume.forward_to != null) {
      channel.basicPublish("", asked.consume.forward_to, properties, body);
    }
    channel.basicAck(envelope.getDeliveryTag(), false);
    return handled;
  }

  private Connection connect(Program.Asked asked) throws Exception {
    ConnectionFactory factory = new ConnectionFactory();
    factory.setUri(asked.url);
    return factory.newConnection();
  }
}

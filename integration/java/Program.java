import com.google.gson.Gson;
import io.opentelemetry.api.GlobalOpenTelemetry;
import io.opentelemetry.api.baggage.Baggage;
import io.opentelemetry.api.baggage.BaggageBuilder;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Does what it is asked, a JSON object a line, and answers with a JSON object a line: publishes or consumes one message,
 * as users of a library do. Telemetry is the agent's, or nobody's. The queue is there; bodies are base64.
 */
final class Program {
  private static final Gson GSON = new Gson();

  /** What is asked. */
  static final class Asked {
    String library;
    String url;
    String queue;
    Publish publish; // or consume
    Consume consume;
  }

  static final class Publish {
    String body;
    Map<String, String> baggage = Map.of();
    /** Around it is a span of this parent. */
    Parent parent;

    byte[] bytes() {
      return Base64.getDecoder().decode(body);
    }
  }

  static final class Parent {
    String trace_id;
    String span_id;
    Map<String, String> tracestate;
  }

  static final class Consume {
    /** By which of the library's ways. */
    String way;
    /** A queue that the handler publishes the message to, with the headers that it came with. */
    String forward_to;
  }

  /** What a handler sees. */
  static final class Handled {
    String body;
    List<List<String>> headers = new ArrayList<>();
    String trace_id;
    String span_id;
    Map<String, String> tracestate;
    Map<String, String> baggage = new LinkedHashMap<>();

    Handled(byte[] body) {
      this.body = Base64.getEncoder().encodeToString(body);
      SpanContext current = Span.current().getSpanContext();
      trace_id = current.getTraceId();
      span_id = current.getSpanId();
      tracestate = current.getTraceState().asMap();
      Baggage.current().forEach((key, entry) -> baggage.put(key, entry.getValue()));
    }

    void header(String name, Object value) {
      String text = value instanceof byte[] bytes ? new String(bytes, UTF_8) : String.valueOf(value);
      headers.add(List.of(name, value.getClass().getSimpleName(), text));
    }
  }

  interface Client {
    void publish(Asked asked) throws Exception;

    Handled consume(Asked asked) throws Exception;
  }

  public static void main(String[] arguments) throws Exception {
    Map<String, Client> clients = Map.of("amqp-client", new Rabbitmq(), "kafka-clients", new Kafka());
    BufferedReader questions = new BufferedReader(new InputStreamReader(System.in, UTF_8));
    PrintStream answers = new PrintStream(System.out, true, UTF_8);
    for (String line = questions.readLine(); line != null; line = questions.readLine()) {
      Asked asked = GSON.fromJson(line, Asked.class);
      answers.println(GSON.toJson(answer(clients.get(asked.library), asked)));
    }
  }

  private static Map<String, Object> answer(Client client, Asked asked) {
    try {
      if (asked.consume != null) return Map.of("handled", client.consume(asked));
      publish(client, asked);
      return Map.of();
    } catch (Exception error) {
      StringWriter trace = new StringWriter();
      error.printStackTrace(new PrintWriter(trace));
      return Map.of("error", trace.toString());
    } finally {
      // All spans before it are handed over when this one is.
      tracer().spanBuilder("answered").setNoParent().startSpan().end();
    }
  }

  private static void publish(Client client, Asked asked) throws Exception {
    BaggageBuilder members = Baggage.builder();
    asked.publish.baggage.forEach(members::put);
    Context outer = members.build().storeInContext(Context.root());
    if (asked.publish.parent != null) outer = outer.with(remote(asked.publish.parent));
    Span request = tracer().spanBuilder("request").setParent(outer).startSpan();
    try (Scope scope = outer.with(request).makeCurrent()) {
      client.publish(asked);
    } finally {
      request.end();
    }
  }

  private static Span remote(Parent parent) {
    var tracestate = TraceState.builder();
    parent.tracestate.forEach(tracestate::put);
    TraceFlags sampled = TraceFlags.getSampled();
    return Span.wrap(
        SpanContext.createFromRemoteParent(parent.trace_id, parent.span_id, sampled, tracestate.build()));
  }

  private static Tracer tracer() {
    return GlobalOpenTelemetry.getTracer("program");
  }
}

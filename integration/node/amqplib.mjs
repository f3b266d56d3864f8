// Publishes or consumes one message through amqplib, with OpenTelemetry's instrumentation or without, and prints what
// it saw: JSON lines. The queue is there; bodies are base64.
//
//   node amqplib.mjs '{"url": ..., "queue": ..., "telemetry": true, "publish": {"body": ..., "baggage": {...}}}'
//   node amqplib.mjs '{"url": ..., "queue": ..., "telemetry": true, "consume": {}}'

import { asked, inARequest, instrument, require, tellHandled, typed } from "./program.mjs";

if (asked.telemetry) instrument(["@opentelemetry/instrumentation-amqplib", "AmqplibInstrumentation"]);
const { connect } = require("amqplib");

const connection = await connect(asked.url);
const channel = await connection.createChannel();
await (asked.publish ? inARequest(asked.publish.baggage, publish) : consume());
await channel.close(); // answered behind whatever was sent on it
await connection.close();

async function publish() {
  channel.sendToQueue(asked.queue, Buffer.from(asked.publish.body, "base64"));
}

async function consume() {
  await new Promise((resolve) => {
    channel.consume(asked.queue, (message) => {
      tellHandled({ body: message.content.toString("base64"), headers: typed(message.properties.headers) });
      channel.ack(message);
      resolve();
    });
  });
}

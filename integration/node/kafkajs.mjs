// Publishes or consumes one message through kafkajs, with OpenTelemetry's instrumentation or without, and prints what
// it saw: JSON lines. The topic is there, and new; bodies are base64.
//
//   node kafkajs.mjs '{"url": "kafka://...", "queue": ..., "telemetry": true, "publish": {"body": ..., "baggage": {...}}}'
//   node kafkajs.mjs '{"url": "kafka://...", "queue": ..., "telemetry": true, "consume": {"way": "eachMessage"}}'

import { asked, inARequest, instrument, require, tellHandled, typed } from "./program.mjs";

if (asked.telemetry) instrument(["@opentelemetry/instrumentation-kafkajs", "KafkaJsInstrumentation"]);
const { Kafka, Partitioners, logLevel } = require("kafkajs");

const kafka = new Kafka({ brokers: asked.url.slice("kafka://".length).split(","), logLevel: logLevel.ERROR });
await (asked.publish ? inARequest(asked.publish.baggage, publish) : consume());

async function publish() {
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  await producer.send({ topic: asked.queue, messages: [{ value: Buffer.from(asked.publish.body, "base64") }] });
  await producer.disconnect();
}

async function consume() {
  const consumer = kafka.consumer({ groupId: asked.queue, maxWaitTimeInMs: 50 });
  await consumer.connect();
  await consumer.subscribe({ topics: [asked.queue], fromBeginning: true });
  await new Promise((resolve, reject) => {
    const handle = ({ value, headers }) => {
      tellHandled({ body: value.toString("base64"), headers: typed(headers) });
      resolve();
    };
    const eachMessage = async ({ message }) => handle(message);
    const eachBatch = async ({ batch }) => batch.messages.forEach(handle);
    consumer.run(asked.consume.way === "eachBatch" ? { eachBatch } : { eachMessage }).catch(reject);
  });
  await consumer.disconnect(); // once the handler has ended
}

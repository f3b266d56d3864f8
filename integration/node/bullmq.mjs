// Publishes or works through BullMQ, as Node's users do, with bullmq-otel or without, and prints what it saw: JSON lines.
//
//   node bullmq.mjs '{"url": ..., "queue": ..., "telemetry": true, "publish": {"way": "add", "jobs": [...]}}'
//   node bullmq.mjs '{"url": ..., "queue": ..., "telemetry": true, "work": {"count": 2, "failing": 1}}'

import { asked, inARequest, instrument, require, tellHandled } from "./program.mjs";

const { FlowProducer, Queue, Worker } = require("bullmq");
const { BullMQOtel } = require("bullmq-otel");

const { hostname, port, pathname } = new URL(asked.url);
const connection = { host: hostname, port: Number(port), db: Number(pathname.slice(1) || 0), maxRetriesPerRequest: null };
const options = { connection, ...(asked.telemetry ? { telemetry: new BullMQOtel({ tracerName: "bullmq" }) } : {}) };

instrument(); // BullMQ is given its telemetry as an option

await (asked.publish ? inARequest(asked.publish.baggage, publish) : work());

// Publishing

async function publish() {
  const { way, jobs } = asked.publish;
  const publisher = way === "flow" ? new FlowProducer(options) : new Queue(asked.queue, options);
  if (way === "add") {
    for (const { name, data, opts } of jobs) await publisher.add(name, data, opts);
  } else if (way === "addBulk") {
    await publisher.addBulk(jobs);
  } else if (way === "upsertJobScheduler") {
    for (const { name, data, repeat } of jobs) await publisher.upsertJobScheduler("daily", repeat, { name, data });
  } else {
    await publisher.add(jobs[0]);
  }
  await publisher.close();
}

// Working

async function work() {
  const { count, failing = 0 } = asked.work;
  let taken = 0;
  let closed;
  const worker = new Worker(asked.queue, process, { ...options, autorun: false });
  await worker.run();
  await closed;

  async function process(job) {
    taken += 1;
    if (taken === count) closed = worker.close(); // else it would take the next one
    tellHandled({ name: job.name, data: job.data });
    if (taken <= failing) throw new Error("no stock");
  }
}

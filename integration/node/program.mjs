// What the programs of this folder share: what they are asked, OpenTelemetry, and telling what they saw as JSON lines.

import { createRequire } from "node:module";

export const require = createRequire(process.env.QUEUEPROP_NODE_MODULES);
export const asked = JSON.parse(process.argv[2]);

const { SpanKind, context, propagation, trace } = require("@opentelemetry/api");

/** OpenTelemetry with these instrumentations, packages and their classes: before what they patch is loaded. */
export function instrument(...instrumentations) {
  const { registerInstrumentations } = require("@opentelemetry/instrumentation");
  const { NodeTracerProvider } = require("@opentelemetry/sdk-trace-node");
  new NodeTracerProvider({
    spanProcessors: [{ onStart() {}, onEnd: tellSpan, async forceFlush() {}, async shutdown() {} }],
  }).register();
  registerInstrumentations({ instrumentations: instrumentations.map(([name, type]) => new (require(name)[type])()) });
}

/** Inside a span `request`, with the baggage that is asked for. */
export async function inARequest(members, handle) {
  const entries = Object.entries(members ?? {}).map(([key, value]) => [key, { value }]);
  const outer = propagation.setBaggage(context.active(), propagation.createBaggage(Object.fromEntries(entries)));
  await context.with(outer, () =>
    trace.getTracer("request").startActiveSpan("request", async (span) => {
      await handle();
      span.end();
    }),
  );
}

/** What is current where a message is handled, besides what else is to be told of it. */
export function tellHandled(what) {
  const { traceId, spanId } = trace.getActiveSpan()?.spanContext() ?? {};
  const members = propagation.getActiveBaggage()?.getAllEntries() ?? [];
  const baggage = Object.fromEntries(members.map(([key, { value }]) => [key, value]));
  tell({ event: "handled", trace_id: traceId, span_id: spanId, baggage, ...what });
}

/** Each header with its type: several of one name are an `Array` in kafkajs. */
export function typed(headers) {
  return Object.entries(headers ?? {}).map(([name, value]) => [name, value.constructor.name, String(value)]);
}

function tellSpan(span) {
  const { traceId, spanId } = span.spanContext();
  tell({
    event: "span",
    name: span.name,
    kind: SpanKind[span.kind],
    trace_id: traceId,
    span_id: spanId,
    parent_id: span.parentSpanContext?.spanId ?? null,
    links: span.links.map(({ context }) => [context.traceId, context.spanId]),
  });
}

function tell(what) {
  console.log(JSON.stringify(what));
}

// A publish and its delivery, handed over by OpenTelemetry JS's own exporter, which speaks JSON.

import { asked, require } from "./program.mjs";

const { SpanKind, context, trace } = require("@opentelemetry/api");
const { NodeTracerProvider, SimpleSpanProcessor } = require("@opentelemetry/sdk-trace-node");
const { OTLPTraceExporter } = require("@opentelemetry/exporter-trace-otlp-http");

const exporter = new OTLPTraceExporter({ url: `${asked.endpoint}/v1/traces`, compression: asked.compression });
const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
const tracer = provider.getTracer("node");
const attributes = { "messaging.system": "rabbitmq", "messaging.destination.name": "orders" };

const publish = tracer.startSpan("publish orders", { kind: SpanKind.PRODUCER, attributes });
publish.end();
const carried = trace.setSpanContext(context.active(), { ...publish.spanContext(), isRemote: true });
tracer.startSpan("process orders", { kind: SpanKind.CONSUMER, attributes }, carried).end();
tracer.startSpan("process orders", { kind: SpanKind.CONSUMER, attributes }).end();
await provider.shutdown();
console.log(JSON.stringify({ trace_id: publish.spanContext().traceId }));

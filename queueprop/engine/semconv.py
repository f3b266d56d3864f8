"""Names of spans, attributes, metrics and buckets: OpenTelemetry semantic conventions 1.44.0, messaging.

The messaging part of the conventions is still in development, so the names stand here as literals beside their
version. (A pin of our own on the semantic-conventions package would conflict with the one that
``opentelemetry-instrumentation`` brings.)
"""

from __future__ import annotations

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

# Attributes
SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION_NAME = "messaging.destination.name"
DESTINATION_TEMPLATE = "messaging.destination.template"
DESTINATION_TEMPORARY = "messaging.destination.temporary"
DESTINATION_ANONYMOUS = "messaging.destination.anonymous"
DESTINATION_PARTITION_ID = "messaging.destination.partition.id"
CONSUMER_GROUP_NAME = "messaging.consumer.group.name"
CLIENT_ID = "messaging.client.id"
BATCH_MESSAGE_COUNT = "messaging.batch.message_count"
MESSAGE_ID = "messaging.message.id"
MESSAGE_CONVERSATION_ID = "messaging.message.conversation_id"
MESSAGE_BODY_SIZE = "messaging.message.body.size"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
NETWORK_PEER_ADDRESS = "network.peer.address"
NETWORK_PEER_PORT = "network.peer.port"
ERROR_TYPE = "error.type"
OPENTRACING_REF_TYPE = "opentracing.ref_type"

# Attributes of our own: the conventions have none for these
HEADER = "messaging.header."
QUEUE_TIME = "queueprop.message.queue_time"
DELAY = "queueprop.message.delay"
DELIVERY_ATTEMPT = "queueprop.message.delivery_attempt"
REASON = "queueprop.reason"
CONTEXT_REASON = "queueprop.context.reason"
"""Of a process span: why it does not continue its message's context: ``missing``, ``malformed`` or ``untrusted``."""

# Types of operations
CREATE = "create"
SEND = "send"
RECEIVE = "receive"
PROCESS = "process"
SETTLE = "settle"

# Metrics
CLIENT_OPERATION_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
CLIENT_SENT_MESSAGES = "messaging.client.sent.messages"
CLIENT_CONSUMED_MESSAGES = "messaging.client.consumed.messages"
CONTEXT_MISSING = "queueprop.context.missing"
CONTEXT_UNATTACHED = "queueprop.context.unattached"
MESSAGE_QUEUE_TIME = "queueprop.message.queue_time"

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
# Messages wait for seconds to hours, far beyond the buckets that the conventions give for durations.
QUEUE_TIME_BUCKETS = (
    0.005,
    0.01,
    0.05,
    0.1,
    0.5,
    1.0,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3600.0,
    14400.0,
    86400.0,
)

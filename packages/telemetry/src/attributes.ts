/** Every span attribute this project writes: its name after the semantic conventions where they have one, and what it holds. */
const registry = {
  rpcSystem: ['rpc.system.name', 'The wire: grpc or connectrpc'],
  rpcMethod: ['rpc.method', 'The method in full, keytrail.session.v1.SessionService/GetInitialSession'],
  rpcStatusCode: ['rpc.status_code', 'The canonical code of the answer by name, OK or NOT_FOUND'],
  serverAddress: ['server.address', 'Host of the server that a client calls'],
  serverPort: ['server.port', 'Port of the server that a client calls'],
  errorType: ['error.type', 'Reason name or error class of a failure; absent on success'],

  dbSystem: ['db.system.name', 'postgresql or redis'],
  dbNamespace: ['db.namespace', 'The database'],
  dbOperation: ['db.operation.name', 'The operation, SELECT or EVALSHA'],
  dbSummary: ['db.query.summary', 'The name of the prepared statement; never its text or its values'],
  dbRows: ['db.response.returned_rows', 'Rows that came back or were written'],
  dbStatusCode: ['db.response.status_code', 'SQLSTATE of a failed statement'],

  messagingSystem: ['messaging.system.name', 'nats; keytrail for a notification on an attached stream'],
  messagingDestination: ['messaging.destination.name', 'The subject'],
  messagingOperation: ['messaging.operation.name', 'publish, process or deliver'],
  messagingOperationType: ['messaging.operation.type', 'send or process'],
  messagingMessageId: ['messaging.message.id', 'Id of the message, which is the id of its outbox row'],
  messagingConsumer: ['messaging.consumer.group.name', 'The durable consumer'],
  messagingDelivery: ['keytrail.messaging.delivery', 'Which delivery of the message this is; 1 is the first'],
  notificationKind: ['keytrail.notification.kind', 'Kind of a notification to a device, KEY_OFFERED'],
  outboxWaitMs: ['keytrail.outbox.wait_ms', 'From the write of the outbox row to its publication, in ms'],

  miss: ['keytrail.miss', 'True on the span that answered with a miss or saw one in an answer'],
  missCause: [
    'keytrail.miss.cause',
    'The cause of the miss, DEVICE_ADDED_AFTER_SESSION; EXPLANATION_INCOMPLETE where it could not be found out',
  ],
  recovery: ['keytrail.recovery', 'The state of recovery told with a miss, REQUESTABLE'],
  reason: ['keytrail.reason', 'The reason of a refusal that is not a miss'],
  kept: ['keytrail.kept', 'Why this part of the trace is to be kept, sampled or not'],
  longLived: ['keytrail.long_lived', 'True on a span that is meant to last, such as an attached stream: never slow'],

  link: [
    'keytrail.link',
    'What a link leads to: session_written or conversation_written, the last write before a miss; key_requested, what a fulfilment answers',
  ],

  conversationId: ['keytrail.conversation.id', 'The conversation'],
  sessionId: ['keytrail.session.id', 'The session'],
  epoch: ['keytrail.epoch', 'The epoch of the session'],
  user: ['keytrail.user', 'The user, as a pseudonym'],
  device: ['keytrail.device', 'The device, as a pseudonym'],
  caller: ['keytrail.caller.kind', 'Kind of the caller: device, service or operator'],
  claimId: ['keytrail.claim.id', 'The idempotency id of a claim of prekey bundles'],
  devicesClaimed: ['keytrail.devices.claimed', 'Devices in a claim of prekey bundles'],
  claimOutcome: ['keytrail.claim.outcome', 'How a claim of prekey bundles ended: taken, repeated or limited'],
  claimLimitedBy: ['keytrail.claim.limited_by', 'The limit that refused a claim: caller, target or pair'],
  claimExempt: ['keytrail.claim.exempt', 'True when a claim served a key request and went past limit or policy'],
  limitsKeptBy: ['keytrail.limits.kept_by', 'Where the limits of a claim were looked up: redis or process'],
  keyRequestId: ['keytrail.key_request.id', 'The key request'],
  keyRequestState: ['keytrail.key_request.state', 'State of the key request after this operation'],
  attempt: ['keytrail.key_request.attempt', 'Which attempt at fulfilment this is; 1 is the first'],
  keyRequestsCount: ['keytrail.key_requests.count', 'Key requests that this operation handled together'],
  holdersKnown: ['keytrail.holders.known', 'Holders of the key that are entitled to help'],
  envelopesWritten: ['keytrail.envelopes.written', 'Envelopes that a write stored'],
  envelopesExpected: ['keytrail.envelopes.expected', 'Envelopes that it should have stored'],
  peer: ['keytrail.peer', 'The service that a call goes to'],
} as const;

type Registry = typeof registry;

/** Every attribute of a resource: which process, and which build of what. */
const resourceRegistry = {
  namespace: ['service.namespace', 'keytrail'],
  service: ['service.name', 'The service, session'],
  version: ['service.version', 'The version of the release'],
  instance: ['service.instance.id', 'The process, a random UUID'],
  environment: ['deployment.environment.name', 'development or production'],
  revision: ['vcs.ref.head.revision', 'The git revision, or unknown'],
  host: ['host.name', 'Name of the host'],
  pid: ['process.pid', 'Id of the process on its host'],
  runtime: ['process.runtime.name', 'nodejs'],
  runtimeVersion: ['process.runtime.version', 'Version of Node'],
  startedAt: ['process.creation.time', 'When the process started, ISO 8601'],
  build: ['keytrail.build', 'The build as rows and answers carry it: version and twelve digits'],
  sourcesDigest: ['keytrail.build.sources_digest', 'SHA-256 over the sources as they were loaded, 64 hex digits'],
  newestMigration: [
    'keytrail.build.newest_migration',
    'The newest migration that the code knows; empty without a database',
  ],
  contractDigest: [
    'keytrail.build.contract_digest',
    'SHA-256 over the contracts that the code was made with, 64 hex digits',
  ],
  supervisor: [
    'keytrail.supervisor',
    'What starts the process again: kubernetes, systemd, container, launcher or none',
  ],
  image: ['container.image.name', 'The image that it was started from, where that is known'],
} as const;

/** Every attribute of a span event. There is one event: `exception`. */
const eventRegistry = {
  type: ['exception.type', 'Class of the error'],
  message: ['exception.message', 'Its message without credentials; of a database SQLSTATE and names alone'],
  stack: ['exception.stacktrace', 'Its stack under that message'],
} as const;

type ResourceRegistry = typeof resourceRegistry;
type EventRegistry = typeof eventRegistry;

/** Names of resource attributes by what they mean. */
export const resourceAttr = Object.fromEntries(
  Object.entries(resourceRegistry).map(([key, [name]]) => [key, name]),
) as { readonly [K in keyof ResourceRegistry]: ResourceRegistry[K][0] };

/** Names of the attributes of span events. */
export const eventAttr = Object.fromEntries(Object.entries(eventRegistry).map(([key, [name]]) => [key, name])) as {
  readonly [K in keyof EventRegistry]: EventRegistry[K][0];
};

/** Names of span attributes by what they mean: `attr.missCause` is `keytrail.miss.cause`. */
export const attr = Object.fromEntries(Object.entries(registry).map(([key, [name]]) => [key, name])) as {
  readonly [K in keyof Registry]: Registry[K][0];
};

export type AttributeName = Registry[keyof Registry][0];

/** The registry as a list, for the generated reference. */
export const attributeReference: readonly { readonly name: AttributeName; readonly describe: string }[] = Object.values(
  registry,
).map(([name, describe]) => ({ name, describe }));

/** The attributes of resources as a list. */
export const resourceReference: readonly { readonly name: string; readonly describe: string }[] = Object.values(
  resourceRegistry,
).map(([name, describe]) => ({ name, describe }));

/** The attributes of span events as a list. */
export const eventReference: readonly { readonly name: string; readonly describe: string }[] = Object.values(
  eventRegistry,
).map(([name, describe]) => ({ name, describe }));

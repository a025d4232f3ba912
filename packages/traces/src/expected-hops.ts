import type { TraceSpan } from './span.ts';
import type { TraceNode, TraceTree } from './tree.ts';
import { walkTrace } from './tree.ts';

export const missingHopCodes = [
  'CALL_NOT_SERVED',
  'CALLER_MISSING',
  'PARENT_MISSING',
  'MISS_NOT_EXPLAINED',
  'EVENT_NOT_PUBLISHED',
  'EVENT_NOT_PROCESSED',
  'NOTIFICATION_NOT_DELIVERED',
  'OFFER_NOT_ANSWERED',
] as const;

/** A hop that the rest of the trace says there was, or should have been, and that has no span. */
export interface MissingHop {
  readonly code: (typeof missingHopCodes)[number];
  /** Who would have recorded it: a service, or `device`. */
  readonly service: string;
  /** As spans are named, as `keytrail.conversation.v1.ConversationService/CheckEntitlement`. */
  readonly operation: string;
  /** False where it may be right that there is none: the device was offline, the caller records no spans. */
  readonly certain: boolean;
  /** The span below which it would stand; '' for one that stands above `above`. */
  readonly below: string;
  /** Spans that name it as their parent. */
  readonly above: readonly string[];
  /** Why it is likely missing, the likeliest first; sentences. */
  readonly likely: readonly string[];
}

/** What consumes an event of the fleet, by subject; a test holds it to the catalogue of events. */
export const consumersOfSubjects: Readonly<
  Record<string, readonly { readonly service: string; readonly consumer: string }[]>
> = {
  'keytrail.identitykeys.v1.notification_requested': [{ service: 'presence', consumer: 'presence-notifier' }],
  'keytrail.conversation.v1.notification_requested': [{ service: 'presence', consumer: 'presence-notifier' }],
  'keytrail.session.v1.notification_requested': [{ service: 'presence', consumer: 'presence-notifier' }],
  'keytrail.session.v1.key_request_due': [{ service: 'session', consumer: 'session-dispatcher' }],
  'keytrail.presence.v1.device_attached': [
    { service: 'session', consumer: 'session-presence' },
    { service: 'conversation', consumer: 'conversation-presence' },
  ],
  'keytrail.identitykeys.v1.device_list_changed': [
    { service: 'session', consumer: 'session-devices' },
    { service: 'conversation', consumer: 'conversation-devices' },
    { service: 'presence', consumer: 'presence-devices' },
  ],
  'keytrail.identitykeys.v1.root_key_changed': [{ service: 'conversation', consumer: 'conversation-devices' }],
  'keytrail.identitykeys.v1.user_erasure_requested': [
    { service: 'conversation', consumer: 'conversation-erasure' },
    { service: 'session', consumer: 'session-erasure' },
    { service: 'presence', consumer: 'presence-erasure' },
  ],
  'keytrail.conversation.v1.user_erased': [{ service: 'identity-keys', consumer: 'identity-keys-erasure' }],
  'keytrail.session.v1.user_erased': [{ service: 'identity-keys', consumer: 'identity-keys-erasure' }],
  'keytrail.presence.v1.user_erased': [{ service: 'identity-keys', consumer: 'identity-keys-erasure' }],
};

const readInitialSession = 'keytrail.session.v1.SessionService/GetInitialSession';
/** Whom a miss asks; presence is asked only when the session has other holders. */
const askedByMisses = [
  {
    service: 'conversation',
    operation: 'keytrail.conversation.v1.ConversationService/CheckEntitlement',
    certain: true,
  },
  { service: 'identity-keys', operation: 'keytrail.identitykeys.v1.IdentityKeysService/GetDevices', certain: true },
  { service: 'presence', operation: 'keytrail.presence.v1.PresenceService/ListOnline', certain: false },
];

/** Which services call what of each other. */
const callersOfMethods: Readonly<Record<string, readonly string[]>> = {
  CheckEntitlement: ['session'],
  CheckEntitlements: ['session'],
  GetDevices: ['session', 'conversation'],
  ListOnline: ['session', 'conversation'],
  ListSharedUsers: ['identity-keys', 'presence'],
  ListRevokedDevices: ['session', 'conversation', 'presence'],
  GetSession: ['conversation'],
  DiscardSession: ['conversation'],
  CheckOffer: ['identity-keys'],
  GetKeysWaiting: ['presence'],
  GetConversationsWaiting: ['presence'],
  GetPrekeyStatus: ['presence'],
};

const notReached: ReadonlySet<unknown> = new Set(['UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CANCELLED']);

/** A consumer that takes an event later than this after its publication starts a trace of its own. */
const freshMs = 30_000;

/** The hops that should be in the tree and are not, by what the declared model expects; above before below. `nowMs` is when the tree was read. */
export function findMissingHops(tree: TraceTree, { nowMs = Date.now() } = {}): MissingHop[] {
  const nodes = [...walkTrace(tree.roots)].map(({ node }) => node);
  return [
    ...missingParents(tree),
    ...nodes.flatMap((node) => [
      ...callNotServed(node, tree),
      ...missNotExplained(node),
      ...eventNotPublished(node),
      ...eventNotProcessed(node, tree, nowMs),
      ...notDelivered(node),
      ...offerNotAnswered(node, nodes),
    ]),
  ];
}

/** Spans that name the same absent parent point to one hop. */
function missingParents(tree: TraceTree): MissingHop[] {
  const byParent = Map.groupBy(tree.orphans, (span) => span.parentSpanId);
  return [...byParent.values()].map((orphans) => {
    const [first] = orphans as [TraceSpan, ...TraceSpan[]];
    const above = orphans.map((span) => span.spanId);
    const served = orphans.find((span) => span.kind === 'server');
    const consumed = orphans.find((span) => span.kind === 'consumer');
    const caller = served && String(served.attributes['keytrail.caller.kind'] ?? '');
    if (served && caller !== 'service') {
      return {
        code: 'CALLER_MISSING',
        service: caller === 'operator' ? 'operator' : 'device',
        operation: operationOf(served),
        certain: false,
        below: '',
        above,
        likely: ['whoever called records no spans, or sends them elsewhere: they are not part of the fleet'],
      };
    }
    if (served)
      return {
        code: 'CALLER_MISSING',
        service: callingService(served, tree),
        operation: operationOf(served),
        certain: true,
        below: '',
        above,
        likely: lost('the calling service', true),
      };
    if (consumed) {
      const subject = String(consumed.attributes['messaging.destination.name'] ?? consumed.name);
      return {
        code: 'PARENT_MISSING',
        service: publisherOf(subject),
        operation: `publish ${subject}`,
        certain: true,
        below: '',
        above,
        likely: lost(publisherOf(subject), tree.services.includes(publisherOf(subject))),
      };
    }
    // A device goes on with the trace that a notification brought.
    if (!isOfFleet(first.service) && first.kind === 'internal')
      return {
        code: 'PARENT_MISSING',
        service: 'presence',
        operation: 'deliver notification',
        certain: true,
        below: '',
        above,
        likely: lost('presence', tree.services.includes('presence')),
      };
    return {
      code: 'PARENT_MISSING',
      service: first.service,
      operation: enclosingOperation(first),
      certain: true,
      below: '',
      above,
      likely: lost(first.service, true),
    };
  });
}

function callNotServed({ span, children }: TraceNode, tree: TraceTree): MissingHop[] {
  const method = methodOf(span);
  if (span.kind !== 'client' || method === undefined) return [];
  if (children.some((child) => child.span.kind === 'server')) return [];
  const code = span.attributes['rpc.status_code'];
  const service = serviceOf(method, span);
  const likely = notReached.has(code)
    ? [
        `${service} was not reached, or did not answer in time (${code}): the hop may never have begun`,
        `${service} died while it answered`,
      ]
    : lost(service, tree.services.includes(service));
  // At the edge the sampling that a device wishes for does not count, and what went well there is drawn anew.
  const drawnAnew = !isOfFleet(span.service) && code === 'OK';
  if (drawnAnew) likely.unshift(`${service} did not sample it: of what devices ask, and get, it keeps its own share`);
  // Streams live on: their server's span ends, and is exported, with them.
  const certain = span.attributes['keytrail.long_lived'] !== true && !drawnAnew;
  return [{ code: 'CALL_NOT_SERVED', service, operation: method, certain, below: span.spanId, above: [], likely }];
}

function missNotExplained({ span, children }: TraceNode): MissingHop[] {
  if (span.kind !== 'server' || methodOf(span) !== readInitialSession || span.attributes['keytrail.miss'] !== true)
    return [];
  const asked = new Set(children.map((child) => methodOf(child.span)));
  return askedByMisses
    .filter(({ operation, certain }) => !asked.has(operation) && (certain || span.links.length > 0))
    .map(({ service, operation, certain }) => ({
      code: 'MISS_NOT_EXPLAINED',
      service: 'session',
      operation,
      certain,
      below: span.spanId,
      above: [],
      likely: certain
        ? [
            `session lost the span of its call to ${service}: its buffer or its exporter was full`,
            `the build that answered does not ask ${service}: compare builds`,
          ]
        : ['nobody else holds the key, so nobody was looked for'],
    }));
}

/** The relay publishes what a transaction wrote into the outbox; a rolled-back one wrote nothing. */
function eventNotPublished({ span, children }: TraceNode): MissingHop[] {
  const statements = children.filter((child) => child.span.attributes['db.system.name'] === 'postgresql');
  const wrote = statements.some((child) => child.span.name === 'outbox_add' && child.span.status !== 'error');
  const undone = statements.some((child) => child.span.name === 'rollback');
  if (!wrote || undone || children.some((child) => child.span.kind === 'producer')) return [];
  return [
    {
      code: 'EVENT_NOT_PUBLISHED',
      service: span.service,
      operation: 'publish of what was written to the outbox',
      certain: true,
      below: span.spanId,
      above: [],
      likely: [
        'it waits in the outbox: NATS is away, or no relay of the service runs',
        `the process that published it did not keep its part of the trace, or lost it`,
      ],
    },
  ];
}

/** Certain as long as it must come into this trace: what is taken later is rightly in another one, which nothing of this one names. */
function eventNotProcessed({ span, children }: TraceNode, tree: TraceTree, nowMs: number): MissingHop[] {
  if (span.kind !== 'producer' || span.status === 'error') return [];
  const subject = String(span.attributes['messaging.destination.name'] ?? '');
  const seen = new Set(children.map((child) => child.span.attributes['messaging.consumer.group.name']));
  const certain = nowMs - (span.startMs + span.durationMs) < freshMs;
  return (consumersOfSubjects[subject] ?? [])
    .filter(({ consumer }) => !seen.has(consumer))
    .map(({ service, consumer }) => ({
      code: 'EVENT_NOT_PROCESSED',
      service,
      operation: `process ${subject} (${consumer})`,
      certain,
      below: span.spanId,
      above: [],
      likely: [
        `${service} has not taken it yet: no replica runs, or the consumer lags`,
        'it was taken later than 30 s after, or again: then it is in a trace of its own, with a link to this one',
        ...lost(service, tree.services.includes(service)).slice(0, 1),
      ],
    }));
}

function notDelivered(node: TraceNode): MissingHop[] {
  const { span } = node;
  const subject = String(span.attributes['messaging.destination.name'] ?? '');
  if (span.kind !== 'consumer' || !subject.endsWith('.notification_requested')) return [];
  if (hasBelow(node, (below) => below.name === 'deliver notification')) return [];
  const forwarded = hasBelow(node, (below) => below.kind === 'producer');
  return [
    {
      code: 'NOTIFICATION_NOT_DELIVERED',
      service: 'presence',
      operation: 'deliver notification',
      certain: forwarded,
      below: span.spanId,
      above: [],
      likely: forwarded
        ? ['the gateway that holds the stream died, or its span was lost', 'the device left that gateway meanwhile']
        : ['no device that it is for is attached: it learns of it from the state at its next attach'],
    },
  ];
}

/** The holder's device answers an offer in the trace that the delivery is in. */
function offerNotAnswered(node: TraceNode, nodes: readonly TraceNode[]): MissingHop[] {
  const { span, children } = node;
  if (
    span.name !== 'deliver notification' ||
    children.length > 0 ||
    span.attributes['keytrail.notification.kind'] !== 'KEY_OFFERED'
  )
    return [];
  const answered = nodes.some(
    (other) =>
      other.span.kind === 'server' &&
      /\/(?:FulfillKeyRequests?|DeclineOffer)$/.test(methodOf(other.span) ?? '') &&
      other.span.startMs >= span.startMs,
  );
  return [
    {
      code: 'OFFER_NOT_ANSWERED',
      service: 'device',
      operation: 'answer offer',
      certain: false,
      below: span.spanId,
      above: [],
      likely: answered
        ? ['the device answered, and records no spans itself']
        : [
            'the device has not answered: it sleeps, or went away',
            'another holder answered first, and this one had nothing left to do',
          ],
    },
  ];
}

function hasBelow(node: TraceNode, test: (span: TraceSpan) => boolean): boolean {
  return [...walkTrace(node.children)].some(({ node: below }) => test(below.span));
}

function lost(service: string, isThere: boolean): string[] {
  return isThere
    ? [
        `${service} lost the span: its buffer was full, or the process ended before it was sent`,
        `that part of the trace was not sampled, and not kept as a miss, an error or slow`,
      ]
    : [
        `nothing of ${service} is in the trace: it was not sampled there, or ${service} exports to another place or not at all`,
        `the process ended before it sent its spans`,
      ];
}

function methodOf({ attributes }: TraceSpan): string | undefined {
  const method = attributes['rpc.method'];
  return typeof method === 'string' && method.startsWith('keytrail.') ? method : undefined;
}

/** `keytrail.identitykeys.v1.…` is served by identity-keys; what all serve, by the peer that was called. */
function serviceOf(method: string, span: TraceSpan): string {
  const domain = method.split('.')[1] ?? '';
  const peer = span.attributes['keytrail.peer'];
  if (typeof peer === 'string') return peer;
  return domain === 'identitykeys' ? 'identity-keys' : domain;
}

function publisherOf(subject: string): string {
  const domain = /^keytrail\.([a-z]+)\.v1\./.exec(subject)?.[1];
  if (domain === undefined) return 'presence';
  return domain === 'identitykeys' ? 'identity-keys' : domain;
}

const fleet: readonly string[] = ['identity-keys', 'conversation', 'session', 'presence'];

function isOfFleet(service: string): boolean {
  return fleet.includes(service);
}

/** A call of the same trace that nobody served, and that was going on then, went to whoever called; else one of those that do call. */
function callingService(served: TraceSpan, tree: TraceTree): string {
  const parents = new Set(tree.spans.map((span) => span.parentSpanId));
  const unserved = tree.spans.filter(
    (span) =>
      span.kind === 'client' &&
      methodOf(span) !== undefined &&
      !parents.has(span.spanId) &&
      span.startMs <= served.startMs &&
      span.startMs + span.durationMs >= served.startMs,
  );
  const called = new Set(unserved.map((span) => serviceOf(methodOf(span) ?? '', span)));
  const [only, ...more] = [...called].filter((service) => service !== served.service);
  if (only !== undefined && more.length === 0) return only;
  return callersOfMethods[methodOf(served)?.split('/')[1] ?? '']?.join(' or ') ?? 'another service';
}

function operationOf(span: TraceSpan): string {
  return methodOf(span) ?? span.name;
}

/** What works on a store, calls, or publishes does so within a hop of the same process. */
function enclosingOperation(span: TraceSpan): string {
  return `what ${span.name} was part of`;
}

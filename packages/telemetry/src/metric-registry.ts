import { attr } from './attributes.ts';

export type InstrumentKind = 'counter' | 'histogram' | 'gauge';

/** An instrument as it is declared: its OpenTelemetry name and unit, and the only attributes that it may have, none of which is ever an id. */
export interface InstrumentDeclaration {
  readonly name: string;
  readonly kind: InstrumentKind;
  /** UCUM: `s`, `By`, `{event}`; empty for a number that has none. */
  readonly unit: string;
  readonly describe: string;
  readonly attributes: readonly string[];
  /** Upper bounds of a histogram, in its unit. */
  readonly buckets?: readonly number[];
}

/** Attributes of metrics that no span has; each has a few values that are known beforehand. */
export const metricAttr = {
  keyRequestOutcome: 'keytrail.key_request.outcome',
  keyRequestKind: 'keytrail.key_request.kind',
  postponedBecause: 'keytrail.key_request.postponed_because',
  prekeyPool: 'keytrail.prekeys.pool',
  retiredBecause: 'keytrail.prekeys.retired_because',
  messagingStream: 'keytrail.messaging.stream',
  messagingOutcome: 'keytrail.messaging.outcome',
  leaseOutcome: 'keytrail.presence.lease_outcome',
  schemaState: 'keytrail.schema.state_name',
  spanFate: 'keytrail.telemetry.fate',
  spanWaitsFor: 'keytrail.telemetry.waits_for',
  exportOutcome: 'keytrail.telemetry.export_outcome',
} as const;

const callBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** From what a device notices to the days that a request may wait; 1 s, 5 s and 60 s are bounds, for objectives. */
const keyBuckets = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1_800, 7_200, 28_800, 86_400, 604_800];

/** Every instrument of this project. docs/metrics.md is written from it; a test holds the code, the alerts and the dashboard to it. */
export const metricRegistry = {
  serverCalls: {
    name: 'rpc.server.call.duration',
    kind: 'histogram',
    unit: 's',
    describe: 'Duration of the calls that this process answered',
    attributes: [attr.rpcSystem, attr.rpcMethod, attr.rpcStatusCode],
    buckets: callBuckets,
  },
  clientCalls: {
    name: 'rpc.client.call.duration',
    kind: 'histogram',
    unit: 's',
    describe: 'Duration of the calls that this process made',
    attributes: [attr.rpcSystem, attr.rpcMethod, attr.rpcStatusCode],
    buckets: callBuckets,
  },

  misses: {
    name: 'keytrail.misses',
    kind: 'counter',
    unit: '{miss}',
    describe:
      'Answers that a key is not there, to reads and to requests for it, by cause (EXPLANATION_INCOMPLETE without one) and state of recovery',
    attributes: [attr.missCause, attr.recovery],
  },
  keyRequestsMade: {
    name: 'keytrail.key_requests.made',
    kind: 'counter',
    unit: '{request}',
    describe: 'Key requests that were stored',
    attributes: [metricAttr.keyRequestKind],
  },
  timeToKey: {
    name: 'keytrail.key_requests.time_to_key',
    kind: 'histogram',
    unit: 's',
    describe:
      'From a key request to its end, by how it ended; FULFILLED is the time to a key, waits for a holder included',
    attributes: [metricAttr.keyRequestOutcome],
    buckets: keyBuckets,
  },
  timeToOffer: {
    name: 'keytrail.key_requests.time_to_offer',
    kind: 'histogram',
    unit: 's',
    describe: 'From a key request to its first offer to a holder',
    attributes: [],
    buckets: keyBuckets,
  },
  offerToKey: {
    name: 'keytrail.key_requests.offer_to_key',
    kind: 'histogram',
    unit: 's',
    describe:
      'FULFILLED: from the offer that a holder took to the key it sealed, what is left of the time to a key when somebody is there. UNFULFILLABLE: the whole life of a request that was offered until its attempts were used up, and answered by nobody',
    attributes: [metricAttr.keyRequestOutcome],
    buckets: keyBuckets,
  },
  keyRequestsPostponed: {
    name: 'keytrail.key_requests.postponed',
    kind: 'counter',
    unit: '{look}',
    describe:
      'Looks at a key request that could not be made and are made again seconds later: peer_away (a peer could not be asked), not_heard (nobody would hear of an offer, as events do not get out) or fault',
    attributes: [metricAttr.postponedBecause],
  },
  openKeyRequests: {
    name: 'keytrail.key_requests.open',
    kind: 'gauge',
    unit: '{request}',
    describe: 'Key requests that are open, by state; counted up to 100,000. Every replica reports the same',
    attributes: [attr.keyRequestState],
  },
  oldestOpenKeyRequest: {
    name: 'keytrail.key_requests.oldest_age',
    kind: 'gauge',
    unit: 's',
    describe: 'Age of the oldest open key request, by state; 0 without one. Every replica reports the same',
    attributes: [attr.keyRequestState],
  },
  overdueKeyRequests: {
    name: 'keytrail.key_requests.overdue',
    kind: 'gauge',
    unit: 's',
    describe:
      'For how long the key request that is due longest has not been looked at; 0 when none is. Every replica reports the same',
    attributes: [],
  },

  claims: {
    name: 'keytrail.claims',
    kind: 'counter',
    unit: '{claim}',
    describe: 'Claims of prekey bundles, by outcome',
    attributes: [attr.claimOutcome],
  },
  claimsLimited: {
    name: 'keytrail.claims.limited',
    kind: 'counter',
    unit: '{claim}',
    describe: 'Claims refused by a limit, by its scope',
    attributes: [attr.claimLimitedBy],
  },
  lastResortClaims: {
    name: 'keytrail.claims.last_resort',
    kind: 'counter',
    unit: '{bundle}',
    describe: 'Bundles with the last-resort prekey: no one-time KEM prekey was left',
    attributes: [],
  },
  prekeysRetired: {
    name: 'keytrail.prekeys.retired',
    kind: 'counter',
    unit: '{prekey}',
    describe: 'One-time prekeys retired unclaimed, by pool and by what retired them',
    attributes: [metricAttr.prekeyPool, metricAttr.retiredBecause],
  },
  prekeyNotices: {
    name: 'keytrail.prekeys.notices',
    kind: 'counter',
    unit: '{notice}',
    describe: 'Notices to devices that a pool is low or a prekey overdue, reminders included',
    attributes: [],
  },
  devicesLow: {
    name: 'keytrail.prekeys.devices_low',
    kind: 'gauge',
    unit: '{device}',
    describe:
      'Devices that were told that a pool is low or a prekey overdue, and have not put it right; counted up to 100,000. Every replica reports the same',
    attributes: [],
  },
  devicesEmpty: {
    name: 'keytrail.prekeys.devices_empty',
    kind: 'gauge',
    unit: '{device}',
    describe:
      'Of these devices, those without a one-time prekey, by pool; of up to 10,000. Every replica reports the same',
    attributes: [metricAttr.prekeyPool],
  },

  messageProcessing: {
    name: 'messaging.process.duration',
    kind: 'histogram',
    unit: 's',
    describe: 'Duration of handling one delivery of an event, by what became of it: handled, again or dead_letter',
    attributes: [attr.messagingSystem, attr.messagingConsumer, attr.messagingDestination, metricAttr.messagingOutcome],
    buckets: callBuckets,
  },
  redeliveries: {
    name: 'keytrail.messaging.redeliveries',
    kind: 'counter',
    unit: '{delivery}',
    describe: 'Deliveries of an event that were not its first',
    attributes: [attr.messagingConsumer],
  },
  consumerPending: {
    name: 'keytrail.messaging.consumer.pending',
    kind: 'gauge',
    unit: '{event}',
    describe: 'Events of a stream that a durable consumer has not been given yet. Every replica reports the same',
    attributes: [attr.messagingConsumer, metricAttr.messagingStream],
  },
  consumerUnacknowledged: {
    name: 'keytrail.messaging.consumer.unacknowledged',
    kind: 'gauge',
    unit: '{event}',
    describe: 'Events that a durable consumer was given and has not acknowledged. Every replica reports the same',
    attributes: [attr.messagingConsumer, metricAttr.messagingStream],
  },
  outboxPending: {
    name: 'keytrail.outbox.pending',
    kind: 'gauge',
    unit: '{event}',
    describe: 'Events that wait to be published, counted up to 100,000. Every replica reports the same',
    attributes: [],
  },
  outboxOldestAge: {
    name: 'keytrail.outbox.oldest_age',
    kind: 'gauge',
    unit: 's',
    describe: 'Since the oldest event that waits was written; 0 without one. Every replica reports the same',
    attributes: [],
  },
  deadLetters: {
    name: 'keytrail.dead_letters',
    kind: 'gauge',
    unit: '{event}',
    describe:
      'Events that were given up and are kept, by consumer; counted up to 10,000. Every replica reports the same',
    attributes: [attr.messagingConsumer],
  },

  attachedDevices: {
    name: 'keytrail.presence.attached',
    kind: 'gauge',
    unit: '{device}',
    describe: 'Devices attached to this gateway; a gateway that lives reports it, 0 included',
    attributes: [],
  },
  leaseRenewals: {
    name: 'keytrail.presence.lease_renewals',
    kind: 'counter',
    unit: '{renewal}',
    describe:
      'Renewals of the gateway lease: renewed, lost (it was gone and is taken anew) or failed (Redis could not be asked)',
    attributes: [metricAttr.leaseOutcome],
  },

  buildInfo: {
    name: 'keytrail.build_info',
    kind: 'gauge',
    unit: '',
    describe: 'The build that runs; the value is always 1',
    attributes: [
      'service',
      'version',
      'revision',
      'build',
      'sources_digest',
      'newest_migration',
      'contract_digest',
      'node_version',
      'started_at',
      'host',
      'image',
      'supervisor',
    ],
  },
  peerBuilds: {
    name: 'keytrail.peer.builds',
    kind: 'gauge',
    unit: '',
    describe:
      'Builds of peers that answered this process within ten minutes, and whether their contracts are the same, other or unknown; the value is always 1',
    attributes: [attr.peer, 'build', 'contracts'],
  },
  ready: {
    name: 'keytrail.ready',
    kind: 'gauge',
    unit: '',
    describe: '1 while this process serves, 0 while it is not ready; the reason stands in its log and in /readyz',
    attributes: [],
  },
  schemaState: {
    name: 'keytrail.schema.state',
    kind: 'gauge',
    unit: '',
    describe:
      '1 for the state that the migrations of the database are in against those of this build: current, behind, ahead or diverged',
    attributes: [metricAttr.schemaState],
  },
  databaseFenced: {
    name: 'keytrail.database.fenced',
    kind: 'gauge',
    unit: '',
    describe:
      '1 while the database is known to have gone back in time, or that cannot be ruled out; 0 while its fence is open',
    attributes: [],
  },
  restoresUnaccepted: {
    name: 'keytrail.database.restores_unaccepted',
    kind: 'gauge',
    unit: '{restore}',
    describe: 'Times that the database went back in time, and no operator has accepted it',
    attributes: [],
  },
  spans: {
    name: 'keytrail.telemetry.spans',
    kind: 'counter',
    unit: '{span}',
    describe: 'Ended spans by their fate: exported, unsampled, buffer_full, queue_full or export_failed',
    attributes: [metricAttr.spanFate],
  },
  spansWaiting: {
    name: 'keytrail.telemetry.spans.waiting',
    kind: 'gauge',
    unit: '{span}',
    describe: 'Spans in memory by what they wait for: root or export',
    attributes: [metricAttr.spanWaitsFor],
  },
  metricExports: {
    name: 'keytrail.telemetry.metric_exports',
    kind: 'counter',
    unit: '{export}',
    describe: 'Exports of metrics: sent or failed. What failed is told by the next that is sent',
    attributes: [metricAttr.exportOutcome],
  },
} as const satisfies Record<string, InstrumentDeclaration>;

export type MetricRegistry = typeof metricRegistry;

const unitSuffixes: Record<string, string> = { s: 'seconds', By: 'bytes' };

/** The name of an instrument's series in Prometheus, by the rules of OpenTelemetry: `rpc_server_call_duration_seconds`, `keytrail_misses_total`. */
export function prometheusName({ name, kind, unit }: InstrumentDeclaration): string {
  const parts = [name.replaceAll('.', '_')];
  const suffix = unitSuffixes[unit];
  if (suffix && !parts[0]?.endsWith(suffix)) parts.push(suffix);
  if (kind === 'counter') parts.push('total');
  return parts.join('_');
}

/** The names of all series that an instrument has in Prometheus: three for a histogram. */
export function prometheusSeries(instrument: InstrumentDeclaration): string[] {
  const name = prometheusName(instrument);
  return instrument.kind === 'histogram' ? ['bucket', 'sum', 'count'].map((part) => `${name}_${part}`) : [name];
}

/** The name of an attribute as a label in Prometheus. */
export function prometheusLabel(attribute: string): string {
  return attribute.replaceAll('.', '_');
}

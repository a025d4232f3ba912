const all = ['identity-keys', 'session', 'conversation', 'presence'] as const;
const withDatabase = ['identity-keys', 'session', 'conversation'] as const;

/** Everything that is checked, in the order in which the doctor does it: cheapest first. A check has a page docs/checks/<code>.md. */
export const checkCatalogue = [
  // Who is there, and what runs.
  { code: 'SERVICES_REACHABLE', title: 'Every process answers', place: 'fleet', of: all },
  {
    code: 'BUILD_RUNNING',
    title: 'Which build runs, since when, supervised by what',
    step: 4,
    place: 'process',
    of: all,
  },
  {
    code: 'SOURCES_ON_DISK',
    title: 'The sources are those that were loaded: whether to restart',
    step: 5,
    place: 'process',
    of: all,
  },
  { code: 'FLEET_MIXED', title: 'All processes run one build', place: 'fleet', of: all },
  { code: 'CONTRACTS_AGREE', title: 'All processes have one contract', place: 'fleet', of: all },
  // The stores that everything stands on.
  { code: 'DATABASE', title: 'The database answers', place: 'process', of: withDatabase },
  {
    code: 'MIGRATIONS',
    title: 'Databases and code have the same migrations',
    step: 8,
    place: 'process',
    of: withDatabase,
  },
  { code: 'DATABASE_RESTORED', title: 'The database did not go back in time', place: 'process', of: withDatabase },
  { code: 'CLOCKS', title: 'Clocks agree', place: 'process', of: withDatabase },
  { code: 'NATS', title: 'NATS answers', place: 'process', of: all },
  { code: 'REDIS', title: 'Redis answers', place: 'process', of: ['identity-keys', 'presence'] },
  // Who is online.
  { code: 'PRESENCE', title: 'Presence knows who is attached', step: 6, place: 'process', of: ['presence'] },
  { code: 'LEASES', title: 'Gateways have their leases', place: 'process', of: ['presence'] },
  { code: 'GHOSTS', title: 'No entry points to a gateway that is gone', place: 'service', of: ['presence'] },
  // Delivery.
  { code: 'STREAMS', title: 'Streams and consumers are as in the catalogue', place: 'process', of: all },
  { code: 'CONSUMERS', title: 'Consumers keep up', place: 'any', of: all },
  { code: 'OUTBOX', title: 'Events leave the outbox', place: 'service', of: withDatabase },
  { code: 'DEAD_LETTERS', title: 'No event was given up', place: 'service', of: withDatabase },
  { code: 'TELEMETRY', title: 'Traces and metrics arrive', place: 'process', of: all },
  // The rows.
  {
    code: 'CONSTRAINTS',
    title: 'The constraints that hold the invariants are there',
    place: 'service',
    of: withDatabase,
  },
  { code: 'SESSION_ROWS', title: 'Session rows have their ephemeral keys', step: 1, place: 'service', of: ['session'] },
  { code: 'IDENTITY_KEYS', title: 'Devices have their full key set', step: 2, place: 'service', of: ['identity-keys'] },
  {
    code: 'ENVELOPE_COUNTS',
    title: 'Sessions have the envelopes that they were stored with',
    step: 3,
    place: 'service',
    of: ['session'],
  },
  {
    code: 'CONVERSATION_SESSIONS',
    title: 'Conversations have an epoch, and its session is stored',
    step: 3,
    place: 'fleet',
    of: ['conversation', 'session'],
  },
  {
    code: 'OLD_BUILD_WRITES',
    title: 'Rows of late were written by the builds that run',
    place: 'fleet',
    of: withDatabase,
  },
  // The work.
  { code: 'OLDEST_OPEN_REQUEST', title: 'Key requests move', place: 'service', of: ['session'] },
  { code: 'PREKEY_POOLS', title: 'Devices have prekeys left', place: 'service', of: ['identity-keys'] },
  { code: 'CANDIDATES', title: 'No candidate session is stuck', place: 'service', of: ['conversation'] },
  { code: 'REPRODUCTION', title: 'A key gets from one device to another', step: 7, place: 'fleet', of: all },
] as const satisfies readonly CatalogueEntry[];

export interface CatalogueEntry {
  readonly code: string;
  readonly title: string;
  /** Of the eight steps of the incident's diagnosis. */
  readonly step?: number;
  /**
   * process: each process for itself. service: each service once, by any of its processes. any: once, by any process at all. fleet: by the
   * doctor, over what all of them say.
   */
  readonly place: 'process' | 'service' | 'any' | 'fleet';
  /** The services that it is about. */
  readonly of: readonly (typeof all)[number][];
}

export type CheckCode = (typeof checkCatalogue)[number]['code'];

/** The check of the store that a check asks, where it is another: while that one fails, this one cannot be made. */
export function storeOf(code: string): CheckCode | undefined {
  return (Object.keys(askedOf) as (keyof typeof askedOf)[]).find((store) =>
    (askedOf[store] as readonly string[]).includes(code),
  );
}

const askedOf = {
  DATABASE: [
    'MIGRATIONS',
    'DATABASE_RESTORED',
    'CLOCKS',
    'OUTBOX',
    'DEAD_LETTERS',
    'CONSTRAINTS',
    'SESSION_ROWS',
    'IDENTITY_KEYS',
    'ENVELOPE_COUNTS',
    'CONVERSATION_SESSIONS',
    'OLD_BUILD_WRITES',
    'OLDEST_OPEN_REQUEST',
    'PREKEY_POOLS',
    'CANDIDATES',
  ],
  NATS: ['STREAMS', 'CONSUMERS'],
  REDIS: ['PRESENCE', 'LEASES', 'GHOSTS'],
} as const satisfies Partial<Record<CheckCode, readonly CheckCode[]>>;

/** The page of a check: below `base`, by default the place in this repository. */
export function checkPage(code: string, base = 'docs/checks'): string {
  return `${base}/${code.toLowerCase().replaceAll('_', '-')}.md`;
}

/** Everything that is checked, in the order in which the doctor does it: cheapest first. A check has a page docs/checks/<code>.md. */
export const checkCatalogue = [
  // The diagnosis of the incident, step by step.
  { code: 'SESSION_ROWS', title: 'Session rows have their ephemeral keys', step: 1, place: 'session' },
  { code: 'IDENTITY_KEYS', title: 'Devices have their full key set', step: 2, place: 'identity-keys' },
  {
    code: 'ENVELOPE_COUNTS',
    title: 'Sessions have the envelopes that they were stored with',
    step: 3,
    place: 'session',
  },
  {
    code: 'CONVERSATION_SESSIONS',
    title: 'Conversations have an epoch, and its session is stored',
    step: 3,
    place: 'fleet',
  },
  { code: 'BUILD_RUNNING', title: 'Which build runs, since when, supervised by what', step: 4, place: 'process' },
  {
    code: 'SOURCES_ON_DISK',
    title: 'The sources are those that were loaded: whether to restart',
    step: 5,
    place: 'process',
  },
  { code: 'PRESENCE', title: 'Presence knows who is attached', step: 6, place: 'presence' },
  { code: 'REPRODUCTION', title: 'A key gets from one device to another', step: 7, place: 'fleet' },
  { code: 'MIGRATIONS', title: 'Databases and code have the same migrations', step: 8, place: 'process' },
  // The fleet.
  { code: 'SERVICES_REACHABLE', title: 'Every process answers', place: 'fleet' },
  { code: 'FLEET_MIXED', title: 'All processes run one build', place: 'fleet' },
  { code: 'CONTRACTS_AGREE', title: 'All processes have one contract', place: 'fleet' },
  { code: 'OLD_BUILD_WRITES', title: 'Rows of late were written by the builds that run', place: 'fleet' },
  { code: 'CLOCKS', title: 'Clocks agree', place: 'process' },
  // The stores.
  { code: 'DATABASE', title: 'The database answers', place: 'process' },
  { code: 'DATABASE_RESTORED', title: 'The database did not go back in time', place: 'process' },
  { code: 'CONSTRAINTS', title: 'The constraints that hold the invariants are there', place: 'process' },
  { code: 'REDIS', title: 'Redis answers', place: 'presence' },
  { code: 'LEASES', title: 'Gateways have their leases', place: 'presence' },
  { code: 'GHOSTS', title: 'No entry points to a gateway that is gone', place: 'presence' },
  // Delivery.
  { code: 'NATS', title: 'NATS answers', place: 'process' },
  { code: 'STREAMS', title: 'Streams and consumers are as in the catalogue', place: 'process' },
  { code: 'CONSUMERS', title: 'Consumers keep up', place: 'process' },
  { code: 'OUTBOX', title: 'Events leave the outbox', place: 'process' },
  { code: 'DEAD_LETTERS', title: 'No event was given up', place: 'process' },
  // The work.
  { code: 'OLDEST_OPEN_REQUEST', title: 'Key requests move', place: 'session' },
  { code: 'PREKEY_POOLS', title: 'Devices have prekeys left', place: 'identity-keys' },
  { code: 'CANDIDATES', title: 'No candidate session is stuck', place: 'conversation' },
  { code: 'TELEMETRY', title: 'Traces and metrics arrive', place: 'process' },
] as const satisfies readonly CatalogueEntry[];

export interface CatalogueEntry {
  readonly code: string;
  readonly title: string;
  /** Of the eight steps of the incident's diagnosis. */
  readonly step?: number;
  /** process: each process for itself. A service: once, by any of its processes. fleet: by the doctor, over all. */
  readonly place: 'process' | 'identity-keys' | 'session' | 'conversation' | 'presence' | 'fleet';
}

export type CheckCode = (typeof checkCatalogue)[number]['code'];

/** The page of a check: below `base`, by default the place in this repository. */
export function checkPage(code: CheckCode, base = 'docs/checks'): string {
  return `${base}/${code.toLowerCase().replaceAll('_', '-')}.md`;
}

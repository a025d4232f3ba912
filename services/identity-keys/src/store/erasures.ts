import { isCheckViolation, type Queryable, statement, type Transaction } from '@keytrail/storage';

/** An erasure as it stands. */
export interface Erasure {
  readonly erasureId: string;
  /** Absent once it is forgotten. */
  readonly userId: string | undefined;
  readonly deviceIds: readonly string[];
  readonly requestedAt: Date;
  readonly completedAt: Date | undefined;
}

export interface ErasedCount {
  readonly kind: string;
  readonly erased: bigint;
  readonly kept: bigint;
}

export interface ServiceReport {
  readonly service: string;
  readonly erasedAt: Date;
  readonly counts: readonly ErasedCount[];
}

interface Row {
  erasure_id: string;
  user_id: string | null;
  device_ids: string[];
  requested_at: Date;
  completed_at: Date | null;
}

const columns = 'erasure_id, user_id, device_ids, requested_at, completed_at';

// Held until the end of the transaction: no user is named meanwhile, and who was about to name one has committed.
const holdUsers = statement('user_erasure_hold_users', `SELECT pg_advisory_xact_lock(hashtext('erasures'))`);
const findOfUser = statement('user_erasure_of_user', `SELECT ${columns} FROM erasures WHERE user_id = $1`);
const find = statement('user_erasure_find', `SELECT ${columns} FROM erasures WHERE erasure_id = $1`);
const insert = statement(
  'user_erasure_insert',
  `INSERT INTO erasures (erasure_id, user_id, device_ids) VALUES ($1, $2, $3) RETURNING ${columns}`,
);
const markUser = statement('user_erasure_mark_user', 'UPDATE users SET erased_at = now() WHERE user_id = $1');
const forgetRecovery = statement('user_erasure_forget_recovery', 'DELETE FROM recoveries WHERE user_id = $1');
const report = statement(
  'user_erasure_report',
  `WITH reported AS (
     INSERT INTO erasure_reports (erasure_id, service, erased_at)
     SELECT erasure_id, $2, $3 FROM erasures WHERE erasure_id = $1 ON CONFLICT DO NOTHING RETURNING erasure_id)
   INSERT INTO erasure_counts (erasure_id, service, kind, erased, kept)
   SELECT r.erasure_id, $2, c.kind, c.erased, c.kept FROM reported r
    CROSS JOIN unnest($4::text[], $5::bigint[], $6::bigint[]) AS c (kind, erased, kept)
   ON CONFLICT DO NOTHING`,
);
const readReports = statement(
  'user_erasure_reports_read',
  `SELECT r.service, r.erased_at, c.kind, c.erased, c.kept
     FROM erasure_reports r LEFT JOIN erasure_counts c USING (erasure_id, service)
    WHERE r.erasure_id = $1 ORDER BY r.service, c.kind`,
);
const running = statement(
  'user_erasures_running',
  `SELECT ${columns}, (SELECT array_agg(service) FROM erasure_reports r WHERE r.erasure_id = e.erasure_id) AS reported
     FROM erasures e WHERE completed_at IS NULL ORDER BY requested_at`,
);
const askAgain = statement(
  'user_erasure_ask_again',
  `UPDATE erasures SET asked_at = now()
    WHERE erasure_id = $1 AND completed_at IS NULL AND asked_at < now() - $2 * interval '1 millisecond' RETURNING true AS asked`,
);
const complete = statement(
  'user_erasure_complete',
  'UPDATE erasures SET completed_at = now() WHERE erasure_id = $1 AND completed_at IS NULL',
);
const forget = statement(
  'user_erasures_forget',
  `UPDATE erasures SET user_id = NULL, device_ids = '{}'
    WHERE user_id IS NOT NULL AND completed_at < now() - $1 * interval '1 millisecond' RETURNING true AS forgotten`,
);

/** The database refused to name a user who is erased. */
export function isOfErasedUser(error: unknown): boolean {
  return isCheckViolation(error, 'not_of_erased_users');
}

/** The erasure that names the user, if there is one. */
export async function findErasureOf(db: Queryable, userId: string): Promise<Erasure | undefined> {
  const [row] = await db.query<Row>(findOfUser, [userId]);
  return row && erasureOf(row);
}

/** As `findErasureOf`; from here to the end of the transaction nobody names a new user. */
export async function holdErasureOf(tx: Transaction, userId: string): Promise<Erasure | undefined> {
  await tx.query(holdUsers, []);
  return findErasureOf(tx, userId);
}

export async function findErasure(db: Queryable, erasureId: string): Promise<Erasure | undefined> {
  const [row] = await db.query<Row>(find, [erasureId]);
  return row && erasureOf(row);
}

export async function insertErasure(
  tx: Transaction,
  { erasureId, userId, deviceIds }: { erasureId: string; userId: string; deviceIds: readonly string[] },
): Promise<Erasure> {
  const [row] = await tx.query<Row>(insert, [erasureId, userId, deviceIds]);
  if (!row) throw new Error('an insert without its row');
  return erasureOf(row);
}

/** From here on no device of the user is good any more. The user must be locked, and have no device that is not revoked. */
export async function markErased(tx: Transaction, userId: string): Promise<void> {
  await tx.query(markUser, [userId]);
  await tx.query(forgetRecovery, [userId]);
}

/** Keeps a service's first report of an erasure; those that come again change nothing, and those of unknown erasures neither. */
export async function keepReport(
  db: Queryable,
  erasureId: string,
  { service, erasedAt, counts }: ServiceReport,
): Promise<void> {
  await db.query(report, [
    erasureId,
    service,
    erasedAt,
    counts.map(({ kind }) => kind),
    counts.map(({ erased }) => erased),
    counts.map(({ kept }) => kept),
  ]);
}

export async function readServiceReports(db: Queryable, erasureId: string): Promise<ServiceReport[]> {
  const rows = await db.query<{
    service: string;
    erased_at: Date;
    kind: string | null;
    erased: bigint | null;
    kept: bigint | null;
  }>(readReports, [erasureId]);
  const byService = Map.groupBy(rows, ({ service }) => service);
  return [...byService].map(([service, of]) => ({
    service,
    erasedAt: of[0]?.erased_at ?? new Date(0),
    counts: of.flatMap(({ kind, erased, kept }) =>
      kind === null ? [] : [{ kind, erased: erased ?? 0n, kept: kept ?? 0n }],
    ),
  }));
}

/** Erasures that are not complete, the oldest first, with the services that have reported. */
export async function runningErasures(db: Queryable): Promise<(Erasure & { readonly reported: readonly string[] })[]> {
  const rows = await db.query<Row & { reported: string[] | null }>(running, []);
  return rows.map((row) => ({ ...erasureOf(row), reported: row.reported ?? [] }));
}

/** True for one of all replicas, once within the interval. */
export async function takeAskingAgain(tx: Transaction, erasureId: string, everyMs: number): Promise<boolean> {
  return (await tx.query(askAgain, [erasureId, everyMs])).length > 0;
}

export async function completeErasure(tx: Transaction, erasureId: string): Promise<void> {
  await tx.query(complete, [erasureId]);
}

/** Takes the users out of erasures that are complete for longer; the reports stay. How many. */
export async function forgetErasedUsers(db: Queryable, olderThanMs: number): Promise<number> {
  return (await db.query(forget, [olderThanMs])).length;
}

function erasureOf(row: Row): Erasure {
  return {
    erasureId: row.erasure_id,
    userId: row.user_id ?? undefined,
    deviceIds: row.device_ids,
    requestedAt: row.requested_at,
    completedAt: row.completed_at ?? undefined,
  };
}

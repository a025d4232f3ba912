import type { Queryable } from '../database.ts';
import { statement } from '../statement.ts';
import type { FenceRow } from './judge.ts';

const read = statement(
  'fence_read',
  `SELECT incarnation, position, place, closed, database_place() AS here, server_started() AS server_started,
          (SELECT count(*) FROM database_restores WHERE accepted_at IS NULL)::int AS unaccepted
     FROM restore_fence`,
);
const advance = statement(
  'fence_advance',
  `UPDATE restore_fence SET position = position + 1 WHERE incarnation = $1 AND position = $2 AND place = $3 AND NOT closed RETURNING position`,
);
const moveTo = statement(
  'fence_move',
  'UPDATE restore_fence SET place = $3 WHERE incarnation = $1 AND place = $2 AND NOT closed RETURNING 1',
);
const close = statement(
  'fence_close',
  `WITH closing AS (UPDATE restore_fence SET closed = true WHERE incarnation = $1 AND NOT closed RETURNING incarnation, position)
   INSERT INTO database_restores (incarnation, ended_incarnation, because, found_place, position_found, position_expected)
   SELECT gen_random_uuid(), incarnation, $2, $3, position, $4 FROM closing RETURNING incarnation`,
);
const hold = statement('fence_hold', 'SELECT incarnation, position, closed FROM restore_fence FOR UPDATE');
const atHand = statement('fence_restore_at_hand', 'SELECT incarnation FROM database_restores WHERE handled_at IS NULL');
const open = statement('fence_open', 'UPDATE restore_fence SET incarnation = $1, place = $2, closed = false');
const handled = statement(
  'fence_restore_handled',
  'UPDATE database_restores SET handled_at = greatest(clock_timestamp(), noticed_at) WHERE incarnation = $1',
);

export async function readFence(db: Queryable): Promise<FenceRow> {
  const [row] = await db.query<FenceRow>(read, []);
  if (!row) throw new Error('the database has no restore_fence');
  return row;
}

/** The new position; undefined when another replica was first. */
export async function advanceFence(
  db: Queryable,
  { incarnation, position, here }: FenceRow,
): Promise<bigint | undefined> {
  return (await db.query<{ position: bigint }>(advance, [incarnation, position, here]))[0]?.position;
}

export async function moveFence(db: Queryable, { incarnation, place, here }: FenceRow): Promise<void> {
  await db.query(moveTo, [incarnation, place, here]);
}

/** True for the one replica that closed it. */
export async function closeFence(
  db: Queryable,
  { incarnation, here }: FenceRow,
  { because, expected }: { readonly because: string; readonly expected: bigint },
): Promise<boolean> {
  return (await db.query(close, [incarnation, because, here, expected])).length > 0;
}

/** Holds the fence until the end of the transaction. */
export async function holdFence(tx: Queryable) {
  const [row] = await tx.query<Pick<FenceRow, 'incarnation' | 'position' | 'closed'>>(hold, []);
  if (!row) throw new Error('the database has no restore_fence');
  return row;
}

/** The incarnation that begins once the restore at hand is dealt with. */
export async function nextIncarnation(tx: Queryable): Promise<string> {
  const [row] = await tx.query<{ incarnation: string }>(atHand, []);
  if (!row) throw new Error('the fence is closed without a restore');
  return row.incarnation;
}

export async function openFence(tx: Queryable, incarnation: string, place: string): Promise<void> {
  await tx.query(open, [incarnation, place]);
  await tx.query(handled, [incarnation]);
}

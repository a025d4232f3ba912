import type { Queryable } from '../database.ts';
import { statement } from '../statement.ts';

/** A time that the database went back. */
export interface DatabaseRestoreRow {
  readonly ended_incarnation: string;
  readonly because: string;
  readonly position_found: bigint;
  readonly position_expected: bigint;
  readonly noticed_at: Date;
  readonly handled_at: Date | null;
  readonly accepted_at: Date | null;
  readonly accepted_by: string | null;
}

const list = statement(
  'fence_list_restores',
  `SELECT ended_incarnation, because, position_found, position_expected, noticed_at, handled_at, accepted_at, accepted_by
     FROM database_restores ORDER BY noticed_at DESC LIMIT 100`,
);
const accept = statement(
  'fence_accept_restores',
  `UPDATE database_restores SET accepted_at = greatest(clock_timestamp(), handled_at), accepted_by = $1, accepted_note = $2
    WHERE handled_at IS NOT NULL AND accepted_at IS NULL RETURNING 1`,
);

/** Newest first, at most 100. */
export function listRestores(db: Queryable): Promise<DatabaseRestoreRow[]> {
  return db.query<DatabaseRestoreRow>(list, []);
}

/** An operator knows of those that were dealt with. How many were not known before. */
export async function acceptRestores(db: Queryable, by: { operator: string; note: string }): Promise<number> {
  return (await db.query(accept, [by.operator, by.note])).length;
}

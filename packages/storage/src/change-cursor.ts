import { createHash } from 'node:crypto';
import type { Queryable } from './database.ts';
import { statement } from './statement.ts';

/**
 * SQL that makes each row of `table` carry the transaction that last wrote it, in `changed_xid`. Ids of transactions are given out in
 * order but commit in any: `beginChanges` says from where on a reader has to look again.
 */
export function changedXidMigration(table: string): string {
  return `ALTER TABLE ${table} ADD COLUMN changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE TRIGGER ${table}_changed BEFORE INSERT OR UPDATE ON ${table} FOR EACH ROW EXECUTE FUNCTION note_change();
`;
}

/** SQL of the function behind the triggers, once per database. */
export const noteChangeMigration = `CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.changed_xid := pg_current_xact_id();
  RETURN NEW;
END $$;
`;

/**
 * Columns to select, without a FROM, of the snapshot that the statement runs in; `changeFeedOf` reads them. The database must have the fence
 * against restores: a copy of its files keeps cluster, timeline and database, and gives the same ids to other transactions.
 */
export const changeFeedColumns = `pg_snapshot_xmin(pg_current_snapshot())::text AS feed_horizon,
  pg_snapshot_xmax(pg_current_snapshot())::text AS feed_end,
  concat_ws('/', (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT oid FROM pg_database WHERE datname = current_database()), (SELECT incarnation FROM restore_fence)) AS feed_database`;

export interface ChangeFeedRow {
  readonly feed_horizon: string;
  readonly feed_end: string;
  readonly feed_database: string;
}

/** Where the changes of a database stand. */
export interface ChangeFeed {
  /** Every transaction with a lower id has ended: what it wrote can be seen. */
  readonly horizon: bigint;
  /** No transaction with this id or a higher one can be seen. */
  readonly end: bigint;
  /** Names cluster, timeline, database and incarnation; another one after a restore, a promotion or a dump that was read back. */
  readonly database: string;
}

/** A place in the order of changes: a transaction, and the row within what it wrote. */
export interface ChangePosition {
  readonly xid: bigint;
  /** `[A-Za-z0-9:._-]`, at most 200; compared by bytes (`COLLATE "C"`). Empty is before all rows of the transaction. */
  readonly key: string;
}

/** What one page of changes is read with. */
export interface ChangePage {
  /** The cursor is of no use: this page begins anew. */
  readonly reset: boolean;
  /** No change is known to the reader yet: what stands now is told, not what was. */
  readonly anew: boolean;
  /** Rows with `(changed_xid, key) > (after.xid, after.key)` are wanted, in this order. */
  readonly after: ChangePosition;
  /** Rows with `changed_xid < before` are wanted: none is above, unless it was written by another cluster. */
  readonly before: bigint;
  readonly feed: ChangeFeed;
  /** From where the walk after this one begins. */
  readonly next: bigint;
}

/** The text is no cursor that this code ever gave out. */
export class ChangeCursorMalformed extends Error {
  constructor() {
    super('not a cursor of changes');
    this.name = 'ChangeCursorMalformed';
  }
}

const readFeed = statement('read_change_feed', `SELECT ${changeFeedColumns}`);

/** Read it before the rows, or in the same statement: a horizon of later would leave out what was committed in between. */
export async function readChangeFeed(db: Queryable): Promise<ChangeFeed> {
  const [row] = await db.query<ChangeFeedRow>(readFeed, []);
  if (!row) throw new Error('no snapshot');
  return changeFeedOf(row);
}

export function changeFeedOf(row: ChangeFeedRow): ChangeFeed {
  return {
    horizon: BigInt(row.feed_horizon),
    end: BigInt(row.feed_end),
    database: createHash('sha256').update(row.feed_database).digest('base64url').slice(0, 12),
  };
}

interface Cursor {
  readonly database: string;
  readonly givenAt: number;
  readonly next: bigint;
  readonly anew: boolean;
  readonly after: ChangePosition;
}

const form = /^1 ([A-Za-z0-9_-]{12}) (\d{1,16}) (\d{1,20}) ([01]) (\d{1,20}) ([A-Za-z0-9:._-]{0,200})$/;
const xidMost = 2n ** 64n - 1n;

/** A cursor of changes, read; undefined for the empty one. Throws ChangeCursorMalformed. */
function readCursor(text: string): Cursor | undefined {
  if (text === '') return undefined;
  const [, database = '', givenAt, next = '', anew, xid = '', key = ''] =
    form.exec(Buffer.from(text, 'base64url').toString()) ?? [];
  const cursor = { database, givenAt: Number(givenAt), next: BigInt(next), anew: anew === '1' };
  const after = { xid: BigInt(xid), key };
  if (database === '' || cursor.next > xidMost || after.xid > xidMost) throw new ChangeCursorMalformed();
  return { ...cursor, after };
}

/** Where the page of a cursor begins if it is usable, before anything was read. Throws ChangeCursorMalformed. */
export function changesAfter(cursorText: string): ChangePosition {
  return readCursor(cursorText)?.after ?? { xid: 0n, key: '' };
}

/**
 * The page that a cursor asks for, `''` for the first one. A cursor of another database, of the future (the database was restored) or older than
 * `keptMs` begins anew. Throws ChangeCursorMalformed.
 *
 * A walk ends with a page that is not full; its last cursor goes on from the horizon of its first page, so that whatever was on its way
 * then is told after it was committed, however long that took. Rows above the horizon come again: changes tell where something stands.
 */
export function beginChanges(
  cursorText: string,
  feed: ChangeFeed,
  { keptMs }: { readonly keptMs?: number } = {},
): ChangePage {
  const cursor = readCursor(cursorText);
  const usable =
    cursor !== undefined &&
    cursor.database === feed.database &&
    cursor.next <= feed.horizon &&
    (keptMs === undefined || Date.now() - cursor.givenAt < keptMs);
  if (!usable)
    return {
      reset: cursor !== undefined,
      anew: true,
      after: { xid: 0n, key: '' },
      before: xidMost,
      feed,
      next: feed.horizon,
    };
  const { anew, after } = cursor;
  const within = after.key !== '';
  return {
    reset: false,
    anew,
    after,
    before: anew ? xidMost : feed.end,
    feed,
    next: within ? cursor.next : feed.horizon,
  };
}

/** The cursor behind a page: after its last row when there is more, else where the next walk begins. */
export function endChanges(page: ChangePage, last: ChangePosition | undefined): string {
  const after = last ?? { xid: page.next, key: '' };
  const anew = last !== undefined && page.anew ? '1' : '0';
  const text = `1 ${page.feed.database} ${Date.now()} ${page.next} ${anew} ${after.xid} ${after.key}`;
  return Buffer.from(text).toString('base64url');
}

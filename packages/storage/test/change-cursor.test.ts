import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  beginChanges,
  ChangeCursorMalformed,
  type ChangePage,
  changedXidMigration,
  type Database,
  endChanges,
  noteChangeMigration,
  readChangeFeed,
  restoreFenceMigration,
  statement,
} from '../src/index.ts';
import { startTestPostgres, type TestPostgres, undisturbed } from './own-database.ts';

const rowsOf = statement(
  'test_changes',
  `SELECT id, changed_xid::text AS xid FROM things
   WHERE (changed_xid, id COLLATE "C") > ($1::text::xid8, $2) AND changed_xid < $3::text::xid8
   ORDER BY changed_xid, id COLLATE "C" LIMIT $4`,
);

let postgres: TestPostgres;
let db: Database;
beforeAll(async () => {
  postgres = await startTestPostgres(undisturbed);
  db = await openThings();
}, 60_000);
afterAll(() => postgres?.stop());

function openThings(): Promise<Database> {
  return postgres.openDatabase(
    `CREATE TABLE things (id text PRIMARY KEY, value integer NOT NULL);
     ${noteChangeMigration} ${changedXidMigration('things')} ${restoreFenceMigration}`,
  );
}

interface Page {
  readonly ids: string[];
  readonly next: string;
  readonly more: boolean;
  readonly reset: boolean;
}

async function readPage(cursor: string, limit = 100, from = db, keptMs?: number): Promise<Page> {
  const page: ChangePage = beginChanges(cursor, await readChangeFeed(from), keptMs === undefined ? {} : { keptMs });
  const { after, before } = page;
  const found = await from.query<{ id: string; xid: string }>(rowsOf, [
    String(after.xid),
    after.key,
    String(before),
    limit + 1,
  ]);
  const shown = found.slice(0, limit);
  const more = found.length > limit;
  const last = shown.at(-1);
  const next = endChanges(page, more && last ? { xid: BigInt(last.xid), key: last.id } : undefined);
  return { ids: shown.map(({ id }) => id), next, more, reset: page.reset };
}

async function walk(cursor: string, limit: number): Promise<{ ids: string[]; next: string }> {
  const ids: string[] = [];
  for (let next = cursor; ; ) {
    const page = await readPage(next, limit);
    ids.push(...page.ids);
    next = page.next;
    if (!page.more) return { ids, next };
  }
}

async function writer() {
  const client = await db.pool.connect();
  await client.query('BEGIN');
  return {
    write: (id: string) =>
      client.query('INSERT INTO things VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET value = things.value + 1', [id]),
    async end(how: 'COMMIT' | 'ROLLBACK' = 'COMMIT') {
      await client.query(how);
      client.release();
    },
  };
}

describe('changes', () => {
  it('of a transaction that commits late are told, though later ones were read before', async () => {
    const { next: start } = await walk('', 100);
    const [early, late] = [await writer(), await writer()];
    await early.write('early');
    await late.write('late');
    await late.end();
    const between = await readPage(start);
    expect(between.ids).toEqual(['late']);
    await early.end();
    const after = await readPage(between.next);
    expect(after.ids).toEqual(['early', 'late']);
    expect((await readPage(after.next)).ids).toEqual([]);
  });

  it('of a transaction that commits between two pages of one walk are told by the next walk', async () => {
    const { next: start } = await walk('', 100);
    const early = await writer();
    await early.write('overtaken');
    for (const id of ['a', 'b', 'c']) await db.pool.query('INSERT INTO things VALUES ($1, 1)', [id]);
    const first = await readPage(start, 2);
    expect(first).toMatchObject({ ids: ['a', 'b'], more: true });
    await early.end();
    const second = await readPage(first.next, 2);
    expect(second).toMatchObject({ ids: ['c'], more: false });
    expect((await readPage(second.next)).ids).toContain('overtaken');
  });

  it('are none while nothing changes, and never of what was rolled back', async () => {
    const { next } = await walk('', 100);
    const undone = await writer();
    await undone.write('undone');
    await undone.end('ROLLBACK');
    const page = await readPage(next);
    expect(page.ids).toEqual([]);
    expect((await readPage(page.next)).ids).toEqual([]);
  });

  it('are told of writers that overlap in any order, at any page size', async () => {
    const step = fc.record({ writer: fc.nat(3), act: fc.constantFrom('write', 'write', 'commit', 'read' as const) });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), fc.integer({ min: 1, max: 4 }), async (steps, limit) => {
        let { next } = await walk('', 100);
        let writes = 0;
        const open = new Map<number, { id: string[]; by: Awaited<ReturnType<typeof writer>> }>();
        const committed = new Set<string>();
        const told = new Set<string>();
        const read = async () => {
          const walked = await walk(next, limit);
          next = walked.next;
          for (const id of walked.ids) told.add(id);
        };
        const commit = async (number: number) => {
          const one = open.get(number);
          if (!one) return;
          open.delete(number);
          await one.by.end();
          for (const id of one.id) committed.add(id);
        };
        for (const { writer: number, act } of steps) {
          if (act === 'read') await read();
          else if (act === 'commit') await commit(number);
          else {
            const one = open.get(number) ?? { id: [], by: await writer() };
            open.set(number, one);
            const id = `w${writes++}`;
            await one.by.write(id);
            one.id.push(id);
          }
        }
        for (const number of [...open.keys()]) await commit(number);
        await read();
        expect([...committed].filter((id) => !told.has(id))).toEqual([]);
      }),
      { numRuns: 60 },
    );
  });
});

describe('a cursor', () => {
  it('of another database, of the future, or older than what is kept begins anew', async () => {
    const { next } = await walk('', 100);
    const other = await openThings();
    await other.pool.query("INSERT INTO things VALUES ('there', 1)");
    expect(await readPage(next, 100, other)).toMatchObject({ reset: true, ids: ['there'] });
    expect(await readPage(next, 100, db, 0)).toMatchObject({ reset: true });
    expect(await readPage(next, 100, db, 60_000)).toMatchObject({ reset: false });
    const feed = await readChangeFeed(db);
    const ofTheFuture = endChanges(beginChanges('', { ...feed, horizon: feed.horizon + 1_000_000n }), undefined);
    expect(await readPage(ofTheFuture)).toMatchObject({ reset: true });
  });

  it('of before a restore begins anew, also when the transactions since then have come past it', async () => {
    const restored = await openThings();
    const feed = await readChangeFeed(restored);
    // Of a history that had come further before its files were put back; only the incarnation then tells the two apart.
    const gone = endChanges(beginChanges('', { ...feed, horizon: feed.horizon + 2n }), undefined);
    await restored.pool.query("INSERT INTO things VALUES ('by a transaction id that was used before', 1)");
    await restored.pool.query(`UPDATE restore_fence SET closed = true;
      INSERT INTO database_restores (incarnation, ended_incarnation, because, found_place, position_found, position_expected)
        SELECT gen_random_uuid(), incarnation, 'a test', place, 0, 1 FROM restore_fence;
      UPDATE restore_fence SET closed = false, incarnation = (SELECT incarnation FROM database_restores)`);
    await restored.pool.query("INSERT INTO things VALUES ('later', 1)");
    expect((await readChangeFeed(restored)).horizon).toBeGreaterThan(feed.horizon + 2n);
    const read = await readPage(gone, 100, restored);
    expect(read).toMatchObject({ reset: true, ids: ['by a transaction id that was used before', 'later'] });
    expect(await readPage(read.next, 100, restored)).toMatchObject({ reset: false, ids: [] });
  });

  it('that was never given out is refused as such, whatever it is', async () => {
    const feed = await readChangeFeed(db);
    fc.assert(
      fc.property(fc.oneof(fc.string({ minLength: 1 }), fc.base64String({ minLength: 4 })), (text) => {
        expect(() => beginChanges(text, feed)).toThrow(ChangeCursorMalformed);
      }),
    );
    const big = Buffer.from(`1 aaaaaaaaaaaa 1 ${'9'.repeat(20)} 0 1 `).toString('base64url');
    expect(() => beginChanges(big, feed)).toThrow(ChangeCursorMalformed);
  });
});

import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Database, isLockTimeout, isUniqueViolation, statement } from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

let postgres: TestPostgres;
let db: Database;
beforeAll(async () => {
  postgres = await startTestPostgres();
  db = await postgres.openDatabase(
    'CREATE TABLE tickets (id bigint PRIMARY KEY, taken boolean NOT NULL DEFAULT false)',
  );
}, 60_000);
afterAll(() => postgres?.stop());

const add = statement('test_ticket_add', 'INSERT INTO tickets (id) VALUES ($1) RETURNING id');
const exists = statement('test_ticket_exists', 'SELECT id FROM tickets WHERE id = $1');
const backend = statement('test_ticket_backend', 'SELECT pg_backend_pid() AS pid');
const end = statement('test_ticket_end', 'SELECT pg_terminate_backend($1::integer)');

test('many statements at once share a few connections, and each gets its own rows or its own error', async () => {
  await db.query(add, [7]);
  const answers = await Promise.allSettled(
    Array.from({ length: 200 }, (_, i) => db.pipelined.query<{ id: bigint }>(add, [i])),
  );
  for (const [i, answer] of answers.entries()) {
    if (i === 7) expect(answer.status === 'rejected' && isUniqueViolation(answer.reason, 'tickets_pkey')).toBe(true);
    else expect(answer).toEqual({ status: 'fulfilled', value: [{ id: BigInt(i) }] });
  }
  const pids = await Promise.all(Array.from({ length: 50 }, () => db.pipelined.query<{ pid: number }>(backend, [])));
  expect(new Set(pids.map(([row]) => row?.pid)).size).toBe(4);
});

test('each is committed by itself: one that fails takes no other back', async () => {
  const answers = await Promise.allSettled(
    [1_000, 1_000, 1_001, 1_001, 1_002].map((id) => db.pipelined.query(add, [id])),
  );
  expect(answers.map(({ status }) => status).toSorted()).toEqual([
    ...['fulfilled', 'fulfilled', 'fulfilled', 'rejected', 'rejected'],
  ]);
  for (const id of [1_000, 1_001, 1_002]) expect(await db.query(exists, [id])).toEqual([{ id: BigInt(id) }]);
});

test('one that waits for a lock fails as that, does nothing, and those behind it go on', async () => {
  await db.transaction(async (tx) => {
    await tx.query(add, [2_000]);
    const waits = Array.from({ length: 4 }, () => db.pipelined.query(add, [2_000]).catch((error: unknown) => error));
    const behind = Array.from({ length: 12 }, (_, i) => db.pipelined.query<{ id: bigint }>(add, [2_001 + i]));
    expect((await Promise.all(behind)).flat().map(({ id }) => Number(id))).toEqual(
      Array.from({ length: 12 }, (_, i) => 2_001 + i),
    );
    for (const error of await Promise.all(waits)) expect(isLockTimeout(error)).toBe(true);
  });
  expect(await db.query(exists, [2_000])).toEqual([{ id: 2_000n }]);
});

test('a connection that the server ends is replaced', async () => {
  const [before] = await db.pipelined.query<{ pid: number }>(backend, []);
  await db.query(end, [before?.pid]);
  const answers = async () =>
    (
      await Promise.allSettled(Array.from({ length: 8 }, () => db.pipelined.query<{ pid: number }>(backend, [])))
    ).flatMap((answer) => (answer.status === 'fulfilled' ? answer.value.map(({ pid }) => pid) : []));
  await expect.poll(async () => new Set(await answers()).size).toBe(4);
  expect(await answers()).not.toContain(before?.pid);
});

import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  type Database,
  onceByRequestId,
  purgeRequestIds,
  RequestIdReused,
  requestIdsMigration,
  statement,
  type Transaction,
} from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

const work = statement('test_effect', 'INSERT INTO effects (request_id) VALUES ($1)');
const effects = statement('test_effects', 'SELECT count(*)::int AS count FROM effects WHERE request_id = $1');

let postgres: TestPostgres;
let db: Database;

beforeAll(async () => {
  postgres = await startTestPostgres();
  db = await postgres.openDatabase(`${requestIdsMigration} CREATE TABLE effects (request_id uuid NOT NULL);`, {
    connections: 20,
  });
}, 60_000);
afterAll(() => postgres?.stop());

const bytes = (text: string) => new TextEncoder().encode(text);

interface Ask {
  requestId: string;
  caller?: string;
  method?: string;
  content?: string;
  next?: (tx: Transaction) => Promise<void>;
}

function ask({ requestId, caller = 'ada/1', method = 'Rotate', content = 'content', next }: Ask) {
  return db.transaction((tx) =>
    onceByRequestId(tx, { caller, method, requestId, content: bytes(content) }, async () => {
      await tx.query(work, [requestId]);
      await next?.(tx);
      return bytes(`answer to ${content}`);
    }),
  );
}

async function effectsOf(requestId: string): Promise<number | undefined> {
  return (await db.query<{ count: number }>(effects, [requestId]))[0]?.count;
}

test('a repeated request gets the first answer and has no second effect', async () => {
  const requestId = randomUUID();
  expect((await ask({ requestId })).repeated).toBe(false);
  const again = await ask({ requestId: requestId.toUpperCase() });
  expect(again.repeated).toBe(true);
  expect(new TextDecoder().decode(again.response)).toBe('answer to content');
  expect(await effectsOf(requestId)).toBe(1);
});

test('fifteen concurrent requests with one id have one effect and one answer', async () => {
  const requestId = randomUUID();
  const answers = await Promise.all(Array.from({ length: 15 }, () => ask({ requestId })));
  expect(answers.filter(({ repeated }) => !repeated)).toHaveLength(1);
  expect(new Set(answers.map(({ response }) => Buffer.from(response).toString()))).toEqual(
    new Set(['answer to content']),
  );
  expect(await effectsOf(requestId)).toBe(1);
});

test('the same id with other content, or for another method, is refused', async () => {
  const requestId = randomUUID();
  await ask({ requestId });
  await expect(ask({ requestId, content: 'other' })).rejects.toThrow(RequestIdReused);
  await expect(ask({ requestId, method: 'Create' })).rejects.toThrow(RequestIdReused);
  expect(await effectsOf(requestId)).toBe(1);
});

test('another caller may use the same id', async () => {
  const requestId = randomUUID();
  await ask({ requestId });
  expect((await ask({ requestId, caller: 'bob/1', content: 'other' })).repeated).toBe(false);
});

test('work that fails leaves nothing, and the id can be used again', async () => {
  const requestId = randomUUID();
  const crash = async () => {
    throw new Error('crash before the commit');
  };
  await expect(ask({ requestId, next: crash })).rejects.toThrow('crash before the commit');
  expect(await effectsOf(requestId)).toBe(0);
  expect((await ask({ requestId, content: 'other' })).repeated).toBe(false);
});

test('who waited for work that failed does the work', async () => {
  const requestId = randomUUID();
  const reserved = Promise.withResolvers<void>();
  const crash = Promise.withResolvers<void>();
  const first = ask({
    requestId,
    next: async () => {
      reserved.resolve();
      await crash.promise;
    },
  });
  await reserved.promise;
  const second = ask({ requestId });
  crash.reject(new Error('crash'));
  await expect(first).rejects.toThrow('crash');
  expect((await second).repeated).toBe(false);
  expect(await effectsOf(requestId)).toBe(1);
});

test('ids are forgotten after the retention', async () => {
  const requestId = randomUUID();
  await ask({ requestId });
  expect(await purgeRequestIds(db)).toBe(0);
  await db.pool.query(`UPDATE request_ids SET created_at = now() - interval '8 days' WHERE request_id = $1`, [
    requestId,
  ]);
  expect(await purgeRequestIds(db)).toBe(1);
  expect((await ask({ requestId })).repeated).toBe(false);
});

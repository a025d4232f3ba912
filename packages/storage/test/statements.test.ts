import { inspect } from 'node:util';
import { withSpan } from '@keytrail/telemetry';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Database, isUniqueViolation, statement } from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';
import { receiveSpans, type SpanReceiver } from './received-spans.ts';

const lines: string[] = [];
let postgres: TestPostgres;
let spans: SpanReceiver;
let db: Database;

beforeAll(async () => {
  postgres = await startTestPostgres();
  spans = await receiveSpans('storage-test', { write: (line) => void lines.push(line) });
  db = await postgres.openDatabase('CREATE TABLE devices (id text PRIMARY KEY, version bigint NOT NULL)');
}, 60_000);

afterAll(async () => {
  await postgres?.stop();
  await spans?.stop();
});

const add = statement('test_device_add', 'INSERT INTO devices (id, version) VALUES ($1, $2) RETURNING version');

test('64-bit integers come back as bigint, bytes as bytes, times as Date', async () => {
  const kinds = statement(
    'test_kinds',
    `SELECT $1::bigint AS big, $2::bytea AS bytes, $3::timestamptz AS at, $4::bigint[] AS bigs, $5::bytea[] AS many,
       7::int AS small, NULL::bigint AS missing`,
  );
  const at = new Date('2026-01-02T03:04:05.678Z');
  const bytes = new Uint8Array([0, 1, 255]);
  const [row] = await db.query(kinds, [2n ** 62n, bytes, at, [1n, 9007199254740993n], [bytes, bytes]]);
  expect(row).toEqual({
    big: 2n ** 62n,
    bytes: Buffer.from(bytes),
    at,
    bigs: [1n, 9007199254740993n],
    many: [Buffer.from(bytes), Buffer.from(bytes)],
    small: 7,
    missing: null,
  });
});

test('other users of the driver in the process keep their own reading of 64-bit integers', async () => {
  const { default: pg } = await import('pg');
  expect(pg.types.getTypeParser(20)('1')).not.toBe(1n);
});

test('a name has one text in a process', () => {
  statement('test_once', 'SELECT 1');
  expect(() => statement('test_once', 'SELECT 2')).toThrow('two statements are named test_once');
  expect(() => statement('not a name', 'SELECT 1')).toThrow('not a statement name');
});

test('a statement is prepared under its name', async () => {
  await db.transaction(async (tx) => {
    await tx.query(add, ['prepared', 1n]);
    const prepared = statement('test_prepared', 'SELECT name FROM pg_prepared_statements ORDER BY name');
    const names = (await tx.query<{ name: string }>(prepared, [])).map(({ name }) => name);
    expect(names).toContain('test_device_add');
  });
});

test('a statement is a span that names it and holds no value, also when it fails', async () => {
  const secret = 'not-for-telemetry';
  await withSpan('request', {}, async () => {
    await db.query(add, [secret, 1n]);
    await expect(db.query(add, [secret, 1n])).rejects.toSatisfy((error) => isUniqueViolation(error, 'devices_pkey'));
    const cast = statement('test_cast', 'SELECT $1::text::uuid');
    await expect(db.query(cast, [secret])).rejects.toThrow();
  });
  const received = await spans.spans();
  const ours = received.filter(({ name }) => name === 'test_device_add');
  const attributes = ours.map((span) => Object.fromEntries(span.attributes.map(({ key, value }) => [key, value])));
  expect(attributes[0]).toMatchObject({
    'db.system.name': { stringValue: 'postgresql' },
    'db.operation.name': { stringValue: 'INSERT' },
    'db.query.summary': { stringValue: 'test_device_add' },
  });
  expect(ours.at(-1)?.status).toMatchObject({ code: 2, message: '23505' });
  expect(attributes.at(-1)).toMatchObject({ 'db.response.status_code': { stringValue: '23505' } });
  const request = received.find(({ name }) => name === 'request');
  expect(ours.at(-1)).toMatchObject({ traceId: request?.traceId, parentSpanId: request?.spanId });
  expect(spans.text()).toContain('test_cast');
  expect(spans.text()).not.toContain(secret);
});

test('a value in an error of PostgreSQL reaches no span and no log line, and not who catches the error', async () => {
  const canary = 'canary-4711';
  await db.pool.query('CREATE TABLE guarded (text text, n int CONSTRAINT small CHECK (n < 10))');
  const guarded = statement('test_guarded_add', 'INSERT INTO guarded (text, n) VALUES ($1, $2)');
  const { log } = spans.telemetry;
  const raw = await db.pool.query(guarded.text, [canary, 11]).catch((error: Error) => error);
  expect(inspect(raw)).toContain(canary);
  const adapter = await db.prismaAdapter().connect();
  const fails: (() => Promise<unknown>)[] = [
    () => db.query(guarded, [canary, 11]),
    () => db.query(statement('test_cast_int', 'SELECT $1::text::int'), [canary]),
    () => db.transaction((tx) => tx.query(guarded, [canary, 11])),
    () => db.transaction(async (tx) => tx.send(guarded, [canary, 11])),
  ];
  for (const fail of fails) {
    const error = await withSpan('fault', {}, fail).catch((thrown: Error) => thrown);
    log.error({ error }, 'a call ended in a fault');
    expect(error).toBeInstanceOf(pg.DatabaseError);
    expect(inspect(error)).not.toContain(canary);
  }
  const around = [
    () => db.pool.query(guarded.text, [canary, 11]),
    () => adapter.queryRaw({ sql: `SELECT '${canary}'::int`, args: [], argTypes: [] }),
  ];
  for (const fail of around) {
    const error = await withSpan('fault', {}, async (span) => {
      await fail().catch((thrown: Error) => {
        span.recordException(thrown);
        throw thrown;
      });
    }).catch((thrown: Error) => thrown);
    log.error({ error }, 'a call ended in a fault');
    log.error(error);
    log.error({ nested: { err: error } }, 'failed with %s', error);
  }
  await spans.spans();
  const told = spans.text() + lines.join('');
  expect(told).toContain('SQLSTATE 23514, statement test_guarded_add, constraint small, table guarded');
  expect(lines.filter((line) => line.includes('SQLSTATE 23514'))).not.toEqual([]);
  expect(told).not.toContain(canary);
});

test('a statement that no span asked for is no trace of its own', async () => {
  const alone = statement('test_alone', 'SELECT 1');
  await db.query(alone, []);
  await withSpan('request', {}, () => db.query(statement('test_asked_for', 'SELECT 1'), []));
  const names = (await spans.spans()).map(({ name }) => name);
  expect(names).toContain('test_asked_for');
  expect(names).not.toContain('test_alone');
});

test('Prisma reads over the same pool', async () => {
  const adapter = await db.prismaAdapter().connect();
  const { rows } = await adapter.queryRaw({ sql: 'SELECT 5::bigint AS five', args: [], argTypes: [] });
  expect(rows).toEqual([['5']]);
});

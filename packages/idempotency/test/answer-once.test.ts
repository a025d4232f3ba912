import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { ConversationService, SendMessageRequestSchema, SendMessageResponseSchema } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import { type Database, requestIdsMigration, statement, type Transaction } from '@keytrail/storage';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startTestPostgres, type TestPostgres } from '../../storage/test/own-database.ts';
import { answerOnce, askedRequest, earlierAnswer, orAnswerMeanwhile } from '../src/index.ts';

const draw = statement('test_draw', "SELECT nextval('sequences') AS sequence");

let postgres: TestPostgres;
let db: Database;

beforeAll(async () => {
  postgres = await startTestPostgres();
  db = await postgres.openDatabase(`${requestIdsMigration} CREATE SEQUENCE sequences;`);
}, 60_000);
afterAll(() => postgres?.stop());

function asked(requestId: string, { caller = 'ada', counter = 1n } = {}) {
  const request = create(SendMessageRequestSchema, { requestId, senderCounter: counter });
  return askedRequest(ConversationService.method.sendMessage, request, caller);
}

async function send(tx: Transaction) {
  const [drawn] = await tx.query<{ sequence: bigint }>(draw, []);
  return create(SendMessageResponseSchema, { sequence: drawn?.sequence ?? 0n });
}

async function reasonOf(answer: Promise<unknown>): Promise<string> {
  return readRefusal(
    await answer.then(
      () => undefined,
      (error: unknown) => error,
    ),
  ).reason;
}

test('a repetition gets the first answer, and is told apart', async () => {
  const requestId = randomUUID();
  const first = await answerOnce(db, asked(requestId), send);
  expect(first.repeated).toBe(false);
  expect(first.response.sequence).toBeGreaterThan(0n);
  expect(await answerOnce(db, asked(requestId), send)).toEqual({ response: first.response, repeated: true });
});

test('the request id of another caller is another one', async () => {
  const requestId = randomUUID();
  const first = await answerOnce(db, asked(requestId), send);
  const second = await answerOnce(db, asked(requestId, { caller: 'bob' }), send);
  expect(second.repeated).toBe(false);
  expect(second.response.sequence).not.toBe(first.response.sequence);
});

test('an earlier answer is found without doing the work, and leaves an unknown request id free', async () => {
  const requestId = randomUUID();
  expect(await earlierAnswer(db, asked(requestId))).toBeUndefined();
  const { response, repeated } = await answerOnce(db, asked(requestId), send);
  expect(repeated).toBe(false);
  expect(await earlierAnswer(db, asked(requestId))).toEqual(response);
});

test('other content under a used request id is refused, also where an earlier answer is looked for', async () => {
  const requestId = randomUUID();
  await answerOnce(db, asked(requestId), send);
  const other = asked(requestId, { counter: 2n });
  expect(await reasonOf(answerOnce(db, other, send))).toBe('REQUEST_ID_REUSED');
  expect(await reasonOf(earlierAnswer(db, other))).toBe('REQUEST_ID_REUSED');
});

test('work that fails is not remembered: the request may be asked again under its id', async () => {
  const requestId = randomUUID();
  const failing = answerOnce(db, asked(requestId), async (tx) => {
    await send(tx);
    throw new Error('the work failed');
  });
  await expect(failing).rejects.toThrow('the work failed');
  expect(await earlierAnswer(db, asked(requestId))).toBeUndefined();
  expect((await answerOnce(db, asked(requestId), send)).repeated).toBe(false);
});

test('a refusal gives way to the answer that another try of the same request got meanwhile, and stands without one', async () => {
  const requestId = randomUUID();
  const moved = () => Promise.reject(new Error('the epoch has moved'));
  await expect(orAnswerMeanwhile(db, asked(requestId), moved)).rejects.toThrow('the epoch has moved');
  const first = await answerOnce(db, asked(requestId), send);
  expect(await orAnswerMeanwhile(db, asked(requestId), moved)).toEqual(first.response);
});

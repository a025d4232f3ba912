import { randomUUID } from 'node:crypto';
import { create, toBinary, toJsonString } from '@bufbuild/protobuf';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import { type Client, createClient } from '@connectrpc/connect';
import { createServiceIdentity } from '@keytrail/auth';
import { DiagnosticsService, ListDeadLettersResponseSchema } from '@keytrail/contracts';
import { consumers, deviceListChanged } from '@keytrail/events';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
let operator: Client<typeof DiagnosticsService>;
const closing: (() => void)[] = [];
beforeAll(async () => {
  world = await startWorld({}, { sweep: false });
  const token = await world.operatorToken();
  operator = as(`Bearer ${token}`);
}, 60_000);
afterAll(async () => {
  for (const close of closing) close();
  await world?.stop();
});

function as(authorization: string): Client<typeof DiagnosticsService> {
  const transport = createGrpcTransport({ target: world.target, authorization: () => authorization });
  closing.push(() => transport.close());
  return createClient(DiagnosticsService, transport);
}

const consumer = consumers.sessionDevices.name;
const traceId = '0af7651916cd43dd8448eb211c80319c';

/** An event that the consumer of revocations gave up, as it is kept. */
async function bury(userId: string, { payload, name = consumer }: { payload?: Uint8Array; name?: string } = {}) {
  const eventId = randomUUID();
  const { message, subject } = deviceListChanged;
  const revoked = create(message, { userId, deviceId: 'phone', revoked: true, changedAt: timestampNow() });
  const { rows } = await world.sql.query<{ id: string }>(
    `INSERT INTO dead_letters (consumer, subject, event_id, payload, traceparent, reason) VALUES ($1, $2, $3, $4, $5, 'Error: boom') RETURNING id`,
    [name, subject, eventId, payload ?? toBinary(message, revoked), `00-${traceId}-b7ad6b7169203331-01`],
  );
  return { deadLetterId: BigInt(rows[0]?.id ?? 0), eventId };
}

const count = async (table: string, column: string, value: unknown) =>
  (await world.sql.query(`SELECT count(*)::int AS n FROM ${table} WHERE ${column} = $1`, [value])).rows[0].n;

async function auditOf(deadLetterId: bigint) {
  const { rows } = await world.sql.query(
    `SELECT operator, action, note, outcome FROM audit_log WHERE action = 'replay_dead_letter' AND note LIKE $1 ORDER BY number`,
    [`dead letter ${deadLetterId}%`],
  );
  return rows;
}

describe('dead letters', () => {
  it('are listed oldest first, page by page, by consumer, without what is in them', async () => {
    const { userId } = createPerson('listed');
    const letters = [await bury(userId), await bury(userId), await bury(userId, { name: 'session-other' })];
    const seen: bigint[] = [];
    let token = '';
    do {
      const page = await operator.listDeadLetters({ consumer, page: { size: 1, token } });
      seen.push(...page.deadLetters.map(({ deadLetterId }) => deadLetterId));
      token = page.nextToken;
    } while (token !== '');
    expect(seen).toEqual(letters.slice(0, 2).map(({ deadLetterId }) => deadLetterId));
    const all = await operator.listDeadLetters({});
    expect(all.deadLetters).toMatchObject(
      letters.map(({ eventId }) => ({
        eventId,
        subject: deviceListChanged.subject,
        reason: 'Error: boom',
        traceId,
        payloadBytes: expect.any(Number),
        givenUpAt: expect.anything(),
      })),
    );
    expect(toJsonString(ListDeadLettersResponseSchema, all)).not.toContain(userId);
    expect((await refusalOf(operator.listDeadLetters({ page: { token: 'nonsense' } }))).reason).toBe('INVALID_FIELD');
    const { rows } = await world.sql.query(`SELECT outcome FROM audit_log WHERE action = 'list_dead_letters'`);
    expect(rows.map(({ outcome }) => outcome)).toEqual(['done', 'done', 'done', 'INVALID_FIELD']);
    await world.sql.query('DELETE FROM dead_letters');
  });

  it('are handled once more when an operator has them replayed, and are gone then', async () => {
    const { userId } = createPerson('revoked');
    const { deadLetterId, eventId } = await bury(userId);
    const tries = await Promise.allSettled([1, 2, 3].map(() => operator.replayDeadLetter({ deadLetterId })));
    expect(tries.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))).toMatchObject([
      { handled: true, problem: '' },
    ]);
    for (const one of tries)
      if (one.status === 'rejected')
        expect((await refusalOf(Promise.reject(one.reason))).reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    expect(await count('revoked_devices', 'user_id', userId)).toBe(1);
    expect(await count('dead_letters', 'id', String(deadLetterId))).toBe(0);
    expect(await count('inbox', 'event_id', eventId)).toBe(1);
    const audit = await auditOf(deadLetterId);
    expect(audit.filter(({ outcome }) => outcome === 'done')).toMatchObject([
      { operator: 'ops', note: expect.stringContaining(eventId) },
    ]);
    expect(audit.filter(({ outcome }) => outcome === 'NOT_FOUND_OR_NOT_PERMITTED')).toHaveLength(2);
  });

  it('whose event was handled meanwhile have no effect a second time', async () => {
    const { userId } = createPerson('handled');
    const { deadLetterId, eventId } = await bury(userId);
    await world.sql.query('INSERT INTO inbox (consumer, event_id) VALUES ($1, $2)', [consumer, eventId]);
    expect(await operator.replayDeadLetter({ deadLetterId })).toMatchObject({ handled: true });
    expect(await count('revoked_devices', 'user_id', userId)).toBe(0);
    expect(await count('dead_letters', 'id', String(deadLetterId))).toBe(0);
  });

  it('stay as they are when they cannot be handled, with the problem told', async () => {
    const { userId } = createPerson('stays');
    const broken = await bury(userId, { payload: Uint8Array.of(0xff, 0xff) });
    const answer = await operator.replayDeadLetter({ deadLetterId: broken.deadLetterId });
    expect(answer).toMatchObject({ handled: false, problem: expect.stringMatching(/^UnknownEvent: the bytes on/) });
    const nobodys = await bury(userId, { name: 'session-other' });
    expect(await operator.replayDeadLetter({ deadLetterId: nobodys.deadLetterId })).toMatchObject({
      handled: false,
      problem: 'no consumer session-other runs in this process',
    });
    await world.sql.query('ALTER TABLE revoked_devices ADD CONSTRAINT full_now CHECK (false) NOT VALID');
    const refused = await bury(userId);
    try {
      expect(await operator.replayDeadLetter({ deadLetterId: refused.deadLetterId })).toMatchObject({
        handled: false,
        problem: expect.stringContaining('full_now'),
      });
    } finally {
      await world.sql.query('ALTER TABLE revoked_devices DROP CONSTRAINT full_now');
    }
    for (const { deadLetterId, eventId } of [broken, nobodys, refused]) {
      expect(await count('dead_letters', 'id', String(deadLetterId))).toBe(1);
      expect(await count('inbox', 'event_id', eventId)).toBe(0);
      expect(await auditOf(deadLetterId)).toMatchObject([{ note: expect.stringContaining('could not be handled') }]);
    }
    expect(await operator.replayDeadLetter({ deadLetterId: refused.deadLetterId })).toMatchObject({ handled: true });
    expect(await count('revoked_devices', 'user_id', userId)).toBe(1);
  });

  it('are for operators alone', async () => {
    const { deadLetterId } = await bury(createPerson('nobody').userId);
    const device = createPerson('mallory').addDevice();
    for (const authorization of [await world.bearer(device), createServiceIdentity(world.config, 'presence').header()])
      for (const call of [
        () => as(authorization).listDeadLetters({}),
        () => as(authorization).replayDeadLetter({ deadLetterId }),
      ])
        expect((await refusalOf(call())).reason).toBe('CALLER_NOT_ALLOWED');
    expect((await refusalOf(operator.replayDeadLetter({ deadLetterId: 0n }))).reason).toBe('INVALID_FIELD');
    expect(await count('dead_letters', 'id', String(deadLetterId))).toBe(1);
  });
});

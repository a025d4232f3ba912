import { randomUUID } from 'node:crypto';
import { toJsonString } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { createServiceIdentity } from '@keytrail/auth';
import { FindSessionsResponseSchema, KeyRequestKind, SessionOperatorService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, makeSession, reseal } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 60_000);
afterAll(() => world?.stop());

/** Two epochs of Alice and Bob; Bob has two devices, and the second one was withheld the second session. */
async function twoEpochs(of: World = world) {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const [initiator, phone] = [alice.addDevice(), bob.addDevice()];
  const first = makeSession({ initiator, covered: [initiator, phone] });
  const { conversationId } = first.session;
  const second = makeSession({
    initiator,
    covered: [initiator, phone],
    conversationId,
    epoch: 2n,
  });
  for (const made of [first, second]) {
    await of.store(made);
    of.peers.commit(made, [alice, bob]);
  }
  return { alice, bob, initiator, phone, first, second, conversationId };
}

async function auditOf(conversationId: string) {
  const { rows } = await world.sql.query(
    `SELECT operator, action, note, outcome FROM audit_log WHERE conversation_id = $1 ORDER BY number`,
    [conversationId],
  );
  return rows;
}

describe('an operator', () => {
  it('sees the sessions of a conversation, newest epoch first, with what is there of each', async () => {
    const { alice, initiator, first, second, conversationId } = await twoEpochs();
    const late = alice.addDevice();
    world.peers.attach(initiator);
    const { sessionId } = first.session;
    const { keyRequest } = await world
      .as(late)
      .requestKey({ requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING });
    expect((await world.operator.findSessions({ conversationId, sessionId })).sessions).toMatchObject([
      { requestsOpen: 1, envelopesDelivered: 0 },
    ]);
    const envelope = reseal(first, initiator, late, 1);
    await world.as(initiator).fulfillKeyRequest({
      requestId: randomUUID(),
      keyRequestId: keyRequest?.keyRequestId ?? '',
      attempt: 1,
      envelope,
    });
    const { sessions, nextToken } = await world.operator.findSessions({ conversationId });
    expect(sessions.map((session) => session.sessionId)).toEqual([second.session.sessionId, sessionId]);
    expect(sessions[1]).toMatchObject({
      conversationId,
      epoch: 1n,
      initiator: { userId: initiator.userId, deviceId: initiator.deviceId },
      imported: false,
      ephemeralKeyPresent: true,
      identityKeyPresent: true,
      headerPresent: true,
      envelopesExpected: 2,
      envelopesPresent: 2,
      envelopesDelivered: 1,
      envelopesMissing: 0,
      envelopesErased: 0,
      requestsOpen: 0,
      rosterVersion: 1n,
      writerBuild: expect.stringMatching(/./),
      traceId: expect.stringMatching(/^[0-9a-f]{32}$/),
      damages: [],
    });
    expect(sessions[1]?.createdAt).toBeDefined();
    expect(sessions[1]?.discardedAt).toBeUndefined();
    expect(nextToken).toBe('');
    expect(await auditOf(conversationId)).toMatchObject([
      { operator: 'ops', action: 'find_sessions', note: sessionId, outcome: 'done' },
      { note: '', outcome: 'done' },
    ]);
  });

  it('turns pages, and finds what was discarded at the end of them', async () => {
    const { conversationId, first, second, initiator } = await twoEpochs();
    const lost = makeSession({ initiator, covered: [initiator], conversationId, epoch: 2n });
    await world.asConversation.discardSession({ conversationId, sessionId: lost.session.sessionId });
    const seen: string[] = [];
    let token = '';
    do {
      const page = await world.operator.findSessions({ conversationId, page: { size: 1, token } });
      expect(page.sessions).toHaveLength(1);
      seen.push(...page.sessions.map((session) => session.sessionId));
      token = page.nextToken;
    } while (token !== '');
    expect(seen).toEqual([second.session.sessionId, first.session.sessionId, lost.session.sessionId]);
    const [discarded] = (await world.operator.findSessions({ conversationId, sessionId: lost.session.sessionId }))
      .sessions;
    expect(discarded).toMatchObject({ epoch: 0n, damages: [], writerBuild: '' });
    expect(discarded?.discardedAt).toBeDefined();
    expect(discarded?.initiator).toBeUndefined();
  });

  it('is told nothing of a conversation without sessions, and gets typed refusals for bad input', async () => {
    const conversationId = randomUUID();
    expect(await world.operator.findSessions({ conversationId })).toMatchObject({ sessions: [], nextToken: '' });
    const bad: [string, () => Promise<unknown>][] = [
      ['conversation_id', () => world.operator.findSessions({ conversationId: 'c' })],
      ['session_id', () => world.operator.findSessions({ conversationId, sessionId: 'a b' })],
      ['page.token', () => world.operator.findSessions({ conversationId, page: { token: 'nonsense' } })],
    ];
    for (const [field, call] of bad) {
      const refusal = await refusalOf(call());
      expect(refusal.reason).toBe('INVALID_FIELD');
      expect([refusal.metadata.field, ...refusal.fields.map((problem) => problem.field)]).toContain(field);
    }
    expect(await auditOf(conversationId)).toMatchObject([{ outcome: 'done' }, { outcome: 'INVALID_FIELD' }]);
  });

  it('gets no key, whatever there is', async () => {
    const { conversationId } = await twoEpochs();
    const answer = toJsonString(FindSessionsResponseSchema, await world.operator.findSessions({ conversationId }));
    const { rows } = await world.sql.query<{ bytes: Buffer }>(
      `WITH s AS (SELECT * FROM sessions WHERE conversation_id = $1), e AS (SELECT * FROM envelopes WHERE conversation_id = $1)
       SELECT initiator_ephemeral_key AS bytes FROM s UNION ALL SELECT initiator_identity_key FROM s UNION ALL SELECT initiator_signing_key FROM s
       UNION ALL SELECT key_commitment FROM s UNION ALL SELECT header FROM s UNION ALL SELECT initiator_root_key FROM s
       UNION ALL SELECT ciphertext FROM e UNION ALL SELECT kem_ciphertext FROM e UNION ALL SELECT sealer_ephemeral_key FROM e
       UNION ALL SELECT signature FROM e`,
      [conversationId],
    );
    expect(rows.length).toBeGreaterThan(20);
    for (const { bytes } of rows)
      for (const text of [bytes.toString('hex').slice(0, 40), bytes.toString('base64').slice(0, 40)])
        expect(answer).not.toContain(text);
  });
});

describe('who may find sessions', () => {
  it('is an operator: no device, also of a member, and no service', async () => {
    const { initiator, conversationId } = await twoEpochs();
    const as = (authorization: string) => {
      const transport = createGrpcTransport({ target: world.target, authorization: () => authorization });
      return { client: createClient(SessionOperatorService, transport), close: () => transport.close() };
    };
    for (const service of ['conversation', 'presence', 'identity-keys'] as const) {
      const { client, close } = as(createServiceIdentity(world.config, service).header());
      expect(await refusalOf(client.findSessions({ conversationId }))).toMatchObject({
        reason: 'CALLER_NOT_ALLOWED',
        metadata: { caller: service },
      });
      close();
    }
    const { client, close } = as(await world.bearer(initiator));
    expect(await refusalOf(client.findSessions({ conversationId }))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
    close();
    expect(await auditOf(conversationId)).toEqual([]);
  });
});

describe('damaged rows', () => {
  let damaged: World;
  beforeAll(async () => {
    damaged = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
  }, 60_000);
  afterAll(() => damaged?.stop());

  it('are told with what is missing, where somebody dropped the constraints', async () => {
    const { conversationId, first, second, phone } = await twoEpochs(damaged);
    for (const change of [
      'ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete',
      'ALTER TABLE sessions DISABLE TRIGGER USER',
      'ALTER TABLE envelopes DISABLE TRIGGER USER',
      'ALTER TABLE sessions ALTER COLUMN epoch DROP NOT NULL',
    ])
      await damaged.sql.query(change);
    await damaged.sql.query(
      'UPDATE sessions SET initiator_ephemeral_key = NULL, initiator_identity_key = NULL WHERE session_id = $1',
      [second.session.sessionId],
    );
    await damaged.sql.query('DELETE FROM envelopes WHERE session_id = $1 AND user_id = $2', [
      first.session.sessionId,
      phone.userId,
    ]);
    await damaged.sql.query(`UPDATE sessions SET header = '\\x00' WHERE session_id = $1`, [first.session.sessionId]);
    const { sessions } = await damaged.operator.findSessions({ conversationId });
    expect(sessions).toMatchObject([
      {
        epoch: 2n,
        ephemeralKeyPresent: false,
        identityKeyPresent: false,
        headerPresent: true,
        envelopesMissing: 0,
        damages: ['ephemeral key missing', 'identity key of the initiator missing'],
      },
      {
        epoch: 1n,
        ephemeralKeyPresent: true,
        rosterVersion: 0n,
        envelopesPresent: 1,
        envelopesExpected: 2,
        envelopesMissing: 1,
        damages: ['1 of 2 envelopes missing'],
      },
    ]);
    await damaged.sql.query('UPDATE sessions SET epoch = NULL, header = NULL WHERE session_id = $1', [
      second.session.sessionId,
    ]);
    expect((await damaged.operator.findSessions({ conversationId })).sessions.at(-1)).toMatchObject({
      sessionId: second.session.sessionId,
      epoch: 0n,
      headerPresent: false,
      damages: expect.arrayContaining(['header missing', 'epoch missing']),
    });
  });
});

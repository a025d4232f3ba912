import { create } from '@bufbuild/protobuf';
import { EnvelopeSchema, RosterDeviceSchema, StoreSessionRequestSchema } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, makeSession } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld();
}, 60_000);
afterAll(() => world.stop());

function twoPeople() {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  return { alice, bob, initiator: alice.addDevice(), other: bob.addDevice() };
}

describe('a session', () => {
  it('is stored whole, and says what was written against what was expected', async () => {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    expect(await world.asConversation.storeSession(made.request)).toMatchObject({
      envelopesWritten: 2,
      envelopesExpected: 2,
      alreadyStored: false,
    });
    const read = await world.as(other).getInitialSession(made.session);
    expect(read.signedHeader).toEqual(made.request.session?.signedHeader);
    expect(read.envelope).toEqual(made.request.session?.envelopes[1]);
    expect(read.initiatorEphemeralKey).toEqual(made.session.header.initiatorEphemeralKey);
    expect(read.initiatorCertificate).toEqual(made.request.session?.initiatorCertificate);
  });

  it('is the same session when it comes again, also after the roster has changed', async () => {
    const { initiator, other, bob } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    await world.store(made);
    const later = bob.addDevice();
    const again = create(StoreSessionRequestSchema, {
      ...made.request,
      rosterDevices: [
        ...made.request.rosterDevices,
        create(RosterDeviceSchema, {
          device: { userId: later.userId, deviceId: later.deviceId },
          identityKey: later.identityKey.publicKey,
          signingKey: later.signingKey.publicKey,
        }),
      ],
    });
    expect(await world.asConversation.storeSession(again)).toMatchObject({ envelopesWritten: 2, alreadyStored: true });
  });

  it('keeps its content: another one under its id is refused', async () => {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    await world.store(made);
    const { conversationId, sessionId } = made.session;
    const rival = makeSession({ initiator, covered: [initiator, other], conversationId, sessionId });
    expect((await refusalOf(world.asConversation.storeSession(rival.request))).reason).toBe('SESSION_CONFLICT');
  });

  it('is stored once by twelve identical calls at the same time, and all agree', async () => {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    const answers = await Promise.all(
      Array.from({ length: 12 }, () => world.asConversation.storeSession(made.request)),
    );
    expect(answers.map(({ envelopesWritten }) => envelopesWritten)).toEqual(Array(12).fill(2));
    expect(answers.filter(({ alreadyStored }) => !alreadyStored)).toHaveLength(1);
  });

  it('must cover every device of the roster, and no other', async () => {
    const { initiator, other, bob } = twoPeople();
    const uncovered = bob.addDevice();
    const made = makeSession({ initiator, covered: [initiator, other], withheld: [uncovered] });
    const session = made.request.session;
    if (!session) throw new Error('no session');
    session.withholdings = [];
    const missing = await refusalOf(world.asConversation.storeSession(made.request));
    expect(missing.reason).toBe('SESSION_INCOMPLETE');
    made.request.rosterDevices = made.request.rosterDevices.filter(({ device }) => device?.userId === initiator.userId);
    const unexpected = await refusalOf(world.asConversation.storeSession(made.request));
    expect(unexpected).toMatchObject({
      reason: 'SESSION_INCOMPLETE',
      message: expect.stringContaining('1 unexpected'),
    });
  });

  it.each([
    ['the header', 'session.signed_header.signature', 'SIGNATURE_INVALID'],
    ['an envelope', 'session.envelopes[1].signature', 'SIGNATURE_INVALID'],
    ['a withholding', 'session.withholdings[0].signature', 'SIGNATURE_INVALID'],
    ['the certificate', 'session.initiator_certificate', 'CERTIFICATE_INVALID'],
  ])('is refused when the signature of %s does not verify', async (what, field, reason) => {
    const { initiator, other, bob } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other], withheld: [bob.addDevice()] });
    const session = made.request.session;
    if (!session?.signedHeader || !session.initiatorCertificate) throw new Error('no session');
    const forged = new Uint8Array(64).fill(7);
    if (what === 'the header') session.signedHeader.signature = forged;
    if (what === 'an envelope') Object.assign(session.envelopes[1] ?? {}, { signature: forged });
    if (what === 'a withholding') Object.assign(session.withholdings[0] ?? {}, { signature: forged });
    if (what === 'the certificate') {
      session.initiatorCertificate.signature = forged;
      for (const envelope of session.envelopes)
        if (envelope.sealerCertificate) envelope.sealerCertificate.signature = forged;
    }
    const refusal = await refusalOf(world.asConversation.storeSession(made.request));
    expect(refusal).toMatchObject({ reason, metadata: { field } });
  });

  it('is refused when its certificate is under a root key for which anything is signed', async () => {
    const { initiator, other } = twoPeople();
    const { request } = makeSession({ initiator, covered: [initiator, other] });
    const neutral = Uint8Array.of(1, ...new Uint8Array(31));
    // R and A are the neutral element and S is 0, so that S·B = R + h·A whatever the text is.
    const forged = { rootKey: neutral, signature: Uint8Array.of(...neutral, ...new Uint8Array(32)) };
    Object.assign(request.session?.initiatorCertificate ?? {}, forged);
    for (const { sealerCertificate } of request.session?.envelopes ?? [])
      Object.assign(sealerCertificate ?? {}, forged);
    const refusal = await refusalOf(world.asConversation.storeSession(request));
    expect(refusal).toMatchObject({
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'session.initiator_certificate' },
    });
  });

  it.each([
    ['another conversation', 'conversation_id'],
    ['another initiator', 'initiator'],
    ["another device's keys", 'initiator_identity_key'],
  ])('is refused when its header names %s', async (what, field) => {
    const { initiator, other } = twoPeople();
    const { request } = makeSession({ initiator, covered: [initiator, other] });
    if (what === 'another conversation') request.conversationId = crypto.randomUUID();
    if (what === 'another initiator') request.initiator = request.rosterDevices[1]?.device as never;
    if (what.endsWith('keys'))
      Object.assign(request.rosterDevices[0] ?? {}, { identityKey: other.identityKey.publicKey });
    const refusal = await refusalOf(world.asConversation.storeSession(request));
    expect(refusal).toMatchObject({ reason: 'HEADER_MISMATCH', metadata: { field } });
  });

  it('takes envelopes of its initiator alone, sealed with its ephemeral key', async () => {
    const { initiator, other } = twoPeople();
    const { request } = makeSession({ initiator, covered: [initiator, other] });
    const envelope = request.session?.envelopes[1];
    Object.assign(envelope ?? create(EnvelopeSchema), { sealerEphemeralKey: other.identityKey.publicKey });
    const refusal = await refusalOf(world.asConversation.storeSession(request));
    expect(refusal).toMatchObject({ reason: 'INVALID_FIELD', metadata: { field: 'session.envelopes[1].sealer' } });
  });

  it('is stored and discarded by conversation alone', async () => {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    for (const wire of ['grpc', 'web'] as const) {
      const device = world.as(initiator, wire);
      expect((await refusalOf(device.storeSession(made.request))).reason).toBe('CALLER_NOT_ALLOWED');
      expect((await refusalOf(device.discardSession(made.session))).reason).toBe('CALLER_NOT_ALLOWED');
    }
  });

  it('is gone with all that belongs to it when its candidate is discarded', async () => {
    const { initiator, other, bob } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other], withheld: [bob.addDevice()] });
    await world.store(made);
    expect(await world.asConversation.discardSession(made.session)).toMatchObject({ discarded: true });
    expect(await world.asConversation.discardSession(made.session)).toMatchObject({ discarded: false });
    const { rows } = await world.sql.query('SELECT FROM envelopes WHERE conversation_id = $1', [
      made.session.conversationId,
    ]);
    expect(rows).toEqual([]);
  });

  it('is not stored any more once its candidate was discarded, also before it was stored', async () => {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    expect(await world.asConversation.discardSession(made.session)).toMatchObject({ discarded: false });
    expect(await refusalOf(world.asConversation.storeSession(made.request))).toMatchObject({
      reason: 'SESSION_ABORTED',
      metadata: { session_id: made.session.sessionId },
    });
  });

  it('leaves nothing behind when storing and discarding meet, whoever is first', { timeout: 30_000 }, async () => {
    const { initiator, other } = twoPeople();
    const all = Array.from({ length: 24 }, () => makeSession({ initiator, covered: [initiator, other] }));
    const outcomes = await Promise.all(
      all.map(async (made) => {
        const storing = world.asConversation.storeSession(made.request).then(
          () => 'stored',
          (error: unknown) => refusalOf(Promise.reject(error)).then(({ reason }) => reason),
        );
        const { discarded } = await world.asConversation.discardSession(made.session);
        return { discarded, stored: await storing };
      }),
    );
    for (const { discarded, stored } of outcomes) expect(stored).toBe(discarded ? 'stored' : 'SESSION_ABORTED');
    const { rows } = await world.sql.query('SELECT session_id FROM sessions WHERE conversation_id = ANY($1::uuid[])', [
      all.map(({ session }) => session.conversationId),
    ]);
    expect(rows).toEqual([]);
  });

  it('is found by the discard that comes while it is being stored, and goes', async () => {
    const conversationId = crypto.randomUUID();
    const insert = `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, envelopes_expected,
        withholdings_expected, imported_from, writer_build, created_traceparent)
      VALUES ($1, 's', 'IMPORTED', 1, 'u', 'd', 0, 0, 'an older server', 'import', '')`;
    const client = await world.sql.connect();
    let discarded = false;
    try {
      await client.query('BEGIN');
      await client.query(insert, [conversationId]);
      const discarding = world.asConversation.discardSession({ conversationId, sessionId: 's' });
      discarding.finally(() => {
        discarded = true;
      });
      const waited = await discardWaits();
      await client.query('COMMIT');
      expect(waited).toBe(true);
      expect(await discarding).toMatchObject({ discarded: true });
      await expect(client.query(insert, [conversationId])).rejects.toMatchObject({
        constraint: 'sessions_not_discarded',
      });
    } finally {
      client.release();
    }

    async function discardWaits(): Promise<boolean> {
      while (!discarded) {
        const { rows } = await client.query(
          `SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
           WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted`,
        );
        if (rows.length > 0) return true;
      }
      return false;
    }
  });

  it('of three hundred devices is one call', { timeout: 30_000 }, async () => {
    const { alice, initiator } = twoPeople();
    const covered = [initiator, ...Array.from({ length: 299 }, () => alice.addDevice())];
    const made = makeSession({ initiator, covered });
    expect(await world.asConversation.storeSession(made.request)).toMatchObject({ envelopesWritten: 300 });
  });
});

describe('straight SQL', () => {
  const columns = `conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, header, header_signature,
    header_hash, initiator_identity_key, initiator_signing_key, initiator_ephemeral_key, initiator_root_key, initiator_suite,
    initiator_certified_at, initiator_certificate_signature, key_commitment, envelopes_expected, withholdings_expected,
    content_digest, writer_build, created_traceparent`;
  const row = (ephemeralKey: string, sessionId = 's') =>
    `INSERT INTO sessions (${columns}) VALUES (gen_random_uuid(), '${sessionId}', 'NATIVE', 1, 'u', 'd', '\\x01', decode(repeat('01', 64), 'hex'),
      decode(repeat('01', 32), 'hex'), decode(repeat('01', 32), 'hex'), decode(repeat('01', 32), 'hex'), ${ephemeralKey},
      decode(repeat('01', 32), 'hex'), 1, now(), decode(repeat('01', 64), 'hex'), decode(repeat('01', 32), 'hex'), 2, 0,
      decode(repeat('01', 32), 'hex'), 'build', '')`;

  async function stored() {
    const { initiator, other } = twoPeople();
    const made = makeSession({ initiator, covered: [initiator, other] });
    await world.store(made);
    return made.session;
  }

  it('cannot store a session without its ephemeral key', async () => {
    await expect(world.sql.query(row('NULL'))).rejects.toMatchObject({ constraint: 'sessions_native_is_complete' });
    await expect(world.sql.query(row(`'\\x01'`))).rejects.toMatchObject({ constraint: 'sessions_native_is_complete' });
  });

  it('cannot store a session without its envelopes', async () => {
    await expect(world.sql.query(row(`decode(repeat('01', 32), 'hex')`))).rejects.toMatchObject({
      constraint: 'session_is_whole',
    });
  });

  it('cannot change a session, or take its ephemeral key away', async () => {
    const { conversationId } = await stored();
    for (const change of [`initiator_ephemeral_key = NULL`, `epoch = 2`, `key_commitment = header_hash`])
      await expect(
        world.sql.query(`UPDATE sessions SET ${change} WHERE conversation_id = $1`, [conversationId]),
      ).rejects.toMatchObject({ constraint: 'sessions_immutable' });
  });

  it('cannot take an envelope away from a session, nor change one, nor add one', async () => {
    const { conversationId } = await stored();
    await expect(
      world.sql.query(`DELETE FROM envelopes WHERE conversation_id = $1 AND attempt = 0`, [conversationId]),
    ).rejects.toMatchObject({ constraint: 'session_is_whole' });
    await expect(
      world.sql.query(`UPDATE envelopes SET ciphertext = ciphertext WHERE conversation_id = $1`, [conversationId]),
    ).rejects.toMatchObject({ constraint: 'sessions_immutable' });
    await expect(
      world.sql.query(
        `INSERT INTO envelopes SELECT conversation_id, session_id, user_id, 'another', attempt, key_request_id, sealer_user_id,
           sealer_device_id, sealer_identity_key, sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at,
           sealer_certificate_signature, sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext,
           ciphertext, signature FROM envelopes WHERE conversation_id = $1 LIMIT 1`,
        [conversationId],
      ),
    ).rejects.toMatchObject({ constraint: 'session_is_whole' });
  });
});

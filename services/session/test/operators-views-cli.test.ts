import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
import { createPerson, makeSession } from './people.ts';
import { startWorld, type World } from './world.ts';

let world: World;
let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keytrail-views-'));
  world = await startWorld({}, { sweep: false });
}, 60_000);
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await world?.stop();
});

/** The command, with the token in a file that the environment names. */
async function keytrail(...args: string[]) {
  const tokenFile = join(folder, 'operator.token');
  writeFileSync(tokenFile, await world.operatorToken(), { mode: 0o600 });
  const environment = { KEYTRAIL_SESSION_TARGET: world.target, KEYTRAIL_OPERATOR_TOKEN_FILE: tokenFile };
  const ran = { out: '', err: '' };
  const code = await run(args, {
    environment,
    out(text) {
      ran.out += text;
    },
    say(text) {
      ran.err += text;
    },
  });
  return { code, ...ran };
}

describe('keytrail sessions', () => {
  it('shows what is there of each session, and says which are not whole', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [initiator, phone] = [alice.addDevice(), bob.addDevice()];
    const made = makeSession({ initiator, covered: [initiator, phone] });
    await world.store(made);
    const { conversationId, sessionId } = made.session;
    const whole = await keytrail('sessions', conversationId);
    expect(whole).toMatchObject({ code: 0, err: expect.stringMatching(/^1 session, newest epoch first\n/) });
    // Nobody was asked whether there should be more.
    expect(whole.err).toContain('whether there should be more, conversation knows: give --conversation <host:port>');
    expect(whole.out).toMatch(/EPOCH +SESSION +ENVELOPES +EPHEMERAL/);
    expect(whole.out).toMatch(new RegExp(`1 +${sessionId} +2/2 +yes +yes +yes`));

    await world.sql.query('ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete');
    await world.sql.query('ALTER TABLE sessions DISABLE TRIGGER USER');
    await world.sql.query('ALTER TABLE envelopes DISABLE TRIGGER USER');
    await world.sql.query('UPDATE sessions SET initiator_ephemeral_key = NULL WHERE session_id = $1', [sessionId]);
    await world.sql.query('DELETE FROM envelopes WHERE session_id = $1 AND user_id = $2', [sessionId, bob.userId]);
    const damaged = await keytrail('sessions', conversationId);
    expect(damaged.code).toBe(4);
    expect(damaged.out).toMatch(new RegExp(`! +1 +${sessionId} +1/2 +NO +yes`));
    expect(damaged.out).toContain('ephemeral key missing; 1 of 2 envelopes missing');
    expect(damaged.err).toMatch(/1 of them is not whole: .*keytrail explain/);
    const json = await keytrail('sessions', conversationId, '--json');
    expect(JSON.parse(json.out)).toMatchObject({
      sessions: [{ sessionId, ephemeralKeyPresent: false }],
      nextToken: '',
    });
  });

  it('tells sessions that are gone from ids that never were, by what conversation knows', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [initiator, phone] = [alice.addDevice(), bob.addDevice()];
    const made = makeSession({ initiator, covered: [initiator, phone] });
    const { conversationId, sessionId } = made.session;
    // Committed, and never stored here: as a database that lost its rows.
    const facts = world.peers.commit(made, [alice, bob]);
    facts.standings.set('given-up', 'aborted');
    facts.standings.set('lost-epoch', 'lost');
    const asked = (...args: string[]) =>
      keytrail('--conversation', world.peers.targets.conversation, 'sessions', ...args);

    expect(await asked(conversationId)).toMatchObject({
      code: 4,
      out: '',
      err: expect.stringContaining(
        `0 sessions, newest epoch first\nconversation ${conversationId} is in epoch 1, and none of its sessions is stored`,
      ),
    });
    expect(await asked(conversationId, '--session', sessionId)).toMatchObject({
      code: 4,
      err: expect.stringContaining(`session ${sessionId} was committed in conversation ${conversationId}`),
    });
    expect(await asked(conversationId, '--session', 'lost-epoch')).toMatchObject({ code: 4 });
    expect(await asked(conversationId, '--session', 'given-up')).toMatchObject({
      code: 0,
      err: expect.stringContaining('no message is under session given-up: it was given up'),
    });
    expect(await asked(conversationId, '--session', 'never-was')).toMatchObject({
      code: 1,
      err: expect.stringContaining(`conversation ${conversationId} knows no session never-was`),
    });
    const unknown = randomUUID();
    expect(await asked(unknown)).toMatchObject({
      code: 1,
      err: expect.stringContaining(`conversation knows no conversation ${unknown}`),
    });
    const json = await asked(conversationId, '--json');
    expect([json.code, JSON.parse(json.out)]).toEqual([4, { sessions: [], nextToken: '' }]);
    // Nobody to ask: it says where to look.
    expect(await keytrail('sessions', conversationId)).toMatchObject({
      code: 0,
      err: expect.stringContaining(`KEYTRAIL_CONVERSATION_TARGET, or see keytrail conversation ${conversationId}`),
    });
    expect(await keytrail('--conversation', '127.0.0.1:1', 'sessions', conversationId)).toMatchObject({
      code: 3,
      err: expect.stringContaining('0 sessions'),
    });
  });

  it('tells which of several sessions are gone, and does not count those that were taken back', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [initiator, phone] = [alice.addDevice(), bob.addDevice()];
    const covered = [initiator, phone];
    const first = makeSession({ initiator, covered });
    const { conversationId } = first.session;
    const next = (epoch: bigint) => makeSession({ initiator, covered, conversationId, epoch });
    const [lost, rotated, third] = [next(2n), next(2n), next(3n)];
    for (const stored of [first, lost, third]) await world.store(stored);
    for (const committed of [first, rotated, third]) world.peers.commit(committed, [alice, bob]);
    const { sessionId: takenBack } = lost.session;
    world.peers.conversations.get(conversationId)?.standings.set(takenBack, 'aborted');
    await world.asConversation.discardSession({ conversationId, sessionId: takenBack });
    const asked = (...args: string[]) =>
      keytrail('--conversation', world.peers.targets.conversation, 'sessions', conversationId, ...args);

    const gone = await asked();
    expect(gone.code).toBe(4);
    expect(gone.err).toContain('2 sessions, newest epoch first; 1 more was taken back\n');
    expect(gone.err).toContain('has 1 more session, which is not stored: nobody can read under it.');
    expect(gone.err).toContain(`: epoch 2, session ${rotated.session.sessionId}\n`);
    // Those that are not listed are not called gone.
    const newestTwo = await asked('--limit', '2');
    expect(newestTwo.code).toBe(4);
    expect(newestTwo.err).toContain(rotated.session.sessionId);
    const newestOne = await asked('--limit', '1');
    expect(newestOne).toMatchObject({ code: 0, err: '1 session, newest epoch first, and there are more (--limit)\n' });

    await world.store(rotated);
    expect(await asked()).toMatchObject({
      code: 0,
      err: '3 sessions, newest epoch first; 1 more was taken back\n',
    });
    expect(await keytrail('--conversation', '127.0.0.1:1', 'sessions', conversationId)).toMatchObject({
      code: 4,
      err: expect.stringContaining('whether there should be more is not known: conversation could not be asked'),
    });

    // What was taken back is no session: none is left.
    const [given, kept] = [makeSession({ initiator, covered }), makeSession({ initiator, covered })];
    const torn = given.session.conversationId;
    await world.store(given);
    world.peers.commit({ ...kept, session: { ...kept.session, conversationId: torn } }, [alice, bob]);
    world.peers.conversations.get(torn)?.standings.set(given.session.sessionId, 'aborted');
    await world.asConversation.discardSession({ conversationId: torn, sessionId: given.session.sessionId });
    const left = await keytrail('--conversation', world.peers.targets.conversation, 'sessions', torn);
    expect(left.code).toBe(4);
    expect(left.err).toContain('0 sessions, newest epoch first; 1 more was taken back\n');
    expect(left.err).toContain('in epoch 1, and none of its sessions is stored');
  });

  it('ends with 2 when the command line cannot be used, whoever says so', async () => {
    expect(await keytrail('sessions', randomUUID(), '--session', 'no session')).toMatchObject({
      code: 2,
      err: expect.stringContaining('INVALID_FIELD'),
    });
    expect((await keytrail('sessions')).code).toBe(2);
    expect(await keytrail('devices')).toMatchObject({ code: 2, err: expect.stringContaining('--pseudonym') });
    expect(await keytrail('devices', 'alice')).toMatchObject({
      code: 2,
      err: expect.stringContaining('KEYTRAIL_IDENTITY_KEYS_TARGET'),
    });
  });
});

describe('keytrail dead-letters', () => {
  it('lists and replays them', async () => {
    const { rows } = await world.sql.query(
      `INSERT INTO dead_letters (consumer, subject, event_id, payload, traceparent, reason)
       VALUES ('session-devices', 'nobody.knows', 'event-1', '', '', 'Error: boom') RETURNING id`,
    );
    const list = await keytrail('dead-letters', 'list', '--of', 'session');
    expect(list).toMatchObject({ code: 0, err: '1 dead letter of session, oldest first\n' });
    expect(list.out).toMatch(/session-devices +nobody\.knows +event-1 .* Error: boom/);
    const replayed = await keytrail('dead-letters', 'replay', rows[0].id, '--of', 'session');
    expect(replayed).toMatchObject({ code: 1, err: expect.stringContaining('could not be handled, and stays') });
    expect((await keytrail('dead-letters', 'replay', '0', '--of', 'session')).code).toBe(2);
  });
});

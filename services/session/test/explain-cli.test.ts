import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pseudonym } from '@keytrail/telemetry';
import { startTraceStore, type TraceSpan, type TraceStore } from '@keytrail/traces';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
import { asOtlp } from '../../../packages/traces/test/answers.ts';
import { createPerson, type MadeSession, makeSession, type TestDevice } from './people.ts';
import { startSilentPeer } from './silent-peer.ts';
import { keyOf } from './stand-ins.ts';
import { startWorld, type World } from './world.ts';

let world: World;
let traces: TraceStore;
let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keytrail-explain-'));
  traces = await startTraceStore();
  world = await startWorld({}, { sweep: false });
}, 60_000);
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await traces?.stop();
  await world?.stop();
});

async function keytrail(args: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  const ran = { out: '', err: '' };
  const code = await run(['explain', ...args], {
    environment: {
      KEYTRAIL_SESSION_TARGET: world.target,
      KEYTRAIL_IDENTITY_KEYS_TARGET: world.peers.targets.identityKeys,
      KEYTRAIL_OPERATOR_TOKEN: await world.operatorToken(),
      KEYTRAIL_TRACE_BACKEND: traces.url,
      ...environment,
    },
    out(text) {
      ran.out += text;
    },
    say(text) {
      ran.err += text;
    },
  });
  return { code, ...ran };
}

/** Alice's phone made a session for itself and for Bob's. */
async function chat() {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const [initiator, reader] = [alice.addDevice(), bob.addDevice()];
  const made = makeSession({ initiator, covered: [initiator, reader] });
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  return { alice, bob, initiator, reader, made, conversationId: made.session.conversationId };
}

describe('keytrail explain --user', () => {
  const of = (conversationId: string, user: string) => ['--conversation', conversationId, '--user', user];

  it('has a line for each device, revoked ones too, and tells in full which of the others cannot read', async () => {
    const { conversationId, bob, reader, made } = await chat();
    const [late, lost] = [bob.addDevice(), bob.addDevice()];
    world.peers.revoked.set(keyOf(lost), new Date());
    const ran = await keytrail(of(conversationId, bob.userId));
    expect(ran).toMatchObject({ code: 0, err: `1 of 2 devices of ${bob.userId} cannot read it; 1 more revoked\n` });
    expect(ran.out).toMatch(new RegExp(`/${reader.deviceId} +[0-9a-f]{16} +yes +READABLE +1 +`));
    expect(ran.out).toMatch(
      new RegExp(`/${late.deviceId} +[0-9a-f]{16} +NO +DEVICE_ADDED_AFTER_SESSION +1 +${made.session.sessionId}\n`),
    );
    expect(ran.out).toMatch(new RegExp(`/${lost.deviceId} +[0-9a-f]{16} +NO +DEVICE_REVOKED +1 +`));
    expect(ran.out).toContain(`${bob.userId}/${late.deviceId} cannot read this session`);
    expect(ran.out).not.toContain(`${bob.userId}/${lost.deviceId} cannot read this session`);
  });

  it('looks at older sessions too: a key of the current epoch says nothing of the messages before it', async () => {
    const { alice, bob, initiator, reader, made, conversationId } = await chat();
    const late = bob.addDevice();
    const covered = [initiator, reader, late];
    const rotated = makeSession({ initiator, covered, conversationId, epoch: 2n });
    await world.store(rotated);
    world.peers.commit(rotated, [alice, bob]);

    const ran = await keytrail(of(conversationId, bob.userId));
    const verdict = `1 of 2 devices of ${bob.userId} cannot read all of the 2 newest sessions\n`;
    expect(ran).toMatchObject({ code: 0, err: verdict });
    const row = ({ deviceId }: TestDevice, { session }: MadeSession, told: string) =>
      new RegExp(`/${deviceId} +[0-9a-f]{16} +${told} +${session.epoch} +${session.sessionId}\n`);
    for (const each of [made, rotated]) expect(ran.out).toMatch(row(reader, each, 'yes +READABLE'));
    expect(ran.out).toMatch(row(late, rotated, 'yes +READABLE'));
    expect(ran.out).toMatch(row(late, made, 'NO +DEVICE_ADDED_AFTER_SESSION'));
    expect(ran.out).toContain(`${bob.userId}/${late.deviceId} cannot read this session: DEVICE_ADDED_AFTER_SESSION\n`);

    const named = await keytrail([...of(conversationId, bob.userId), '--session', rotated.session.sessionId]);
    expect(named.err).toBe(`0 of 2 devices of ${bob.userId} cannot read it\n`);
  });

  it('looks at the ten newest sessions, and says that there are more', { timeout: 60_000 }, async () => {
    const { alice, bob, initiator, reader, conversationId } = await chat();
    for (let epoch = 2n; epoch <= 12n; epoch += 1n) {
      const later = makeSession({
        initiator,
        covered: [initiator, reader],
        conversationId,
        epoch,
      });
      await world.store(later);
      world.peers.commit(later, [alice, bob]);
    }
    const ran = await keytrail([...of(conversationId, bob.userId), '--json']);
    expect(ran.err).toContain(`only the 10 newest sessions were looked at: keytrail sessions ${conversationId} lists`);
    const { explanations } = JSON.parse(ran.out) as { explanations: { session: { epoch: string } }[] };
    expect(explanations.map(({ session }) => Number(session.epoch))).toEqual([12, 11, 10, 9, 8, 7, 6, 5, 4, 3]);
  });

  it('tells of a session whose rows are gone: what session lists by itself is all well', async () => {
    const { alice, bob, initiator, reader, made: current, conversationId } = await chat();
    // Committed, and not stored: as a database that lost rows of it.
    const [gone, rotated] = [2n, 3n].map((epoch) =>
      makeSession({ initiator, covered: [initiator, reader], conversationId, epoch }),
    ) as [MadeSession, MadeSession];
    await world.store(rotated);
    for (const each of [gone, rotated]) world.peers.commit(each, [alice, bob]);
    const { sessionId } = gone.session;

    const ran = await keytrail(of(conversationId, bob.userId));
    expect(ran.err).toBe(`1 of 1 device of ${bob.userId} cannot read all of the 3 newest sessions\n`);
    const line = (told: string, id: string) =>
      new RegExp(`^${reader.userId}/${reader.deviceId} +[0-9a-f]{16} +${told} +${id}$`, 'gm');
    expect(ran.out.match(line('NO +CONVERSATION_WITHOUT_SESSION +2', sessionId))).toHaveLength(1);
    expect(ran.out.match(line('yes +READABLE +3', rotated.session.sessionId))).toHaveLength(1);
    expect(ran.out.match(line('yes +READABLE +1', current.session.sessionId))).toHaveLength(1);
    expect(ran.out).toMatch(new RegExp(`^session +${sessionId}, epoch 2: no row of it$`, 'm'));

    // Named, its line is its own, and not that of the current session, which is sound.
    const named = await keytrail([...of(conversationId, bob.userId), '--session', sessionId]);
    expect(named.err).toBe(`1 of 1 device of ${bob.userId} cannot read it\n`);
    expect(named.out.match(line('NO +CONVERSATION_WITHOUT_SESSION +2', sessionId))).toHaveLength(1);
    expect(named.out).not.toMatch(line('.*', rotated.session.sessionId));
  });

  it('leaves out candidates that lost, and finds a session of which conversation lost the epoch', async () => {
    const { alice, bob, initiator, reader, made, conversationId } = await chat();
    const covered = [initiator, reader];
    const lost = makeSession({ initiator, covered, conversationId, epoch: 2n });
    await world.store(lost);
    const facts = world.peers.conversations.get(conversationId);
    facts?.standings.set(lost.session.sessionId, 'aborted');
    const { sessionId } = lost.session;
    await world.asConversation.discardSession({ conversationId, sessionId });
    const alone = await keytrail(of(conversationId, bob.userId));
    expect(alone).toMatchObject({ code: 0, err: `0 of 1 device of ${bob.userId} cannot read it\n` });
    expect(alone.out).not.toContain(sessionId);

    const rotated = makeSession({ initiator, covered, conversationId, epoch: 2n });
    await world.store(rotated);
    world.peers.commit(rotated, [alice, bob]);
    facts?.sessions.delete(made.session.sessionId);
    facts?.standings.set(made.session.sessionId, 'lost');
    const torn = await keytrail(of(conversationId, bob.userId));
    expect(torn.err).toContain(' cannot read all of the 2 newest sessions\n');
    expect(torn.err).toContain('EPOCH_LOST: conversation has no row of');
    expect(torn.out).toMatch(new RegExp(` yes +READABLE +1 +${made.session.sessionId}\n`));
    expect(torn.out).not.toContain(sessionId);
  });

  it('tells what it found out when time is up, or a question is refused, and ends with 4', {
    timeout: 30_000,
  }, async () => {
    const { alice, bob, initiator, reader, conversationId } = await chat();
    for (let epoch = 2n; epoch <= 4n; epoch += 1n) {
      const later = makeSession({ initiator, covered: [initiator, reader], conversationId, epoch });
      await world.store(later);
      world.peers.commit(later, [alice, bob]);
    }
    const late = await keytrail([...of(conversationId, bob.userId), '--within', '1ms']);
    expect(late.code).toBe(4);
    expect(late.err).toContain('3 of 4 lines are not known: for 3 there was no time (--within)\n');
    expect(late.out).toMatch(/ yes +READABLE +4 /);
    expect(late.out.match(/ - +\? +not looked at +[123] +session_/g)).toHaveLength(3);
    const json = await keytrail([...of(conversationId, bob.userId), '--within', '1ms', '--json']);
    expect(json.code).toBe(4);
    expect(JSON.parse(json.out)).toMatchObject({
      explanations: [{ readable: true, epoch: '4' }],
      notLookedAt: ['3', '2', '1'].map((epoch) => ({ deviceId: reader.deviceId, epoch, because: 'TIME_IS_UP' })),
    });

    const settings = { callerRequestsPerSecond: 1, callerBurst: 1 };
    const instance = await world.another(settings, { consumers: false, sweep: false });
    try {
      const refused = await keytrail(of(conversationId, bob.userId), { KEYTRAIL_SESSION_TARGET: instance.target });
      expect(refused.code).toBe(4);
      expect(refused.err).toMatch(/^\d of 4 lines are not known: \d failed, as LIMIT_EXCEEDED: /m);
      expect(refused.out).toMatch(/ yes +READABLE +4 /);
      expect(refused.out).toMatch(/ - +\? +LIMIT_EXCEEDED +[123] +session_/);
    } finally {
      await instance.stop();
    }
  });

  it('tells apart who has no device left, who was erased and who is unknown', async () => {
    const { conversationId, bob } = await chat();
    const [carol, dave] = [createPerson('carol'), createPerson('dave')];
    const phone = carol.addDevice();
    world.peers.people.set(carol.userId, carol);
    world.peers.revoked.set(keyOf(phone), new Date());
    const without = await keytrail(of(conversationId, carol.userId));
    expect(without.code).toBe(0);
    expect(without.err).toBe(`${carol.userId} has no device that is not revoked: 1 device revoked\n`);
    expect(without.out).toMatch(new RegExp(`/${phone.deviceId} +[0-9a-f]{16} +NO +`));

    world.peers.erased.set(dave.userId, new Date('2026-11-20T10:00:00Z'));
    const erased = await keytrail(of(conversationId, dave.userId));
    expect(erased).toEqual({ code: 0, out: '', err: `${dave.userId} was erased at 2026-11-20T10:00:00.000Z\n` });

    const misspelt = `${bob.userId}x`;
    const unknown = await keytrail(of(conversationId, misspelt));
    expect(unknown).toMatchObject({
      code: 1,
      out: '',
      err: expect.stringContaining(`nothing is known of ${misspelt}`),
    });
    const json = await keytrail([...of(conversationId, misspelt), '--json']);
    expect(json.code).toBe(1);
    expect(JSON.parse(json.out)).toEqual({ userId: misspelt, known: false, explanations: [], notLookedAt: [] });
  });

  it('of one device that nobody knows, says that it may be misspelt, and ends with 1', async () => {
    const { conversationId } = await chat();
    const ran = await keytrail(['--conversation', conversationId, '--device', 'nosuch/phone']);
    expect(ran.code).toBe(1);
    expect(ran.out).toContain('NEVER_A_MEMBER');
    expect(ran.err).toContain('nothing is known of nosuch/phone: is the id right, or was the user erased?');
  });

  it('names the service that did not answer', { timeout: 20_000 }, async () => {
    const { conversationId, bob } = await chat();
    const silent = await startSilentPeer();
    const asked = [...of(conversationId, bob.userId), '--timeout', '1s'];
    const ran = await keytrail(asked, { KEYTRAIL_IDENTITY_KEYS_TARGET: silent.target });
    await silent.stop();
    expect(ran).toMatchObject({ code: 3, err: expect.stringContaining('nothing answered: identity-keys') });
  });
});

describe('keytrail explain ends with 4', () => {
  it('when a service could not be asked, and names it', { timeout: 30_000 }, async () => {
    const { conversationId, made, bob } = await chat();
    const late = bob.addDevice();
    const device = `${late.userId}/${late.deviceId}`;
    const instance = await world.another({ peerConversation: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      const target = { KEYTRAIL_SESSION_TARGET: instance.target };
      const { sessionId } = made.session;
      const byId = ['--conversation', conversationId, '--session', sessionId, '--device', device];
      const ran = await keytrail(byId, target);
      expect(ran).toMatchObject({ code: 4, err: expect.stringContaining('could not be asked: conversation;') });
      expect(ran.out).toContain('1. EXPLANATION_INCOMPLETE\n');
      const ofUser = ['--conversation', conversationId, '--session', sessionId, '--user', bob.userId];
      expect((await keytrail(ofUser, target)).code).toBe(4);
      expect((await keytrail([...byId, '--json'], target)).code).toBe(4);
    } finally {
      await instance.stop();
    }
  });

  it('when who knows the current session stays silent, and names it', { timeout: 30_000 }, async () => {
    const { conversationId, reader } = await chat();
    const silent = await startSilentPeer();
    const settings = { peerConversation: silent.target, peerTimeoutMs: 4_000 };
    const instance = await world.another(settings, { consumers: false, sweep: false });
    try {
      const asked = ['--conversation', conversationId, '--device', `${reader.userId}/${reader.deviceId}`];
      const target = { KEYTRAIL_SESSION_TARGET: instance.target };
      const ran = await keytrail([...asked, '--timeout', '4s'], target);
      expect(ran.code).toBe(4);
      expect(ran.err).toMatch(/EXPLANATION_INCOMPLETE: .*\(peer=conversation\)/);
      expect(ran.err).toContain('with --session <id> the rest is told');
    } finally {
      await instance.stop();
      await silent.stop();
    }
  });
});

describe('keytrail explain of a trace', () => {
  const pseudonyms = ({ userId, deviceId }: TestDevice) => ({
    'keytrail.user': pseudonym(userId),
    'keytrail.device': pseudonym(deviceId),
  });
  const ids = ({ session }: MadeSession) => ({
    'keytrail.conversation.id': session.conversationId,
    'keytrail.session.id': session.sessionId,
  });
  let spans = 0;
  const missed = (traceId: string, attributes: Readonly<Record<string, string>>): TraceSpan => {
    spans += 1;
    return {
      traceId,
      spanId: String(spans).padStart(16, '0'),
      parentSpanId: '',
      service: 'session',
      instance: 'one',
      build: 'build',
      name: 'GetInitialSession',
      kind: 'server',
      startMs: 1_000 + spans,
      durationMs: 1,
      status: 'unset',
      statusMessage: '',
      attributes: { 'keytrail.miss': true, 'keytrail.miss.cause': 'DEVICE_ADDED_AFTER_SESSION', ...attributes },
      links: [],
      events: [],
    };
  };
  const send = (some: readonly TraceSpan[]) =>
    fetch(`${traces.url}/v1/traces`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(asOtlp(some)),
    });

  it('takes all ids of one miss, says how many more there are, and explains another that is chosen', async () => {
    const traceId = 'a'.repeat(32);
    const [one, two, three] = [await chat(), await chat(), await chat()];
    const [second, third] = [two.bob.addDevice(), three.bob.addDevice()];
    await send([
      // A miss that names its device alone: none of the others' ids are of it.
      missed(traceId, pseudonyms(one.reader)),
      missed(traceId, { ...ids(two.made), ...pseudonyms(second) }),
      missed(traceId, { ...ids(three.made), ...pseudonyms(third) }),
      missed(traceId, { ...ids(three.made), ...pseudonyms(third) }),
    ]);
    for (const asked of [['--trace', traceId], ['--latest-miss']]) {
      const ran = await keytrail(asked);
      expect(ran.code).toBe(0);
      expect(ran.out).toContain(`${second.userId}/${second.deviceId} cannot read this session`);
      expect(ran.err).toContain('1 more miss in this trace');
    }
    expect((await keytrail(['--latest-miss'])).err).toContain(`trace ${traceId}\n`);
    const chosen = await keytrail(['--trace', traceId, '--conversation', three.conversationId]);
    expect(chosen.out).toContain(`${third.userId}/${third.deviceId} cannot read this session`);
    expect(chosen.err).not.toContain('more miss');
    expect((await keytrail(['--latest-miss', '--trace', traceId])).code).toBe(2);
  });

  it('of a trace that was refused and holds no miss, tells the reason and its page, without waiting for more', async () => {
    const traceId = 'd'.repeat(32);
    const refused = missed(traceId, { 'keytrail.reason': 'SIGNATURE_INVALID' });
    await send([{ ...refused, name: 'FulfillKeyRequest', attributes: { 'keytrail.reason': 'SIGNATURE_INVALID' } }]);
    const ran = await keytrail(['--trace', traceId, '--wait', '1d']);
    expect(ran).toMatchObject({ code: 1, out: '' });
    expect(ran.err).toContain(
      'holds no miss: FulfillKeyRequest was refused with SIGNATURE_INVALID, see docs/reasons/signature-invalid.md',
    );
  });

  it('without any miss there is nothing to explain', async () => {
    const empty = await startTraceStore();
    const ran = await keytrail(['--latest-miss'], { KEYTRAIL_TRACE_BACKEND: empty.url });
    await empty.stop();
    expect(ran).toMatchObject({ code: 1, err: expect.stringContaining('has no trace with a miss') });
  });

  it('prints what a broken trace holds without its control characters', async () => {
    const file = join(folder, 'broken.json');
    writeFileSync(file, '\u001b]0;owned\u0007 is no JSON');
    const ran = await keytrail(['--trace', 'b'.repeat(32), '--file', file]);
    expect(ran.code).toBe(1);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there.
    expect(ran.err).not.toMatch(/[\u0000-\u0009\u001b]/);

    const backend = createServer((_, answer) => answer.writeHead(500).end('\u001b]0;owned\u0007'));
    await new Promise<void>((resolve) => backend.listen(0, '127.0.0.1', resolve));
    const { port } = backend.address() as AddressInfo;
    const refused = await keytrail(['--trace', 'b'.repeat(32), '--dialect', 'tempo', '--wait', '1ms'], {
      KEYTRAIL_TRACE_BACKEND: `http://127.0.0.1:${port}`,
    });
    await new Promise((resolve) => backend.close(resolve));
    expect(refused.code).toBe(1);
    expect(refused.err).toContain('owned');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there.
    expect(refused.err).not.toMatch(/[\u0000-\u0009\u001b]/);
  });
});

import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { KeyRequestKind, NotificationKind } from '@keytrail/contracts';
import { notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
import { createPerson, makeSession } from './people.ts';
import { startWorld, type World } from './world.ts';

const main = join(import.meta.dirname, '../../../packages/cli/src/main.ts');

let world: World;
let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keytrail-cli-'));
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 60_000);
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await world?.stop();
});

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

const environmentOf = async (changes: Readonly<Record<string, string>>) => ({
  PATH: process.env.PATH ?? '',
  KEYTRAIL_SESSION_TARGET: world.target,
  KEYTRAIL_OPERATOR_TOKEN: await world.operatorToken(),
  ...changes,
});

async function keytrail(args: readonly string[], changes: Readonly<Record<string, string>> = {}): Promise<Ran> {
  const ran = { out: '', err: '' };
  const code = await run(args, {
    environment: await environmentOf(changes),
    out(text) {
      ran.out += text;
    },
    say(text) {
      ran.err += text.endsWith('\n') ? text : `${text}\n`;
    },
  });
  return { code, ...ran };
}

/** The command as an operator runs it: a process of its own, which takes long to start. */
async function keytrailProcess(args: readonly string[], changes: Readonly<Record<string, string>>): Promise<Ran> {
  const env = await environmentOf(changes);
  const child = spawn(process.execPath, [main, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const [out, err, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  return { code, out, err };
}

async function waitingRequest() {
  const alice = createPerson('alice');
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator] });
  await world.store(made);
  world.peers.commit(made, [alice]);
  const late = alice.addDevice();
  const { conversationId, sessionId } = made.session;
  const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(late).requestKey(asked);
  return { alice, initiator, late, conversationId, keyRequestId: keyRequest?.keyRequestId ?? '' };
}

describe('keytrail requests', () => {
  it('lists and shows requests, as a table and as JSON', async () => {
    const { alice, late, conversationId, keyRequestId } = await waitingRequest();
    const listed = await keytrail([
      'requests',
      'list',
      '--user',
      alice.userId,
      '--state',
      'waiting_for_holder,offered',
    ]);
    expect(listed).toMatchObject({ code: 0, err: '1 key request, oldest first\n' });
    const [heading, row] = listed.out.trimEnd().split('\n');
    expect(heading).toMatch(/^KEY REQUEST +STATE +KIND/);
    expect(row).toContain(`${alice.userId}/${late.deviceId}`);
    expect(row).toContain('WAITING_FOR_HOLDER');

    const json = await keytrail(['--json', 'requests', 'list', '--conversation', conversationId]);
    expect(JSON.parse(json.out)).toMatchObject({ keyRequests: [{ keyRequest: { keyRequestId } }] });
    const none = await keytrail(['requests', 'list', '--user', alice.userId, '--older-than', '1h']);
    expect(none).toMatchObject({ code: 0, out: '', err: '0 key requests, oldest first\n' });

    const shown = await keytrail(['requests', 'show', keyRequestId]);
    expect(shown.out).toMatch(/trace +[0-9a-f]{32}\n/);
    expect(shown.out).toContain('no offers');
  });

  it('lists more than one page, and says that there are more', async () => {
    const { alice, initiator, late } = await waitingRequest();
    for (let further = 0; further < 2; further++) {
      const made = makeSession({ initiator, covered: [initiator], pinned: [{ userId: alice.userId, version: 1n }] });
      await world.store(made);
      world.peers.commit(made, [alice]);
      const { conversationId, sessionId } = made.session;
      const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
      await world.as(late).requestKey(asked);
    }
    const two = await keytrail(['requests', 'list', '--user', alice.userId, '--device', late.deviceId, '--limit', '2']);
    expect(two.out.trimEnd().split('\n')).toHaveLength(3);
    expect(two.err).toContain('there are more');
  });

  it('nudges, cancels and replays', async () => {
    const { initiator, keyRequestId } = await waitingRequest();
    world.peers.attach(initiator);
    expect(await keytrail(['requests', 'nudge', keyRequestId])).toMatchObject({
      code: 0,
      err: 'it is looked at now\n',
    });
    await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.kind === NotificationKind.KEY_OFFERED && notification.keyRequestId === keyRequestId,
    );
    const cancelled = await keytrail(['requests', 'cancel', keyRequestId, '--note', 'lost its phone']);
    expect(cancelled).toMatchObject({ code: 0, err: 'it is cancelled, and its requester is told\n' });
    expect(cancelled.out).toMatch(/ended because +cancelled_by_operator/);
    const { rows } = await world.sql.query(
      `SELECT operator, note FROM audit_log WHERE key_request_id = $1 AND note <> ''`,
      [keyRequestId],
    );
    expect(rows).toEqual([{ operator: 'ops', note: 'lost its phone' }]);
    const replayed = await keytrail(['--json', 'requests', 'replay', keyRequestId]);
    const { keyRequestId: opened } = JSON.parse(replayed.out).keyRequest;
    expect(await keytrail(['requests', 'replay', opened])).toMatchObject({
      code: 0,
      err: 'nothing to replay: it is open\n',
    });
    expect(replayed.code).toBe(0);
    const { keyRequest } = JSON.parse(replayed.out);
    expect(keyRequest).toMatchObject({ state: 'KEY_REQUEST_STATE_WAITING_FOR_HOLDER' });
    expect(keyRequest.keyRequestId).not.toBe(keyRequestId);
  });

  it('takes the token from a file too, and never prints it', async () => {
    const { alice } = await waitingRequest();
    const file = join(folder, 'token');
    const token = await world.operatorToken();
    writeFileSync(file, `${token}\n`, { mode: 0o600 });
    const list = ['--token-file', file, '--session', world.target, 'requests', 'list', '--user', alice.userId];
    const nothingElse = { KEYTRAIL_OPERATOR_TOKEN: '', KEYTRAIL_SESSION_TARGET: '' };
    const listed = await keytrailProcess(list, nothingElse);
    expect(listed.code).toBe(0);
    expect(listed.out + listed.err).not.toContain(token);
  });
});

describe('a refusal', () => {
  it('ends the command with 1, or 2 where the token is to blame, its reason, trace id and page', async () => {
    const { keyRequestId } = await waitingRequest();
    await world.operator.endKeyRequest({ keyRequestId });
    const ended = await keytrail(['requests', 'nudge', keyRequestId]);
    expect(ended).toMatchObject({ code: 1, out: '' });
    expect(ended.err).toMatch(
      /^keytrail: KEY_REQUEST_ENDED: .*state=CANCELLED.*\ntrace id [0-9a-f]{32}\npage docs\/reasons\/key-request-ended\.md\n$/,
    );
    const nobody = await keytrail(['requests', 'list'], { KEYTRAIL_OPERATOR_TOKEN: 'nobodys.token' });
    expect(nobody).toMatchObject({ code: 2, err: expect.stringMatching(/^keytrail: UNAUTHENTICATED|TOKEN/) });
  });

  it.each([['show'], ['nudge'], ['replay'], ['cancel', '--note', 'gone']])(
    'of %s for a key request that is not there says so, with the trace id',
    async (command, ...more) => {
      const ran = await keytrail(['requests', command, randomUUID(), ...more]);
      expect(ran).toMatchObject({ code: 1, out: '' });
      expect(ran.err).toMatch(
        /^keytrail: NOT_FOUND_OR_NOT_PERMITTED: there is no such key request \(field=key_request_id\)\ntrace id [0-9a-f]{32}\npage docs\/reasons\/not-found-or-not-permitted\.md\n$/,
      );
    },
  );

  it('of a method that is not there says that another service answers, and what said where', async () => {
    const asked = await keytrail(['conversation', randomUUID()], { KEYTRAIL_CONVERSATION_TARGET: world.target });
    expect(asked.code).toBe(1);
    expect(asked.err).toMatch(
      /^keytrail: METHOD_UNKNOWN: .*\nwhat answers at .* is not conversation, .*: see KEYTRAIL_CONVERSATION_TARGET\n/,
    );
  });
});

describe('keytrail doctor', () => {
  it.each([
    ['that is none', async () => 'garbage', 'TOKEN_INVALID'],
    [
      'of a device',
      async () => (await world.bearer(createPerson('alice').addDevice())).replace('Bearer ', ''),
      'CALLER_NOT_ALLOWED',
    ],
  ])('ends with 2 and one line about a token %s', async (_, token, reason) => {
    const ran = await keytrail(['doctor', '--skip', 'REPRODUCTION'], { KEYTRAIL_OPERATOR_TOKEN: await token() });
    expect(ran).toMatchObject({ code: 2, out: '' });
    expect(ran.err).toMatch(
      new RegExp(
        `^keytrail: the token is not taken: session at [^ ]+: ${reason}: .*KEYTRAIL_OPERATOR_TOKEN_FILE.*\\n$`,
      ),
    );
  });

  it('says of one service that does not take the token that it does not, while others do', async () => {
    const elsewhere = await world.another(
      { tokenIssuer: 'https://issuer.elsewhere' },
      { consumers: false, sweep: false },
    );
    try {
      const target = `ipv4:${world.target},${elsewhere.target}`;
      const ran = await keytrail(['--session', target, 'doctor', '--only', 'services-reachable', '-o', 'json']);
      expect(ran.code).toBe(1);
      const [{ places }] = JSON.parse(ran.out).checks;
      expect(places).toContainEqual(
        expect.objectContaining({
          where: `session at ${elsewhere.target}`,
          status: 'fail',
          hint: expect.stringContaining('does not take the token'),
        }),
      );
    } finally {
      await elsewhere.stop();
    }
  });
});

import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { operatorScope } from '@keytrail/auth';
import type { KeytrailClient } from '@keytrail/client';
import {
  ConversationOperatorService,
  ConversationService,
  DeclineReason,
  DiagnosticsService,
  ErasureState,
  IdentityKeysOperatorService,
  IdentityKeysService,
  KeyRejectionReason,
  PresenceOperatorService,
  SessionOperatorService,
  SessionService,
} from '@keytrail/contracts';
import { createGrpcTransport, type GrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import { expect, vi } from 'vitest';
import { run } from '../../packages/cli/src/program.ts';
import type { World } from './world.ts';

type Service = Parameters<World['constellation']['grpcTarget']>[0];
const services: readonly Service[] = ['identity-keys', 'conversation', 'session', 'presence'];

/** Who is there when the incidents begin: a conversation of alice and bob, and eve, who has no part in it. */
export interface Scene {
  readonly world: World;
  readonly alice: string;
  readonly bob: string;
  readonly eve: string;
  readonly phoneOfBob: KeytrailClient;
  readonly tabletOfBob: KeytrailClient;
  /** A device that no holder trusts, whose requests are declined. */
  readonly untrusted: KeytrailClient;
  readonly phoneOfEve: KeytrailClient;
  readonly conversationId: string;
  readonly sessionId: string;
  tokenOf(userId: string, deviceId: string, scopes?: readonly string[]): Promise<string>;
  /** Keeps the error of work that must fail, with the ids that its caller named. */
  refused(about: string, named: readonly string[], work: Promise<unknown>): Promise<unknown>;
  /** Keeps an answer to an operator. */
  told(where: string, answer: unknown): void;
}

const operator = ['canary-operator-olga', 'canary-console-of-olga'] as const;

function connect({ world, tokenOf }: Scene) {
  const transports: GrpcTransport[] = [];
  return {
    as<S extends DescService>(
      contract: S,
      service: Service,
      [userId, deviceId]: readonly [string, string],
      scopes: readonly string[] = [],
    ) {
      const transport = createGrpcTransport({
        target: world.constellation.grpcTarget(service),
        authorization: async () => `Bearer ${await tokenOf(userId, deviceId, scopes)}`,
      });
      transports.push(transport);
      return createClient(contract, transport);
    },
    close() {
      for (const transport of transports) transport.close();
    },
  };
}

/** What goes wrong, and who looks at it: declined and rejected keys, failing uploads, peers and stores that are away or hang, revocation, operators and an erasure. */
export async function incidents(scene: Scene): Promise<void> {
  const { as, close } = connect(scene);
  try {
    await keysThatNobodyGives(scene, as);
    await failingUploads(scene, as);
    await peersAndStores(scene, as);
    await revocation(scene);
    await operators(scene, as);
    await commands(scene);
    await erasure(scene, as);
  } finally {
    close();
  }
}

type As = ReturnType<typeof connect>['as'];

async function keysThatNobodyGives(scene: Scene, as: As): Promise<void> {
  const { bob, eve, untrusted, conversationId, sessionId, refused } = scene;
  await untrusted.attach();
  await refused('a key that holders decline', [bob, untrusted.device], openWithin(untrusted, scene, 1_000));
  const looking = as(SessionOperatorService, 'session', operator, [operatorScope]);
  await vi.waitFor(
    async () => {
      const { findings } = await looking.explainKey({
        conversationId,
        sessionId,
        userId: bob,
        deviceId: untrusted.device,
      });
      expect(findings.map(({ code }) => code)).toContain('HOLDERS_DECLINE');
    },
    { timeout: 20_000, interval: 200 },
  );

  const phone = as(SessionService, 'session', [bob, 'canary-phone-of-bob']);
  const rejection = { conversationId, sessionId, attempt: 0, reason: KeyRejectionReason.CANNOT_OPEN };
  await phone.rejectKey({ ...rejection, requestId: randomUUID() });
  const stranger = as(SessionService, 'session', [eve, 'canary-phone-of-eve']);
  const ofEve = [eve, 'canary-phone-of-eve'];
  await refused("a stranger's rejection", ofEve, stranger.rejectKey({ ...rejection, requestId: randomUUID() }));
  const { keyRequests } = await looking.findKeyRequests({ conversationId });
  const keyRequestId = keyRequests[0]?.keyRequest?.keyRequestId ?? randomUUID();
  const declined = stranger.declineOffer({ keyRequestId, attempt: 1, reason: DeclineReason.NOT_TRUSTED });
  await refused("a stranger's refusal of an offer", ofEve, declined);
  await refused("a stranger's cancelling", ofEve, stranger.cancelKeyRequest({ keyRequestId }));
  const late = phone.declineOffer({ keyRequestId, attempt: 1_000, reason: DeclineReason.NOT_TRUSTED });
  await refused('the refusal of an offer that is none', [bob, 'canary-phone-of-bob'], late);
}

async function openWithin(device: KeytrailClient, { conversationId, sessionId }: Scene, ms: number): Promise<unknown> {
  return device.openSession(conversationId, sessionId, { signal: AbortSignal.timeout(ms) });
}

async function failingUploads(scene: Scene, as: As): Promise<void> {
  const { world, bob, phoneOfBob, refused } = scene;
  const named = [bob, phoneOfBob.device];
  const phone = as(IdentityKeysService, 'identity-keys', [bob, phoneOfBob.device]);
  const kem = { keyId: 900, publicKey: new Uint8Array(1184).fill(7), signature: new Uint8Array(64).fill(7) };
  const unsigned = phone.replenishPrekeys({ requestId: randomUUID(), oneTimeKemPrekeys: [kem] });
  await refused('an upload with a wrong signature', named, unsigned);
  await away(world, 'identity_keys', 'one_time_prekeys', async () => {
    await refused('an upload that the database refuses', named, phoneOfBob.replenishPrekeys());
    const claim = { claimId: randomUUID(), devices: [{ userId: bob, deviceId: 'canary-tablet-of-bob' }] };
    await refused('a claim at a fault', [...named, 'canary-tablet-of-bob'], phone.claimPrekeyBundles(claim));
  });
}

/** While a table of it is not there. */
async function away(world: World, database: string, table: string, work: () => Promise<void>): Promise<void> {
  const urls: Readonly<Record<string, string>> = world.constellation.databaseUrls;
  const sql = new pg.Client({ connectionString: urls[database] ?? urls[database.replaceAll('_', '-')] });
  await sql.connect();
  try {
    await sql.query(`ALTER TABLE ${table} RENAME TO away`);
    await work();
  } finally {
    await sql.query(`ALTER TABLE IF EXISTS away RENAME TO ${table}`);
    await sql.end();
  }
}

async function peersAndStores(scene: Scene, as: As): Promise<void> {
  const { world, alice, bob, eve, phoneOfBob, tabletOfBob, conversationId, refused, told } = scene;
  const { constellation } = world;
  const named = [bob, phoneOfBob.device];
  const sessionId = 'canary-session-that-is-not';
  const looking = as(SessionOperatorService, 'session', operator, [operatorScope]);

  const [conversation] = constellation.of('conversation');
  await conversation?.process.kill('SIGSTOP');
  try {
    await refused('a miss while a peer hangs', named, phoneOfBob.openSession(conversationId, sessionId));
    const reader = { conversationId, sessionId: scene.sessionId, userId: bob, deviceId: phoneOfBob.device };
    told('explainKey while a peer hangs', await looking.explainKey(reader, { timeoutMs: 10_000 }));
  } finally {
    await conversation?.process.kill('SIGCONT');
  }

  const [identityKeys] = constellation.of('identity-keys');
  await identityKeys?.process.kill('SIGKILL');
  try {
    const miss = phoneOfBob.openSession(conversationId, sessionId);
    await refused('a miss while a peer is away', named, miss);
    const created = as(ConversationService, 'conversation', [bob, phoneOfBob.device]).addMembers({
      requestId: randomUUID(),
      conversationId,
      expectedRosterVersion: 1n,
      members: [{ userId: eve }],
    });
    await refused('new members while a peer is away', [...named, eve], created);
  } finally {
    await identityKeys?.process.restart();
  }

  const sql = new pg.Client({ connectionString: constellation.databaseUrls.session });
  await sql.connect();
  try {
    await sql.query('BEGIN');
    await sql.query('LOCK TABLE envelopes IN ACCESS EXCLUSIVE MODE');
    const reading = as(SessionService, 'session', [bob, phoneOfBob.device]);
    const hung = reading.getInitialSession({ conversationId, sessionId }, { timeoutMs: 1_000 });
    await refused('a store that hangs', named, hung);
    const onTheWeb = tabletOfBob.openSession(conversationId, sessionId, { signal: AbortSignal.timeout(2_000) });
    await refused('a store that hangs, on the web', [bob, tabletOfBob.device], onTheWeb);
  } finally {
    await sql.query('ROLLBACK');
    await sql.end();
  }
  // Whoever was away is asked again before what follows needs it.
  await vi.waitFor(() => phoneOfBob.getConversation(conversationId), { timeout: 20_000, interval: 200 });
  await vi.waitFor(() => phoneOfBob.safetyNumber(alice), { timeout: 20_000, interval: 200 });
}

async function revocation(scene: Scene): Promise<void> {
  const { bob, phoneOfBob, untrusted, refused, conversationId } = scene;
  await phoneOfBob.revokeDevice(untrusted.device);
  const named = [bob, untrusted.device];
  await vi.waitFor(
    () => expect(untrusted.messages(conversationId)).rejects.toMatchObject({ reason: 'DEVICE_REVOKED' }),
    {
      timeout: 20_000,
      interval: 200,
    },
  );
  await refused('a revoked device', named, untrusted.messages(conversationId));
  await refused('a revoked device that attaches', named, untrusted.attach());
  await refused("a revoked device's key", named, untrusted.requestKey(conversationId, scene.sessionId));
}

async function operators(scene: Scene, as: As): Promise<void> {
  const { alice, bob, eve, conversationId, sessionId, phoneOfBob, refused, told } = scene;
  const reader = { conversationId, sessionId, userId: bob, deviceId: phoneOfBob.device };
  const unknown = {
    ...reader,
    deviceId: '',
    userId: '',
    devicePseudonym: '0'.repeat(16),
    userPseudonym: 'f'.repeat(16),
  };
  const id = { keyRequestId: randomUUID() };
  const clientsOf = (who: readonly [string, string], scopes?: readonly string[]) => ({
    session: as(SessionOperatorService, 'session', who, scopes),
    devices: as(IdentityKeysOperatorService, 'identity-keys', who, scopes),
    conversation: as(ConversationOperatorService, 'conversation', who, scopes),
    presence: as(PresenceOperatorService, 'presence', who, scopes),
    processes: services.map((service) => as(DiagnosticsService, service, who, scopes)),
  });
  const views = clientsOf(operator, [operatorScope]);
  const answers = {
    explainKey: () => views.session.explainKey(reader),
    findSessions: () => views.session.findSessions({ conversationId }),
    findKeyRequests: () => views.session.findKeyRequests({ userId: bob }),
    findDevices: () => views.devices.findDevices({ userId: bob }),
    describeConversation: () => views.conversation.describeConversation({ conversationId, userId: bob }),
    findAttached: () => views.presence.findAttached({ userIds: [alice, bob] }),
    describeGateways: () => views.presence.describeGateways({}),
    ...Object.fromEntries(
      views.processes.flatMap((process, at) => [
        [`describeProcess of ${services[at]}`, () => process.describeProcess({})],
        [`runChecks of ${services[at]}`, () => process.runChecks({})],
        [`listDeadLetters of ${services[at]}`, () => process.listDeadLetters({})],
        [`getRestoreFence of ${services[at]}`, () => process.getRestoreFence({})],
      ]),
    ),
  };
  for (const [name, answer] of Object.entries<() => Promise<unknown>>(answers)) told(name, await answer());

  await refused('an explanation for nobody', operator, views.session.explainKey(unknown));
  await refused('a request that is none', operator, views.session.nudgeKeyRequest(id));
  await refused('an end of none', operator, views.session.endKeyRequest({ ...id, note: 'asked for' }));
  await refused('a replay of none', operator, views.session.replayKeyRequest(id));
  await refused('devices of nobody', operator, views.devices.findDevices({ userPseudonym: 'not one' }));
  const strange = { conversationId: randomUUID() };
  await refused('no conversation', operator, views.conversation.describeConversation(strange));
  await refused('attached, too many', operator, views.presence.findAttached({ limit: 1_000_000 }));
  for (const process of views.processes)
    await refused('a dead letter that is none', operator, process.replayDeadLetter({ deadLetterId: 999_999n }));

  // Whoever is none is told nothing, and names those of whom it asks.
  const ofEve = [eve, 'canary-phone-of-eve'] as const;
  const without = clientsOf(ofEve);
  const asked = [...ofEve, bob, phoneOfBob.device];
  for (const [name, call] of Object.entries({
    explainKey: () => without.session.explainKey(reader),
    findDevices: () => without.devices.findDevices({ userId: bob }),
    describeConversation: () => without.conversation.describeConversation({ conversationId }),
    findAttached: () => without.presence.findAttached({ userIds: [bob] }),
    deleteUser: () =>
      as(IdentityKeysService, 'identity-keys', ofEve).deleteUser({
        requestId: randomUUID(),
        userId: bob,
        auditNote: 'eve wants it',
      }),
    describeProcess: () => Promise.all(without.processes.map((process) => process.describeProcess({}))),
  }))
    await refused(`${name} by a stranger who is no operator`, asked, call());
}

async function commands(scene: Scene): Promise<void> {
  const { world, bob, conversationId, sessionId, phoneOfBob, tokenOf, told } = scene;
  const folder = mkdtempSync(join(tmpdir(), 'keytrail-canaries-'));
  const tokenFile = join(folder, 'operator.token');
  writeFileSync(tokenFile, await tokenOf(...operator, [operatorScope]), { mode: 0o600 });
  const environment = {
    KEYTRAIL_OPERATOR_TOKEN_FILE: tokenFile,
    ...Object.fromEntries(
      services.map((service) => [
        `KEYTRAIL_${service.toUpperCase().replace('-', '_')}_TARGET`,
        world.constellation.grpcTarget(service),
      ]),
    ),
  };
  try {
    for (const args of [
      ['explain', '--conversation', conversationId, '--session', sessionId, '--device', `${bob}/${phoneOfBob.device}`],
      ['explain', '--conversation', conversationId, '--user', bob],
      ['explain', '--conversation', conversationId, '--device', 'nobody/nothing'],
      ['sessions', conversationId],
      ['devices', bob],
      ['online', bob],
      ['conversation', conversationId],
      ['requests', 'list', '--user', bob],
      ['requests', 'show', randomUUID()],
      ['dead-letters', '--of', 'session', 'list'],
    ])
      for (const form of [[], ['--json']]) {
        let text = '';
        const write = (more: string) => {
          text += `${more}\n`;
        };
        await run([...args, ...form], { environment, out: write, say: write });
        expect(text, args.join(' ')).not.toBe('');
        told(`keytrail ${args[0]}`, text);
      }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function erasure(scene: Scene, as: As): Promise<void> {
  const { eve, phoneOfEve, conversationId, sessionId, refused, told } = scene;
  const service = as(IdentityKeysService, 'identity-keys', operator, [operatorScope]);
  const auditNote = 'the user asked for it';
  const begun = await service.deleteUser({ requestId: randomUUID(), userId: eve, auditNote });
  const erasureId = begun.erasure?.erasureId ?? '';
  const ended = await vi.waitFor(
    async () => {
      const answer = await service.getErasure({ erasureId });
      expect(answer.erasure?.state).toBe(ErasureState.COMPLETED);
      return answer;
    },
    { timeout: 30_000, interval: 100 },
  );
  told('getErasure', ended);
  const named = [eve, phoneOfEve.device];
  await refused('an erased stranger', named, phoneOfEve.openSession(conversationId, sessionId));
  await refused('an erased stranger who uploads', named, phoneOfEve.replenishPrekeys());
  await refused('an erasure that is none', operator, service.getErasure({ erasureId: randomUUID() }));
}

import { randomBytes, randomUUID } from 'node:crypto';
import { create, equals, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { createAuthenticator, createServiceIdentity, operatorScope, type ServiceName } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import {
  type Conversation,
  ConversationKind,
  ConversationService,
  type DeviceCertificate,
  type DeviceRef,
  HistoryPolicy,
  IdentityKeysService,
  type InitialSession,
  InitialSessionSchema,
  MemberRole,
  PresenceService,
  type SessionHeaderSchema,
  SessionService,
  type SignedRosterChange,
  type StoreSessionRequest,
  StoreSessionRequestSchema,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createRootKey,
  deriveConversationId,
  type KeyPair,
  messageText,
  parseHeader,
  type RosterMember,
  type RosterPermissions,
  rosterHash,
  type Session,
  signHeader,
  signRosterChange,
  type UnsignedRosterChange,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import { ensureNats, ensurePostgres, type PostgresOptions } from '@keytrail/local';
import {
  createGrpcTransport,
  type GrpcTransport,
  type Refusal,
  readRefusal,
  refuse,
  startServer,
  unary,
} from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase, statement } from '@keytrail/storage';
import { startTelemetry } from '@keytrail/telemetry';
import {
  type AtFaultPoint,
  conversationSettings,
  createConversationServer,
  type FaultPoint,
  migrationsFolder,
  readConfig,
} from '../src/service.ts';

export type ConversationClient = Client<typeof ConversationService>;

/** A device of a user, with its private keys and a client that calls as this device. */
export interface TestDevice extends DeviceRef {
  readonly identityKey: KeyPair;
  readonly signingKey: KeyPair;
  readonly certificate: DeviceCertificate;
  readonly client: ConversationClient;
  readonly web: ConversationClient;
}

export interface TestUser {
  readonly userId: string;
  readonly devices: readonly TestDevice[];
  /** The first device. */
  readonly device: TestDevice;
}

/** A service conversation with real servers below it and, over the real wire, stand-ins for its peers. */
export interface Harness extends AsyncDisposable {
  readonly db: Database;
  readonly databaseUrl: string;
  readonly issuer: Issuer;
  readonly natsUrl: string;
  /** What the stand-in for session has stored, by `conversation/session`. */
  readonly stored: Map<string, StoreSessionRequest>;
  /** Called at each fault point of the service. */
  atFaultPoint: AtFaultPoint;
  /** Devices that the stand-in for presence tells as online; tests add to it and take away. */
  readonly online: Set<DeviceRef>;
  /** Called when the stand-in for session is asked to store. */
  beforeStore: (request: StoreSessionRequest) => Promise<void>;
  readonly services: ConversationClient;
  readonly stranger: { readonly grpc: Transport; readonly web: Transport };
  /** A transport with an operator's token, or with a service's identity. */
  asOperator(): Promise<Transport>;
  asService(service: ServiceName): Transport;
  reconcile(ageMs?: number): Promise<{ aborted: number; committed: number; failed: number }>;
  /** Registers a user with some devices; ids are random. */
  user(devices?: number): Promise<TestUser>;
  addDevice(user: TestUser): Promise<TestDevice>;
  revoke(device: DeviceRef): void;
  /** What the stand-in for identity-keys lists as revoked, in the order of their numbers; tests add to it. */
  readonly revocations: { readonly userId: string; readonly deviceId: string }[];
  deviceListVersion(userId: string): bigint;
  activeDevices(userIds: readonly string[]): DeviceRef[];
  query<R>(text: string, ...values: unknown[]): Promise<R[]>;
  /** A call as a device of its own choosing, on both wires. */
  readonly grpcTarget: string;
  readonly webUrl: string;
  environment(): Record<string, string>;
}

interface KnownUser {
  readonly rootKey: KeyPair;
  version: bigint;
  readonly devices: (TestDevice & { addedInVersion: bigint; revoked: boolean })[];
}

export async function startHarness(
  overrides: Record<string, string> = {},
  postgresOptions?: PostgresOptions,
): Promise<Harness> {
  await using stack = new AsyncDisposableStack();
  const [postgres, nats] = await Promise.all([ensurePostgres(postgresOptions), ensureNats()]);
  stack.use(postgres);
  stack.use(nats);
  const issuer = await startIssuer({ environment: 'development' });
  stack.defer(() => issuer.stop());
  const name = `conversation_${randomBytes(4).toString('hex')}`;
  const databaseUrl = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: name });
  await migrateDatabase({ url: databaseUrl, migrations: migrationsFolder });
  const db = openDatabase({ url: databaseUrl, service: 'test', connections: 4, statementTimeoutMs: 10_000 });
  stack.defer(() => db.close());

  const environment: Record<string, string> = {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: 'silent',
    KEYTRAIL_DATABASE_URL: databaseUrl,
    KEYTRAIL_DATABASE_CONNECTIONS: '30',
    KEYTRAIL_NATS_URL: nats.url,
    KEYTRAIL_JWKS_URL: issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
    KEYTRAIL_SERVICE_CREDENTIAL: randomBytes(24).toString('hex'),
    KEYTRAIL_PEER_IDENTITY_KEYS: 'unset',
    KEYTRAIL_PEER_SESSION: 'unset',
    KEYTRAIL_PEER_PRESENCE: 'unset',
    KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '0',
    KEYTRAIL_RECONCILE_INTERVAL_MS: '3600000',
    ...overrides,
  };
  const config = readSettings(conversationSettings, environment);
  const telemetry = startTelemetry({ service: 'conversation', config });
  stack.defer(() => telemetry.shutdown());
  const authenticator = createAuthenticator(config);

  const users = new Map<string, KnownUser>();
  const stored = new Map<string, StoreSessionRequest>();
  const discarded = new Set<string>();
  const revocations: { userId: string; deviceId: string }[] = [];
  const allow = ['service:conversation'] as const;
  const identityKeys = await startServer({
    service: 'identity-keys',
    services: [IdentityKeysService],
    config,
    authenticator,
    telemetry,
    rpcs: [
      unary(IdentityKeysService.method.listRevokedDevices, {
        allow,
        handle({ after }) {
          const numbered = revocations.map((device, index) => ({ number: BigInt(index + 1), device }));
          const rest = numbered.filter(({ number }) => number > after);
          return { revocations: rest.slice(0, 2), more: rest.length > 2 };
        },
      }),
      unary(IdentityKeysService.method.getDevices, {
        allow,
        handle: ({ userIds, includeRevoked }) => ({
          deviceLists: userIds.map((userId) => {
            const known = users.get(userId);
            return {
              userId,
              version: known?.version ?? 0n,
              rootKey: known?.rootKey.publicKey ?? new Uint8Array(),
              devices: (known?.devices ?? [])
                .filter(({ revoked }) => includeRevoked || !revoked)
                .map((device) => ({
                  userId,
                  deviceId: device.deviceId,
                  identityKey: device.identityKey.publicKey,
                  signingKey: device.signingKey.publicKey,
                  certificate: device.certificate,
                  addedInVersion: device.addedInVersion,
                  ...(device.revoked && { revokedAt: timestampNow() }),
                })),
            };
          }),
        }),
      }),
    ],
  });
  stack.defer(() => identityKeys.stop());
  const sessions = await startServer({
    service: 'session',
    services: [SessionService],
    config,
    authenticator,
    telemetry,
    rpcs: [
      unary(SessionService.method.storeSession, {
        allow,
        async handle(request) {
          await harness.beforeStore(request);
          const { sessionId } = parse(request);
          const key = `${request.conversationId}/${sessionId}`;
          if (discarded.has(key)) throw refuse('SESSION_ABORTED', 'discarded', { metadata: { session_id: sessionId } });
          const before = stored.get(key);
          if (before && !equals(StoreSessionRequestSchema, before, request))
            throw refuse('SESSION_CONFLICT', 'stored with other content', { metadata: { session_id: sessionId } });
          stored.set(key, request);
          const envelopes = request.session?.envelopes.length ?? 0;
          return { envelopesWritten: envelopes, envelopesExpected: envelopes, alreadyStored: before !== undefined };
        },
      }),
      unary(SessionService.method.discardSession, {
        allow,
        handle({ conversationId, sessionId }) {
          discarded.add(`${conversationId}/${sessionId}`);
          return { discarded: stored.delete(`${conversationId}/${sessionId}`) };
        },
      }),
    ],
  });
  stack.defer(() => sessions.stop());
  const online = new Set<DeviceRef>();
  const presence = await startServer({
    service: 'presence',
    services: [PresenceService],
    config,
    authenticator,
    telemetry,
    rpcs: [
      unary(PresenceService.method.listOnline, {
        allow,
        handle: ({ userIds }) => ({
          devices: [...online]
            .filter(({ userId }) => userIds.includes(userId))
            .map(({ userId, deviceId }) => ({ device: { userId, deviceId }, attachedAt: timestampNow() })),
        }),
      }),
    ],
  });
  stack.defer(() => presence.stop());
  environment.KEYTRAIL_PEER_PRESENCE = `127.0.0.1:${presence.grpcPort}`;
  environment.KEYTRAIL_PEER_IDENTITY_KEYS = `127.0.0.1:${identityKeys.grpcPort}`;
  environment.KEYTRAIL_PEER_SESSION = `127.0.0.1:${sessions.grpcPort}`;

  const server = createConversationServer(readConfig(environment), {
    telemetry,
    atFaultPoint: (point) => harness.atFaultPoint(point),
  });
  const { grpcPort, webPort } = await server.start();
  stack.defer(() => server.stop());
  const grpcTarget = `127.0.0.1:${grpcPort}`;
  const webUrl = `http://127.0.0.1:${webPort}`;

  const transports: GrpcTransport[] = [];
  stack.defer(() => {
    for (const transport of transports) transport.close();
  });
  function grpc(authorization: () => string): GrpcTransport {
    const transport = createGrpcTransport({ target: grpcTarget, authorization, retry: { retries: 0 } });
    transports.push(transport);
    return transport;
  }

  function web(authorization: () => string): Transport {
    return createConnectTransport({
      baseUrl: webUrl,
      httpVersion: '1.1',
      useBinaryFormat: false,
      interceptors: [
        (next) => (request) => {
          request.header.set('authorization', authorization());
          return next(request);
        },
      ],
    });
  }

  async function addDevice(userId: string): Promise<TestDevice> {
    const known = users.get(userId);
    if (!known) throw new Error(`no user ${userId}`);
    const deviceId = `device-${known.devices.length + 1}`;
    const identityKey = primitives.x25519.keyPair();
    const signingKey = primitives.ed25519.keyPair();
    const keys = { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
    const token = await issuer.token({ userId, deviceId });
    const transport = grpc(() => `Bearer ${token}`);
    known.version += 1n;
    const device = {
      $typeName: 'keytrail.common.v1.DeviceRef' as const,
      userId,
      deviceId,
      identityKey,
      signingKey,
      certificate: certifyDevice(primitives, known.rootKey, keys, new Date()),
      client: createClient(ConversationService, transport),
      web: createClient(
        ConversationService,
        web(() => `Bearer ${token}`),
      ),
      addedInVersion: known.version,
      revoked: false,
    };
    known.devices.push(device);
    return device;
  }

  const identity = createServiceIdentity(config, 'session');
  const unknown = await issuer.token({ userId: 'somebody-else', deviceId: 'phone' });
  const resources = stack.move();
  const harness: Harness = {
    db,
    databaseUrl,
    issuer,
    natsUrl: nats.url,
    stored,
    online,
    revocations,
    grpcTarget,
    webUrl,
    atFaultPoint: async () => {},
    beforeStore: async () => {},
    services: createClient(
      ConversationService,
      grpc(() => identity.header()),
    ),
    stranger: { grpc: grpc(() => `Bearer ${unknown}`), web: web(() => `Bearer ${unknown}`) },
    async asOperator() {
      const token = await issuer.token({ userId: 'ops', deviceId: 'console', scopes: [operatorScope] });
      return grpc(() => `Bearer ${token}`);
    },
    asService(service) {
      const credential = createServiceIdentity(config, service);
      return grpc(() => credential.header());
    },
    reconcile: (ageMs = 0) => server.reconcile(ageMs),
    environment: () => ({ ...environment }),
    async user(devices = 1) {
      const userId = `user-${randomBytes(5).toString('hex')}`;
      users.set(userId, { rootKey: createRootKey(primitives), version: 0n, devices: [] });
      const made: TestDevice[] = [];
      for (let index = 0; index < devices; index++) made.push(await addDevice(userId));
      return { userId, devices: made, device: made[0] as TestDevice };
    },
    addDevice: ({ userId }) => addDevice(userId),
    revoke({ userId, deviceId }) {
      const known = users.get(userId);
      const device = known?.devices.find((candidate) => candidate.deviceId === deviceId);
      if (!known || !device) throw new Error('no such device');
      device.revoked = true;
      known.version += 1n;
    },
    deviceListVersion: (userId) => users.get(userId)?.version ?? 0n,
    activeDevices: (userIds) =>
      userIds.flatMap((userId) => users.get(userId)?.devices.filter(({ revoked }) => !revoked) ?? []),
    query: (text, ...values) => db.query(statement(`test_${text.length}_${hashOf(text)}`, text), values),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
  return harness;
}

function parse(request: StoreSessionRequest): { sessionId: string } {
  const header = request.session?.signedHeader?.header;
  if (!header) throw new Error('no header');
  return parseHeader(header);
}

function hashOf(text: string): string {
  let hash = 0;
  for (const character of text) hash = (hash * 31 + (character.codePointAt(0) ?? 0)) | 0;
  return (hash >>> 0).toString(16);
}

type HeaderInit = MessageInitShape<typeof SessionHeaderSchema>;

export interface SessionOptions {
  readonly conversationId: string;
  readonly sessionId?: string;
  readonly epoch?: bigint;
  readonly rosterVersion?: bigint;
  readonly members: readonly { readonly userId: string; readonly role: MemberRole }[];
  readonly historyPolicy?: HistoryPolicy;
  readonly previousHeaderHash?: Uint8Array;
  /** Laid over the header before it is signed. */
  readonly header?: Readonly<Record<string, unknown>>;
  /** The devices to seal to; by default all active ones of the members. */
  readonly recipients?: readonly DeviceRef[];
}

/** A session with a true header; the contents of the envelopes are random, because conversation never looks into them. */
export function makeSession(
  harness: Harness,
  initiator: TestDevice,
  options: SessionOptions,
): { upload: InitialSession; session: Session } {
  const { conversationId, members } = options;
  const ephemeral = primitives.x25519.keyPair();
  const { signedHeader, session } = signHeader(primitives, initiator.signingKey, {
    suite: 1,
    conversationId,
    sessionId: options.sessionId ?? `session_${randomUUID()}`,
    epoch: options.epoch ?? 1n,
    rosterVersion: options.rosterVersion ?? 1n,
    rosterHash: rosterHash(members),
    deviceLists: members.map(({ userId }) => ({ userId, version: harness.deviceListVersion(userId) })),
    initiator: { userId: initiator.userId, deviceId: initiator.deviceId },
    initiatorIdentityKey: initiator.identityKey.publicKey,
    initiatorSigningKey: initiator.signingKey.publicKey,
    initiatorEphemeralKey: ephemeral.publicKey,
    keyCommitment: randomBytes(32),
    historyPolicy: options.historyPolicy ?? HistoryPolicy.OWN_MEMBERSHIP,
    ...(options.previousHeaderHash && { previousHeaderHash: options.previousHeaderHash }),
    createdAt: timestampNow(),
    ...options.header,
  } as HeaderInit);
  const recipients = options.recipients ?? harness.activeDevices(members.map(({ userId }) => userId));
  const upload = create(InitialSessionSchema, {
    signedHeader,
    initiatorCertificate: initiator.certificate,
    envelopes: recipients.map(({ userId, deviceId }) => ({
      recipient: { userId, deviceId },
      sealer: { userId: initiator.userId, deviceId: initiator.deviceId },
      sealerIdentityKey: initiator.identityKey.publicKey,
      sealerSigningKey: initiator.signingKey.publicKey,
      sealerCertificate: initiator.certificate,
      sealerEphemeralKey: ephemeral.publicKey,
      signedPrekeyId: 1,
      kemPrekeyId: 1,
      kemCiphertext: randomBytes(1088),
      ciphertext: randomBytes(48),
      signature: randomBytes(64),
    })),
  });
  return { upload, session };
}

export interface CreateRequest {
  readonly requestId: string;
  readonly kind: ConversationKind;
  readonly members: { userId: string; role: MemberRole }[];
  readonly initialSession: InitialSession;
  readonly signedRoster: SignedRosterChange;
}

/** A request for a new conversation of the initiator with others. */
export function creation(
  harness: Harness,
  initiator: TestDevice,
  others: readonly { readonly userId: string }[],
  options: Partial<SessionOptions> & {
    readonly kind?: ConversationKind;
    readonly requestId?: string;
    readonly permissions?: RosterPermissions;
    /** Laid over what is signed of the roster. */
    readonly roster?: Partial<UnsignedRosterChange>;
  } = {},
): { request: CreateRequest; session: Session } {
  const requestId = options.requestId ?? randomUUID();
  const members = [
    { userId: initiator.userId, role: MemberRole.ADMIN },
    ...others.map(({ userId }) => ({ userId, role: MemberRole.MEMBER })),
  ];
  const { upload, session } = makeSession(harness, initiator, {
    conversationId: deriveConversationId(initiator.userId, requestId),
    members,
    ...options,
  });
  const signedRoster = signRosterChange(primitives, initiator, {
    conversationId: deriveConversationId(initiator.userId, requestId),
    rosterVersion: 1n,
    previousHash: new Uint8Array(),
    added: members,
    permissions: options.permissions ?? adminsOnly,
    historyPolicy: options.historyPolicy ?? HistoryPolicy.OWN_MEMBERSHIP,
    madeAt: new Date(),
    ...options.roster,
  });
  return {
    request: { requestId, kind: options.kind ?? ConversationKind.GROUP, members, initialSession: upload, signedRoster },
    session,
  };
}

export const adminsOnly: RosterPermissions = {
  addMembers: MemberRole.ADMIN,
  removeMembers: MemberRole.ADMIN,
  changePolicy: MemberRole.ADMIN,
};

type ChangeContent = Omit<
  UnsignedRosterChange,
  'conversationId' | 'rosterVersion' | 'previousHash' | 'madeAt' | 'historyPolicy'
> & { readonly historyPolicy?: HistoryPolicy };
type KnownRoster = Pick<Conversation, 'conversationId' | 'rosterVersion' | 'rosterHead'>;

/** What a device signs to change the roster of a conversation as it knows it. `other` is laid over what it says. */
export function signedChange(
  by: TestDevice,
  { conversationId, rosterVersion, rosterHead }: KnownRoster,
  content: ChangeContent,
  other: Partial<UnsignedRosterChange> = {},
): SignedRosterChange {
  return signRosterChange(primitives, by, {
    conversationId,
    rosterVersion: rosterVersion + 1n,
    previousHash: rosterHead,
    madeAt: new Date(),
    ...content,
    ...other,
  });
}

/** A request for a change of a roster, as the device knows the conversation. */
function changeBy(by: TestDevice, known: KnownRoster, content: ChangeContent) {
  return {
    requestId: randomUUID() as string,
    conversationId: known.conversationId,
    expectedRosterVersion: known.rosterVersion,
    signedChange: signedChange(by, known, content),
  };
}

export function adding(by: TestDevice, known: KnownRoster, members: readonly RosterMember[]) {
  return { ...changeBy(by, known, { added: members }), members: members.map((member) => ({ ...member })) };
}

export function removing(by: TestDevice, known: KnownRoster, userIds: readonly string[]) {
  return { ...changeBy(by, known, { removed: userIds }), userIds: [...userIds] };
}

export function givingRoles(by: TestDevice, known: KnownRoster, members: readonly RosterMember[]) {
  return { ...changeBy(by, known, { roles: members }), members: members.map((member) => ({ ...member })) };
}

export function changingPolicy(
  by: TestDevice,
  known: KnownRoster,
  policy: { readonly permissions?: RosterPermissions; readonly historyPolicy?: HistoryPolicy },
) {
  return { ...changeBy(by, known, policy), ...policy };
}

/** Makes a conversation and returns it with its first session. */
export async function createdBy(
  harness: Harness,
  initiator: TestDevice,
  others: readonly { readonly userId: string }[],
  options: Parameters<typeof creation>[3] = {},
): Promise<{ conversation: Conversation; session: Session }> {
  const { request, session } = creation(harness, initiator, others, options);
  const { conversation } = await initiator.client.createConversation(request);
  if (!conversation) throw new Error('no conversation in the answer');
  return { conversation, session };
}

export interface RotateRequest {
  readonly requestId: string;
  readonly conversationId: string;
  readonly expectedEpoch: bigint;
  readonly expectedRosterVersion: bigint;
  readonly session: InitialSession;
}

/** A request for the next epoch of a conversation as the initiator knows it. */
export function rotation(
  harness: Harness,
  initiator: TestDevice,
  known: Conversation,
  options: Partial<SessionOptions> & { readonly requestId?: string } = {},
): { request: RotateRequest; session: Session } {
  const { upload, session } = makeSession(harness, initiator, {
    conversationId: known.conversationId,
    epoch: known.epoch + 1n,
    rosterVersion: known.rosterVersion,
    members: known.members,
    historyPolicy: known.historyPolicy,
    previousHeaderHash: known.headerHash,
    ...options,
  });
  return {
    request: {
      requestId: options.requestId ?? randomUUID(),
      conversationId: known.conversationId,
      expectedEpoch: known.epoch,
      expectedRosterVersion: known.rosterVersion,
      session: upload,
    },
    session,
  };
}

export async function rotatedBy(
  harness: Harness,
  initiator: TestDevice,
  known: Conversation,
): Promise<{ conversation: Conversation; session: Session }> {
  const { request, session } = rotation(harness, initiator, known);
  const { conversation } = await initiator.client.rotateSession(request);
  if (!conversation) throw new Error('no conversation in the answer');
  return { conversation, session };
}

/** A signed message of random content. */
export function message(
  sender: TestDevice,
  session: Session,
  senderCounter: bigint,
  requestId: string = randomUUID(),
  bytes = 40,
) {
  const ciphertext = new Uint8Array(randomBytes(bytes));
  const text = messageText(session, sender, senderCounter, ciphertext);
  return {
    requestId,
    conversationId: session.conversationId,
    sessionId: session.sessionId,
    senderCounter,
    ciphertext,
    signature: primitives.ed25519.sign(sender.signingKey.privateKey, text),
  };
}

/** What a call was refused with; fails when it was not. */
export async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  try {
    await call;
  } catch (error) {
    return readRefusal(error);
  }
  throw new Error('the call was not refused');
}

/** A gate at a fault point: `reached` resolves when somebody waits there, `open` lets everybody pass. */
export function gateAt(point: FaultPoint): { at: AtFaultPoint; reached: Promise<void>; open(): void } {
  const reached = Promise.withResolvers<void>();
  const opened = Promise.withResolvers<void>();
  return {
    async at(here) {
      if (here !== point) return;
      reached.resolve();
      await opened.promise;
    },
    reached: reached.promise,
    open: () => opened.resolve(),
  };
}

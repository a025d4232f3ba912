import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { create, type DescMessage, fromJsonString, type MessageInitShape, toJsonString } from '@bufbuild/protobuf';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import {
  ClaimPrekeyBundlesResponseSchema,
  type Conversation,
  ConversationKind,
  CreateConversationRequestSchema,
  type DeviceCertificate,
  DeviceCertificateSchema,
  FulfillKeyRequestRequestSchema,
  GetConversationResponseSchema,
  GetDevicesResponseSchema,
  GetInitialSessionResponseSchema,
  HistoryPolicy,
  type InitialSession,
  InitialSessionSchema,
  ListKeyRequestsResponseSchema,
  MemberRole,
  RegisterDeviceRequestSchema,
  RotateSessionRequestSchema,
  type SignedHeader,
  SignedHeaderSchema,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createKemPrekey,
  createOneTimePrekey,
  createRootKey,
  createSignedPrekey,
  deriveConversationId,
  type KeyPair,
  keyCommitment,
  openEnvelope,
  parseHeader,
  type Ref,
  rosterHash,
  sealEnvelope,
  signHeader,
  signRosterChange,
  suite,
  type VerifiedRecipient,
  verifyBundle,
  verifyDevice,
  verifyHeader,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';

const usage = `Usage: node docs/examples/bodies.ts [--keys <folder>] <what> <user> <device> [<argument>...]

Prints the JSON body of a call, made and signed for <user>'s <device>. Files are answers of earlier calls, as curl saved them.

  register                                       RegisterDevice
  conversation <other user> <ClaimPrekeyBundles> CreateConversation, with the initial session
  rotation <GetDevices> <GetConversation>        RotateSession
  envelope <GetDevices> <ListKeyRequests>        FulfillKeyRequest for the first request, as a holder of the session's key
  open <GetDevices> <GetInitialSession>          no call: opens the session's key and tells whether all of it verifies

Private keys are kept readable in <folder>, by default .local/examples: they are examples, to be thrown away. A device of
a real application uses @keytrail/client, which also pins root keys, checks device logs and forgets spent prekeys.`;

/** What is kept of a device: private keys in base64. The root key is the user's, and all example devices of a user have it. */
interface ExampleDevice {
  readonly identityKey: KeyPair;
  readonly signingKey: KeyPair;
  readonly signedPrekey: KeyPair;
  readonly lastResortPrekey: KeyPair;
  readonly oneTimePrekey: KeyPair;
  readonly oneTimeKemPrekey: KeyPair;
  readonly certificate: DeviceCertificate;
  readonly register: string;
}

interface SessionPlace {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
  readonly members: readonly { readonly userId: string; readonly role: MemberRole }[];
  readonly historyPolicy: HistoryPolicy;
  readonly previousHeaderHash: Uint8Array;
}

const oneTimeId = 1;
/** KEM prekeys of both kinds share their ids: 1 is the last-resort prekey's. */
const oneTimeKemId = 2;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { keys: { type: 'string', default: '.local/examples' }, help: { type: 'boolean', short: 'h' } },
});
const [what = '', userId = '', deviceId = '', ...args] = positionals;
const folder = values.keys;
const self = { userId, deviceId };
const recipes: Readonly<Record<string, () => string>> = { register, conversation, rotation, envelope, open };
const recipe = recipes[what];
if (values.help || !recipe || deviceId === '') {
  (values.help ? console.log : console.error)(usage);
  process.exit(values.help ? 0 : 64);
}
mkdirSync(folder, { recursive: true, mode: 0o700 });
console.log(recipe());

function register(): string {
  return (find(`${userId}.${deviceId}`, deviceFromText) ?? newDevice()).register;
}

function conversation(): string {
  const [other = '', bundles] = args;
  const { users, results } = read(bundles, ClaimPrekeyBundlesResponseSchema);
  const recipients = results.flatMap(({ bundle }) => {
    const rootKey = users.find((user) => user.userId === bundle?.userId)?.rootKey;
    return bundle && rootKey ? [verifyBundle(primitives, bundle, rootKey)] : [];
  });
  const deviceLists = users.map((user) => ({ userId: user.userId, version: user.deviceListVersion }));
  const requestId = randomUUID();
  const members = [
    { userId, role: MemberRole.ADMIN },
    { userId: other, role: MemberRole.MEMBER },
  ];
  const initialSession = newSession(recipients, deviceLists, {
    conversationId: deriveConversationId(userId, requestId),
    epoch: 1n,
    rosterVersion: 1n,
    members,
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    previousHeaderHash: new Uint8Array(),
  });
  const { ADMIN } = MemberRole;
  const signedRoster = signRosterChange(primitives, sealer(), {
    conversationId: deriveConversationId(userId, requestId),
    rosterVersion: 1n,
    previousHash: new Uint8Array(),
    added: members,
    permissions: { addMembers: ADMIN, removeMembers: ADMIN, changePolicy: ADMIN },
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    madeAt: new Date(),
  });
  const kind = ConversationKind.DIRECT;
  return json(CreateConversationRequestSchema, { requestId, kind, members, initialSession, signedRoster });
}

function rotation(): string {
  const [devices, conversationFile] = args;
  const current = read(conversationFile, GetConversationResponseSchema).conversation as Conversation;
  const { deviceLists } = read(devices, GetDevicesResponseSchema);
  const versions = deviceLists.map(({ userId, version }) => ({ userId, version }));
  const session = newSession(recipientsOf(devices), versions, {
    ...current,
    epoch: current.epoch + 1n,
    previousHeaderHash: current.headerHash,
  });
  return json(RotateSessionRequestSchema, {
    requestId: randomUUID(),
    conversationId: current.conversationId,
    expectedEpoch: current.epoch,
    expectedRosterVersion: current.rosterVersion,
    session,
  });
}

function envelope(): string {
  const [devices, requests] = args;
  const [request] = read(requests, ListKeyRequestsResponseSchema).keyRequests;
  if (!request?.requester) throw new Error('no key request is offered to this device');
  const { sessionKey, signedHeader } = ownSession(request.sessionId);
  const [recipient] = recipientsOf(devices, request.requester);
  if (!recipient) throw new Error('the requesting device is not in the device list');
  const { keyRequestId, attempt } = request;
  const session = parseHeader(signedHeader.header);
  return json(FulfillKeyRequestRequestSchema, {
    requestId: randomUUID(),
    keyRequestId,
    attempt,
    envelope: sealEnvelope({ primitives, sealer: sealer(), recipient, session, attempt, sessionKey }),
  });
}

function open(): string {
  const [devices, sessionFile] = args;
  const { signedHeader, envelope } = read(sessionFile, GetInitialSessionResponseSchema);
  if (!signedHeader || !envelope?.sealer) throw new Error('this answer has no envelope');
  const own = ownDevice();
  const { initiator } = parseHeader(signedHeader.header);
  const [by] = listedDevices(devices, initiator);
  const rootKey = rootKeyOf(devices, initiator.userId);
  const session = verifyHeader(primitives, signedHeader, { certificate: by?.certificate, rootKey });
  const sessionKey = openEnvelope({
    primitives,
    envelope,
    session,
    rootKey: rootKeyOf(devices, envelope.sealer.userId),
    recipient: {
      ...self,
      identityKey: own.identityKey,
      signingKey: own.signingKey.publicKey,
      signedPrekey: own.signedPrekey,
      oneTimePrekey: envelope.oneTimePrekeyId === oneTimeId ? own.oneTimePrekey : undefined,
      kemPrekey: envelope.kemPrekeyId === oneTimeKemId ? own.oneTimeKemPrekey : own.lastResortPrekey,
    },
  });
  keepSession(session.sessionId, sessionKey, signedHeader);
  const { userId: sealerUser, deviceId: sealerDevice } = envelope.sealer;
  return `opened ${session.sessionId}, epoch ${session.epoch}, sealed by ${sealerUser}/${sealerDevice}: header, certificate, envelope and key commitment verify`;
}

function newSession(
  recipients: readonly VerifiedRecipient[],
  deviceLists: { userId: string; version: bigint }[],
  place: SessionPlace,
): InitialSession {
  const own = ownDevice();
  const { conversationId, epoch, rosterVersion, historyPolicy, previousHeaderHash, members } = place;
  const sessionId = randomUUID();
  const sessionKey = primitives.randomBytes(32);
  const ephemeralKey = primitives.x25519.keyPair();
  const { signedHeader, session } = signHeader(primitives, own.signingKey, {
    suite,
    conversationId,
    sessionId,
    epoch,
    rosterVersion,
    rosterHash: rosterHash(members),
    deviceLists,
    initiator: self,
    initiatorIdentityKey: own.identityKey.publicKey,
    initiatorSigningKey: own.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch }),
    historyPolicy,
    previousHeaderHash,
    createdAt: timestampNow(),
  });
  keepSession(sessionId, sessionKey, signedHeader);
  const envelopes = recipients.map((recipient) =>
    sealEnvelope({ primitives, sealer: sealer(), recipient, session, attempt: 0, ephemeralKey, sessionKey }),
  );
  return create(InitialSessionSchema, { signedHeader, initiatorCertificate: own.certificate, envelopes });
}

function newDevice(): ExampleDevice {
  const rootKey = find(`${userId}.root`, keyPairFromText) ?? createRootKey(primitives);
  keep(`${userId}.root`, keyPairText(rootKey));
  const [identityKey, signingKey] = [primitives.x25519.keyPair(), primitives.ed25519.keyPair()];
  const signer = { ...self, signingKey };
  const signedPrekey = createSignedPrekey(primitives, signer, 1);
  const lastResortPrekey = createKemPrekey(primitives, signer, 1, 'kem-last-resort');
  const oneTimePrekey = createOneTimePrekey(primitives, oneTimeId);
  const oneTimeKemPrekey = createKemPrekey(primitives, signer, oneTimeKemId, 'kem-one-time');
  const keys = { ...self, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
  const certificate = certifyDevice(primitives, rootKey, keys, new Date());
  const body = json(RegisterDeviceRequestSchema, {
    requestId: randomUUID(),
    identityKey: identityKey.publicKey,
    signingKey: signingKey.publicKey,
    certificate,
    signedPrekey: signedPrekey.upload,
    lastResortPrekey: lastResortPrekey.upload,
    oneTimePrekeys: [oneTimePrekey.upload],
    oneTimeKemPrekeys: [oneTimeKemPrekey.upload],
  });
  keep(
    `${userId}.${deviceId}`,
    JSON.stringify({
      identityKey: keyPairText(identityKey),
      signingKey: keyPairText(signingKey),
      signedPrekey: keyPairText(signedPrekey.keyPair),
      lastResortPrekey: keyPairText(lastResortPrekey.keyPair),
      oneTimePrekey: keyPairText(oneTimePrekey.keyPair),
      oneTimeKemPrekey: keyPairText(oneTimeKemPrekey.keyPair),
      certificate: json(DeviceCertificateSchema, certificate),
      register: body,
    }),
  );
  return ownDevice();
}

function listedDevices(devices: string | undefined, only?: Ref) {
  return read(devices, GetDevicesResponseSchema)
    .deviceLists.flatMap((list) => list.devices)
    .filter((device) => !only || (device.userId === only.userId && device.deviceId === only.deviceId));
}

function recipientsOf(devices: string | undefined, only?: Ref) {
  return listedDevices(devices, only).map((device) =>
    verifyDevice(primitives, device, rootKeyOf(devices, device.userId)),
  );
}

/** The root key as the server tells it: an example trusts it each time, where an application pins the first and checks the rest. */
function rootKeyOf(devices: string | undefined, user: string): Uint8Array {
  const list = read(devices, GetDevicesResponseSchema).deviceLists.find((each) => each.userId === user);
  if (!list) throw new Error(`${devices} has no device list of ${user}`);
  return list.rootKey;
}

function ownDevice(): ExampleDevice {
  const device = find(`${userId}.${deviceId}`, deviceFromText);
  if (!device) throw new Error(`register ${userId} ${deviceId} first`);
  return device;
}

function sealer() {
  return { ...self, ...ownDevice() };
}

function ownSession(sessionId: string): { sessionKey: Uint8Array; signedHeader: SignedHeader } {
  const kept = find(`${userId}.${deviceId}.${sessionId}`, JSON.parse);
  if (!kept) throw new Error(`${userId} ${deviceId} does not have the key of ${sessionId}`);
  return {
    sessionKey: Buffer.from(kept.sessionKey, 'base64'),
    signedHeader: fromJsonString(SignedHeaderSchema, kept.signedHeader),
  };
}

function keepSession(sessionId: string, sessionKey: Uint8Array, signedHeader: SignedHeader): void {
  keep(
    `${userId}.${deviceId}.${sessionId}`,
    JSON.stringify({
      sessionKey: Buffer.from(sessionKey).toString('base64'),
      signedHeader: json(SignedHeaderSchema, signedHeader),
    }),
  );
}

function deviceFromText(text: string): ExampleDevice {
  const kept = JSON.parse(text);
  return {
    identityKey: keyPairFromText(kept.identityKey),
    signingKey: keyPairFromText(kept.signingKey),
    signedPrekey: keyPairFromText(kept.signedPrekey),
    lastResortPrekey: keyPairFromText(kept.lastResortPrekey),
    oneTimePrekey: keyPairFromText(kept.oneTimePrekey),
    oneTimeKemPrekey: keyPairFromText(kept.oneTimeKemPrekey),
    certificate: fromJsonString(DeviceCertificateSchema, kept.certificate),
    register: kept.register,
  };
}

function keyPairText({ publicKey, privateKey }: KeyPair): string {
  return [publicKey, privateKey].map((key) => Buffer.from(key).toString('base64')).join(' ');
}

function keyPairFromText(text: string): KeyPair {
  const [publicKey = '', privateKey = ''] = text.split(' ');
  return { publicKey: Buffer.from(publicKey, 'base64'), privateKey: Buffer.from(privateKey, 'base64') };
}

function find<T>(name: string, readAs: (text: string) => T): T | undefined {
  const path = join(folder, `${name}.json`);
  return existsSync(path) ? readAs(readFileSync(path, 'utf8')) : undefined;
}

function keep(name: string, text: string): void {
  writeFileSync(join(folder, `${name}.json`), text, { mode: 0o600 });
}

function read<D extends DescMessage>(file: string | undefined, schema: D) {
  if (file === undefined) throw new Error(usage);
  return fromJsonString(schema, readFileSync(file, 'utf8'), { ignoreUnknownFields: true });
}

function json<D extends DescMessage>(schema: D, message: MessageInitShape<D>): string {
  return toJsonString(schema, create(schema, message));
}

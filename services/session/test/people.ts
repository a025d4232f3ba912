import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type Device,
  DeviceSchema,
  type Envelope,
  HistoryPolicy,
  type InitialSession,
  InitialSessionSchema,
  type StoreSessionRequest,
  StoreSessionRequestSchema,
  WithheldReason,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createKemPrekey,
  createRootKey,
  createSignedPrekey,
  keyCommitment,
  rosterHash,
  type Sealer,
  type Session,
  sealEnvelope,
  signHeader,
  signWithholding,
  verifyDevice,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';

const primitives = nodePrimitives;

export interface Person {
  readonly userId: string;
  readonly devices: TestDevice[];
  addDevice(deviceId?: string): TestDevice;
}

/** A device with its private keys, and how identity-keys would list it. */
export interface TestDevice extends Sealer {
  readonly listed: Device;
}

export function createPerson(name: string): Person {
  const userId = `${name}-${randomUUID().slice(0, 8)}`;
  const rootKey = createRootKey(primitives);
  const devices: TestDevice[] = [];
  return {
    userId,
    devices,
    addDevice(deviceId = `device-${devices.length + 1}`) {
      const identityKey = primitives.x25519.keyPair();
      const signingKey = primitives.ed25519.keyPair();
      const addedAt = new Date();
      const certificate = certifyDevice(
        primitives,
        rootKey,
        { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey },
        addedAt,
      );
      const signer = { userId, deviceId, signingKey };
      const listed = create(DeviceSchema, {
        userId,
        deviceId,
        identityKey: identityKey.publicKey,
        signingKey: signingKey.publicKey,
        certificate,
        signedPrekey: createSignedPrekey(primitives, signer, 1).upload,
        lastResortPrekey: createKemPrekey(primitives, signer, 1, 'kem-last-resort').upload,
        addedInVersion: BigInt(devices.length + 1),
        addedAt: timestampFromDate(addedAt),
      });
      const device: TestDevice = { userId, deviceId, identityKey, signingKey, certificate, listed };
      devices.push(device);
      return device;
    },
  };
}

export interface MadeSession {
  readonly request: StoreSessionRequest;
  readonly session: Session;
  readonly sessionKey: Uint8Array;
}

/** A session as its initiator uploads it: sealed to `covered`, withheld from `withheld`. */
export function makeSession(options: {
  readonly initiator: TestDevice;
  readonly covered: readonly TestDevice[];
  readonly withheld?: readonly TestDevice[];
  readonly conversationId?: string;
  readonly sessionId?: string;
  readonly epoch?: bigint;
  readonly pinned?: readonly { userId: string; version: bigint }[];
}): MadeSession {
  const { initiator, covered, withheld = [], conversationId = randomUUID(), epoch = 1n } = options;
  const sessionId = options.sessionId ?? `session_${randomUUID()}`;
  const sessionKey = primitives.randomBytes(32);
  const ephemeralKey = primitives.x25519.keyPair();
  const everybody = [...covered, ...withheld];
  const users = [...new Set(everybody.map(({ userId }) => userId))].sort();
  const { signedHeader, session } = signHeader(primitives, initiator.signingKey, {
    suite: 1,
    conversationId,
    sessionId,
    epoch,
    rosterVersion: 1n,
    rosterHash: rosterHash(users.map((userId) => ({ userId, role: 1 }))),
    deviceLists:
      options.pinned?.map((list) => ({ ...list })) ??
      users.map((userId) => ({
        userId,
        version: BigInt(everybody.filter((device) => device.userId === userId).length),
      })),
    initiator: { userId: initiator.userId, deviceId: initiator.deviceId },
    initiatorIdentityKey: initiator.identityKey.publicKey,
    initiatorSigningKey: initiator.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch }),
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    previousHeaderHash: epoch === 1n ? new Uint8Array() : primitives.randomBytes(32),
    createdAt: timestampFromDate(new Date()),
  });
  const upload: InitialSession = create(InitialSessionSchema, {
    signedHeader,
    initiatorCertificate: initiator.certificate,
    envelopes: covered.map((device) =>
      sealEnvelope({
        primitives,
        sealer: initiator,
        recipient: verifyDevice(primitives, device.listed, device.certificate.rootKey),
        session,
        attempt: 0,
        ephemeralKey,
        sessionKey,
      }),
    ),
    withholdings: withheld.map((device) =>
      signWithholding(primitives, initiator.signingKey, session, device, WithheldReason.UNCERTIFIED),
    ),
  });
  const request = create(StoreSessionRequestSchema, {
    conversationId,
    initiator: { userId: initiator.userId, deviceId: initiator.deviceId },
    session: upload,
    rosterDevices: everybody.map((device) => ({
      device: { userId: device.userId, deviceId: device.deviceId },
      identityKey: device.identityKey.publicKey,
      signingKey: device.signingKey.publicKey,
    })),
  });
  return { request, session, sessionKey };
}

/** A session key re-sealed by a holder for one device. */
export function reseal(made: MadeSession, holder: Sealer, recipient: TestDevice, attempt: number): Envelope {
  return sealEnvelope({
    primitives,
    sealer: holder,
    recipient: verifyDevice(primitives, recipient.listed, recipient.certificate.rootKey),
    session: made.session,
    attempt,
    sessionKey: made.sessionKey,
  });
}

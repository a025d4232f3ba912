import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type Device,
  type DeviceList,
  type Envelope,
  type HistoryPolicy,
  type InitialSession,
  InitialSessionSchema,
  type MemberRole,
  type PrekeyBundle,
  WithheldReason,
} from '@keytrail/contracts';
import {
  CertificateError,
  keyCommitment,
  type Primitives,
  RecipientError,
  type Ref,
  rosterHash,
  sealEnvelope,
  signHeader,
  signWithholding,
  suite,
  transcript,
  type VerifiedRecipient,
  verifyBundle,
} from '@keytrail/crypto';
import { deviceKey, equalBytes, randomUuid, sameDevice, uuidOf } from './bytes.ts';
import type { Calls } from './calls.ts';
import { type Clock, pause } from './clock.ts';
import type { DeviceLogs } from './device-logs.ts';
import { type Directory, type ListedDevice, sameCertifiedKeys } from './directory.ts';
import { SessionRefusedError } from './errors.ts';
import { claimFirstContacts, type FirstContact } from './first-contact.ts';
import type { KeyStore } from './key-store.ts';
import type { OwnDevice, RegisteredDevice } from './own-device.ts';
import type { RootKeys } from './root-keys.ts';
import type { RosterLogs } from './roster-logs.ts';
import type { Operation } from './tracing.ts';

/** A device as the application is asked about it. */
export interface DeviceToTrust extends Ref {
  readonly identityKey: Uint8Array;
  readonly signingKey: Uint8Array;
}

export type DeviceTrust = (device: DeviceToTrust) => boolean | Promise<boolean>;

export interface SealingParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly own: OwnDevice;
  readonly rootKeys: RootKeys;
  readonly directory: Directory;
  readonly logs: DeviceLogs;
  readonly rosters: RosterLogs;
  readonly deviceTrust: DeviceTrust;
  readonly clock: Clock;
}

/** The place that a new session takes. */
export interface SessionPlan {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
  readonly members: readonly { readonly userId: string; readonly role: MemberRole }[];
  readonly historyPolicy: HistoryPolicy;
  /** Empty for epoch 1. */
  readonly previousHeaderHash: Uint8Array;
  /** The same seed and the same devices are the same claim, so that making the session again burns no keys. */
  readonly claimSeed: string;
  /** How often the session has been made for this mutation: each time, users who share nothing yet are claimed from anew. */
  readonly round: number;
  /** Bundles claimed for this mutation so far. */
  readonly claimed: Map<string, PrekeyBundle>;
  /** Users claimed from for this mutation so far, of whom nothing is told yet. */
  readonly contacts: Map<string, FirstContact>;
  /** Whom the server expects to be sealed to. */
  readonly told?: ToldRecipients | undefined;
}

/** Devices that the server wants an envelope or a withholding for, at these versions of device lists. */
export interface ToldRecipients {
  readonly recipients: readonly Ref[];
  readonly deviceLists: readonly { readonly userId: string; readonly version: bigint }[];
}

export interface MadeSession {
  readonly initialSession: InitialSession;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
}

type Sealing = { readonly recipient: VerifiedRecipient } | { readonly device: Ref; readonly withheld: WithheldReason };

/**
 * Makes a session: a fresh key, a signed header that commits to it, and for each device of the members an envelope, or a signed statement why
 * there is none. This device has its own envelope too, so that it can come back to the key.
 */
export async function makeSession(parts: SealingParts, operation: Operation, plan: SessionPlan): Promise<MadeSession> {
  const { primitives } = parts;
  const own = await parts.own.registered();
  // The first roster is this device's own; any other must be the one that members signed.
  if (plan.epoch > 1n) await parts.rosters.confirm(operation, { ...plan, rosterHash: rosterHash(plan.members) });
  const lists = await parts.directory.current(
    operation,
    plan.members.map(({ userId }) => userId),
  );
  const untold = lists.filter(({ version, devices }) => version === 0n && devices.length === 0);
  // The own list is always told.
  if (untold.some(({ userId }) => userId === own.userId)) await parts.logs.refuseUntold(own.userId);
  if (plan.told !== undefined) checkTold(plan.told, lists);
  const strangers = untold.map(({ userId }) => userId).filter((userId) => !plan.contacts.has(userId));
  const claimedNow = await claimFirstContacts(parts, operation, strangers, `${plan.claimSeed} ${plan.round}`);
  for (const contact of claimedNow) plan.contacts.set(contact.user.userId, contact);
  const contacts = untold.flatMap(({ userId }) => plan.contacts.get(userId) ?? []);
  const sealings = [
    ...(await decideSealings(parts, operation, own, lists, plan)),
    ...(await decideFirstSealings(parts, operation, contacts)),
  ];
  const members = new Set(plan.members.map(({ userId }) => userId));
  if (sealings.some((sealing) => !members.has(('recipient' in sealing ? sealing.recipient : sealing.device).userId))) {
    throw new SessionRefusedError('roster', 'a device of somebody who is no member was to be sealed to');
  }
  const claimedVersions = new Map(contacts.map(({ user }) => [user.userId, user.deviceListVersion]));

  const sessionId = randomUuid(primitives);
  const sessionKey = primitives.randomBytes(32);
  const ephemeralKey = primitives.x25519.keyPair();
  const { conversationId, epoch, rosterVersion, historyPolicy, previousHeaderHash } = plan;
  const { signedHeader, session } = signHeader(primitives, own.signingKey, {
    suite,
    conversationId,
    sessionId,
    epoch,
    rosterVersion,
    rosterHash: rosterHash(plan.members),
    deviceLists: lists.map(({ userId, version }) => ({ userId, version: claimedVersions.get(userId) ?? version })),
    initiator: { userId: own.userId, deviceId: own.deviceId },
    initiatorIdentityKey: own.identityKey.publicKey,
    initiatorSigningKey: own.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch }),
    historyPolicy,
    previousHeaderHash,
    createdAt: timestampFromDate(parts.clock.now()),
  });
  const envelopes: Envelope[] = [];
  for (const sealing of sealings) {
    if (!('recipient' in sealing)) continue;
    const { recipient } = sealing;
    envelopes.push(sealEnvelope({ primitives, sealer: own, recipient, session, attempt: 0, ephemeralKey, sessionKey }));
    // Sealing takes a millisecond or more: a large group must not stop everything else.
    if (envelopes.length % envelopesPerTurn === 0) await pause(parts.clock, 0, operation.signal);
  }
  const withholdings = sealings.flatMap((sealing) =>
    'withheld' in sealing
      ? [signWithholding(primitives, own.signingKey, session, sealing.device, sealing.withheld)]
      : [],
  );
  return {
    sessionKey,
    initialSession: create(InitialSessionSchema, {
      signedHeader,
      initiatorCertificate: own.certificate,
      envelopes,
      withholdings,
    }),
  };
}

/**
 * What the server wants sealed to is held against the verified lists: at the same version, both must name the same devices. At another version
 * the lists count, and the server says what is missing.
 *
 * @throws SessionRefusedError (`roster`).
 */
function checkTold({ recipients, deviceLists }: ToldRecipients, lists: readonly DeviceList[]): void {
  for (const { userId, version, devices } of lists) {
    if (version === 0n || !deviceLists.some((told) => told.userId === userId && told.version === version)) continue;
    const good = devices.filter(({ revokedAt }) => revokedAt === undefined).map(({ deviceId }) => deviceId);
    const told = recipients.filter((recipient) => recipient.userId === userId).map(({ deviceId }) => deviceId);
    if (good.toSorted().join(' ') !== told.toSorted().join(' ')) {
      throw new SessionRefusedError('roster', `other devices of ${userId} were to be sealed to than the user has`);
    }
  }
}

async function decideSealings(
  parts: SealingParts,
  operation: Operation,
  own: RegisteredDevice,
  lists: readonly DeviceList[],
  plan: SessionPlan,
): Promise<Sealing[]> {
  const trusted: Device[] = [];
  const sealings: Sealing[] = [];
  for (const list of lists) {
    const active = list.devices.filter(({ revokedAt }) => revokedAt === undefined);
    if (active.length === 0) continue;
    const rootKey = await parts.rootKeys.judge(list.userId, list.rootKey);
    for (const device of active) {
      const because = rootKey.trusted
        ? await reasonToWithhold(parts, device, rootKey.rootKey)
        : WithheldReason.ROOT_KEY_CHANGED;
      if (sameDevice(device, own)) {
        if (because !== undefined || !equalBytes(device.identityKey, own.identityKey.publicKey))
          throw new SessionRefusedError('certificate', 'this device is listed with other keys than its own');
        sealings.push(verifyAs(device, () => parts.directory.recipient(device, own.rootKey.publicKey)));
      } else if (because !== undefined) sealings.push({ device, withheld: because });
      else trusted.push(device);
    }
  }
  const sealedBefore = await parts.store.sealedTo(trusted);
  const first = trusted.filter((_, i) => sealedBefore[i] !== true);
  await claimBundles(parts, operation, first, plan);
  for (const [i, device] of trusted.entries()) {
    sealings.push(await verifiedRecipient(parts, device, sealedBefore[i] === true ? undefined : plan.claimed));
  }
  return sealings;
}

/** Of users of whom no list is told yet, the bundles that were claimed say who they are: each has its device's certificate. */
async function decideFirstSealings(
  parts: SealingParts,
  operation: Operation,
  contacts: readonly FirstContact[],
): Promise<Sealing[]> {
  const { primitives, directory } = parts;
  const sealings: Sealing[] = [];
  for (const { user, devices } of contacts) {
    if (devices.length === 0) continue;
    const { verdict, vouched } = await directory.judgeClaim(operation, user, devices);
    for (const { device, bundle } of devices) {
      if (!verdict.trusted) sealings.push({ device, withheld: WithheldReason.ROOT_KEY_CHANGED });
      else if (!vouched.has(device.deviceId)) sealings.push({ device, withheld: WithheldReason.UNCERTIFIED });
      else if (bundle === undefined) sealings.push({ device, withheld: WithheldReason.NO_PREKEYS });
      else {
        const because = sameDevice(bundle, device)
          ? await reasonToWithhold(parts, bundle, verdict.rootKey)
          : WithheldReason.UNCERTIFIED;
        sealings.push(
          because === undefined
            ? verifyAs(device, () => verifyBundle(primitives, bundle, verdict.rootKey))
            : { device, withheld: because },
        );
      }
    }
  }
  return sealings;
}

async function reasonToWithhold(
  { directory, own, deviceTrust }: SealingParts,
  device: ListedDevice,
  rootKey: Uint8Array,
): Promise<WithheldReason | undefined> {
  try {
    directory.certify(device, rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    return WithheldReason.UNCERTIFIED;
  }
  if (sameDevice(device, own)) return undefined;
  return (await deviceTrust(device)) ? undefined : WithheldReason.NOT_TRUSTED;
}

/** The first envelope to a device spends a claimed bundle; later ones use its current signed and last-resort prekeys. */
async function verifiedRecipient(
  { primitives, rootKeys, directory }: SealingParts,
  device: Device,
  claimed: ReadonlyMap<string, PrekeyBundle> | undefined,
): Promise<Sealing> {
  const rootKey = (await rootKeys.pinned(device.userId)) ?? new Uint8Array();
  if (claimed === undefined) return verifyAs(device, () => directory.recipient(device, rootKey));
  const bundle = claimed.get(deviceKey(device));
  if (bundle === undefined) return { device, withheld: WithheldReason.NO_PREKEYS };
  // The user may have certified other keys under this name, which are in no log.
  if (!sameCertifiedKeys(bundle, device)) return { device, withheld: WithheldReason.UNCERTIFIED };
  return verifyAs(device, () => verifyBundle(primitives, bundle, rootKey));
}

function verifyAs(device: Ref, verify: () => VerifiedRecipient): Sealing {
  try {
    const recipient = verify();
    return sameDevice(recipient, device) ? { recipient } : { device, withheld: WithheldReason.UNCERTIFIED };
  } catch (error) {
    if (!(error instanceof RecipientError)) throw error;
    const uncertified = error.problem === 'certificate' || error.problem === 'root-key';
    return { device, withheld: uncertified ? WithheldReason.UNCERTIFIED : WithheldReason.NO_PREKEYS };
  }
}

const envelopesPerTurn = 16;
const devicesPerClaim = 500;

/**
 * Claims what is not claimed yet. The claim id follows from seed and devices: a repeated claim is answered with the same bundles. A claim that
 * serves a key request names it, and is not limited then.
 */
export async function claimBundles(
  { calls, primitives }: Pick<SealingParts, 'calls' | 'primitives'>,
  operation: Operation,
  devices: readonly Ref[],
  {
    claimSeed,
    claimed,
    keyRequestId = '',
  }: Pick<SessionPlan, 'claimSeed' | 'claimed'> & { readonly keyRequestId?: string },
): Promise<void> {
  const wanted = devices.filter((device) => !claimed.has(deviceKey(device)));
  const groups: Ref[][] = [];
  for (let from = 0; from < wanted.length; from += devicesPerClaim)
    groups.push(wanted.slice(from, from + devicesPerClaim));
  await Promise.all(
    groups.map(async (group) => {
      const names = group.flatMap(({ userId, deviceId }) => [userId, deviceId]);
      const claimId = uuidOf(primitives.sha256(transcript('keytrail/client/claim', claimSeed, ...names)), 8);
      const refs = group.map(({ userId, deviceId }) => ({ userId, deviceId }));
      const { results } = await calls.call(operation, (options) =>
        calls.identityKeys.claimPrekeyBundles({ claimId, devices: refs, keyRequestId }, options),
      );
      for (const { device, bundle } of results) if (device && bundle) claimed.set(deviceKey(device), bundle);
    }),
  );
}

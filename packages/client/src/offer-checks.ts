import { type Device, HistoryPolicy, type PrekeyBundle } from '@keytrail/contracts';
import { CertificateError, RecipientError, type Ref, type VerifiedRecipient, verifyBundle } from '@keytrail/crypto';
import { deviceKey, sameDevice } from './bytes.ts';
import type { Conversations } from './conversations.ts';
import { isLogged } from './device-logs.ts';
import { type ListedDevice, sameCertifiedKeys } from './directory.ts';
import { DeviceListRefusedError, RosterRefusedError } from './errors.ts';
import type { DeclineReasonName } from './events.ts';
import { claimBundles, type SealingParts } from './make-session.ts';
import type { HeldSession } from './sessions.ts';
import type { Operation } from './tracing.ts';

/** This device will not answer an offer. */
export class Declined extends Error {
  readonly reason: DeclineReasonName;

  constructor(reason: DeclineReasonName) {
    super(reason);
    this.reason = reason;
  }
}

/** The keys to seal to for one key request after the other, all of one device. */
export type RecipientOf = (keyRequestId: string) => Promise<VerifiedRecipient>;

export interface OfferCheckParts extends SealingParts {
  readonly conversations: Conversations;
}

/** What a holder checks with its own eyes before it re-seals a key. */
export class OfferChecks {
  readonly #parts: OfferCheckParts;

  constructor(parts: OfferCheckParts) {
    this.#parts = parts;
  }

  /**
   * The header, which its initiator signed, names everybody who was a member at its epoch. Where it says that history is shared, so do those who
   * are members now, by what members signed.
   *
   * @throws Declined.
   */
  async entitlement(operation: Operation, { session }: HeldSession, requester: Ref): Promise<void> {
    const { header, conversationId } = session;
    if (header.deviceLists.some(({ userId }) => userId === requester.userId)) return;
    if (header.historyPolicy !== HistoryPolicy.SHARED) throw new Declined('NOT_ENTITLED');
    const { members } = await this.#parts.conversations.believed(operation, conversationId).catch(declineRefusedRoster);
    if (!members.some(({ userId }) => userId === requester.userId)) throw new Declined('NOT_ENTITLED');
  }

  /**
   * Checks the requesting device once, for all that it asks for now. Its first envelope from this device spends a claimed bundle; the others use its
   * current signed and last-resort prekeys, so that a device that lacks many keys does not lose its pools.
   *
   * @throws Declined.
   */
  async requester(operation: Operation, requester: Ref): Promise<RecipientOf> {
    const { store, rootKeys, directory } = this.#parts;
    const [[sealedBefore], [list]] = await Promise.all([
      store.sealedTo([requester]),
      directory.current(operation, [requester.userId]).catch(declineRefusedList),
    ]);
    const device = list?.devices.find(({ deviceId }) => deviceId === requester.deviceId);
    if (list === undefined || list.version === 0n) return this.#untold(operation, requester);
    if (device === undefined) throw new Declined('UNCERTIFIED');
    if (device.revokedAt !== undefined) throw new Declined('NOT_ENTITLED');
    const verdict = await rootKeys.judge(requester.userId, list.rootKey);
    if (!verdict.trusted) throw new Declined('ROOT_KEY_CHANGED');
    await this.#checkTrust(device, verdict.rootKey);
    let isFirst = sealedBefore !== true;
    return async (keyRequestId) => {
      if (!isFirst) return this.#listed(requester, device, verdict.rootKey);
      isFirst = false;
      return this.#claimed(operation, keyRequestId, requester, (bundle) => sameCertifiedKeys(bundle, device));
    };
  }

  #listed(requester: Ref, device: Device, rootKey: Uint8Array): VerifiedRecipient {
    return verified(requester, () => this.#parts.directory.recipient(device, rootKey));
  }

  /**
   * Who has left the conversation may still have its own epochs, but its devices are not told any more: the bundle says who it is, together
   * with what was seen of the log before. The own list is always told.
   */
  async #untold(operation: Operation, requester: Ref): Promise<RecipientOf> {
    const { own, logs } = this.#parts;
    if (requester.userId === own.userId) throw new Declined('UNCERTIFIED');
    const log = await logs.remembered(requester.userId);
    if (log.version === 0n) return (keyRequestId) => this.#claimed(operation, keyRequestId, requester, () => true);
    const known = log.devices.find(({ deviceId }) => deviceId === requester.deviceId);
    if (known === undefined) throw new Declined('UNCERTIFIED');
    if (known.revokedInVersion !== undefined) throw new Declined('NOT_ENTITLED');
    return (keyRequestId) => this.#claimed(operation, keyRequestId, requester, (bundle) => isLogged(known, bundle));
  }

  async #claimed(
    operation: Operation,
    keyRequestId: string,
    requester: Ref,
    isAsSeen: (bundle: PrekeyBundle) => boolean,
  ): Promise<VerifiedRecipient> {
    const { calls, primitives, rootKeys } = this.#parts;
    const claimed = new Map<string, PrekeyBundle>();
    // One claim for the request, however often it is offered and answered.
    const about = { claimSeed: keyRequestId, claimed, keyRequestId };
    await claimBundles({ calls, primitives }, operation, [requester], about);
    const bundle = claimed.get(deviceKey(requester));
    if (bundle === undefined) throw new Declined('NOT_ENTITLED');
    if (!sameDevice(bundle, requester) || !isAsSeen(bundle)) throw new Declined('UNCERTIFIED');
    const verdict = await rootKeys.judge(requester.userId, bundle.certificate?.rootKey ?? new Uint8Array());
    if (!verdict.trusted) throw new Declined('ROOT_KEY_CHANGED');
    await this.#checkTrust(bundle, verdict.rootKey);
    if (!(await rootKeys.confirm(requester.userId, verdict.rootKey))) throw new Declined('ROOT_KEY_CHANGED');
    return verified(requester, () => verifyBundle(primitives, bundle, verdict.rootKey));
  }

  async #checkTrust(device: ListedDevice, rootKey: Uint8Array): Promise<void> {
    const { directory, deviceTrust } = this.#parts;
    try {
      directory.certify(device, rootKey);
    } catch (error) {
      if (!(error instanceof CertificateError)) throw error;
      throw new Declined('UNCERTIFIED');
    }
    if (!(await deviceTrust(device))) throw new Declined('NOT_TRUSTED');
  }
}

function declineRefusedRoster(error: unknown): never {
  if (error instanceof RosterRefusedError) throw new Declined('NOT_ENTITLED');
  throw error;
}

/** Whoever is in a list that does not follow from its log is certified by nobody. */
function declineRefusedList(error: unknown): never {
  if (error instanceof DeviceListRefusedError) throw new Declined('UNCERTIFIED');
  throw error;
}

function verified(requester: Ref, verify: () => VerifiedRecipient): VerifiedRecipient {
  try {
    const recipient = verify();
    if (sameDevice(recipient, requester)) return recipient;
  } catch (error) {
    if (!(error instanceof RecipientError)) throw error;
  }
  throw new Declined('UNCERTIFIED');
}

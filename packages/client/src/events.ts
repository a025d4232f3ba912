import type { DeclineReason } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import type { DeviceListProblem, RemedyName, RosterLogProblem } from './errors.ts';
import type { PrekeyRepair } from './prekey-upkeep.ts';
import type { RotatedPrekeys } from './prekey-uploads.ts';
import type { RootKeyChange } from './root-keys.ts';

export type DeclineReasonName = Exclude<keyof typeof DeclineReason, 'UNSPECIFIED'>;

export interface OfferEvent {
  readonly keyRequestId: string;
  readonly conversationId: string;
  readonly sessionId: string;
  readonly requester: Ref;
  readonly attempt: number;
}

/** What `client.on` tells. */
export interface ClientEvents {
  state: {
    /** `waiting`: the stream was lost and is about to be opened again. */
    readonly state: 'attaching' | 'attached' | 'waiting' | 'detached';
    readonly error?: unknown;
  };
  /** The key of a session that was missing is in the store now. */
  keyDelivered: {
    readonly conversationId: string;
    readonly sessionId: string;
    readonly keyRequestId: string | undefined;
    readonly sealer: Ref;
    readonly attempt: number;
  };
  /** A key request of this device ended without a key. */
  keyRequestEnded: { readonly conversationId: string; readonly sessionId: string; readonly keyRequestId: string };
  /** How many keys this device still lacks, and what became of those that it lacked since there were none. */
  keysWanted: { readonly left: number; readonly delivered: number; readonly refused: number };
  /** A key that this device lacked will not come. */
  keyRefused: {
    readonly conversationId: string;
    readonly sessionId: string;
    /** A MissCauseName, a ReasonName, a SessionProblem, or why the request ended. */
    readonly reason: string;
    readonly remedy: RemedyName;
    readonly error?: Error | undefined;
  };
  offerAnswered: OfferEvent;
  offerDeclined: OfferEvent & { readonly reason: DeclineReasonName };
  rootKeyChanged: RootKeyChange & { readonly accepted: boolean };
  /** The verified log of a user went on. */
  devicesChanged: {
    readonly userId: string;
    readonly version: bigint;
    readonly added: readonly string[];
    readonly revoked: readonly string[];
  };
  /** The server told a device list that does not follow from what this device has seen: nothing is sealed by it. */
  deviceListRefused: {
    readonly userId: string;
    readonly problem: DeviceListProblem;
    readonly version: bigint;
    /** The version that was seen before. */
    readonly remembered: bigint;
  };
  /** A roster is not what its members signed: nothing is sealed by it, and no session of it is believed. */
  rosterRefused: {
    readonly conversationId: string;
    readonly problem: RosterLogProblem;
    readonly version: bigint;
    /** The version that was seen before. */
    readonly remembered: bigint;
  };
  /** This very device is revoked: it does not attach any more. */
  revoked: { readonly userId: string; readonly deviceId: string };
  conversationChanged: { readonly conversationId: string };
  rotationDue: { readonly conversationId: string };
  /** This device made a rotation that was due. */
  rotated: { readonly conversationId: string; readonly sessionId: string; readonly epoch: bigint };
  messageAdded: { readonly conversationId: string };
  /** A message that was enqueued is in the log. After a crash it may be told again. */
  messageSent: {
    readonly id: string;
    readonly conversationId: string;
    readonly sequence: bigint;
    readonly sessionId: string;
    readonly epoch: bigint;
  };
  /** A message that was enqueued cannot be sent, and waits no more. */
  messageNotSent: { readonly id: string; readonly conversationId: string; readonly error: Error };
  /** A message that was delivered without its key was delivered again, with its text. */
  messageReadable: { readonly conversationId: string; readonly sequence: bigint };
  /** The server repeated a message that was delivered before under another sequence: it is not given again. */
  messageRepeated: { readonly conversationId: string; readonly sequence: bigint; readonly sender: Ref };
  /** The pools were filled up; so many are unclaimed. */
  prekeysReplenished: { readonly oneTime: number; readonly kem: number };
  /** New signed or last-resort prekeys are current. */
  prekeysRotated: RotatedPrekeys;
  /** What this device holds and what the service hands out had differed, as after an older copy of the key store was restored. */
  prekeysRepaired: PrekeyRepair;
  /** Work in the background failed. */
  fault: { readonly during: string; readonly error: unknown };
}

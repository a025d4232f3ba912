import type { DeviceListVersion, HistoryPolicy, SessionHeader } from '@keytrail/contracts';

/** What the header of a session must say for the request that carries it. */
export interface ExpectedHeader {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
  readonly rosterHash: Uint8Array;
  readonly memberIds: readonly string[];
  readonly initiator: { readonly userId: string; readonly deviceId: string };
  readonly initiatorIdentityKey: Uint8Array;
  readonly initiatorSigningKey: Uint8Array;
  /** Undefined when the header itself decides: at creation. */
  readonly historyPolicy?: HistoryPolicy | undefined;
  /** 32 bytes, SHA-256 of the current session's header; undefined for epoch 1. */
  readonly previousHeaderHash?: Uint8Array | undefined;
}

/** The first field of a header that disagrees with what is expected, with the reason; undefined when all agree. */
export function disagreementOf(
  header: SessionHeader,
  expected: ExpectedHeader,
): { readonly field: string; readonly description: string } | undefined {
  const { initiator } = header;
  const checks: readonly (readonly [field: string, agrees: boolean, description: string])[] = [
    ['conversation_id', header.conversationId === expected.conversationId, `must be ${expected.conversationId}`],
    ['epoch', header.epoch === expected.epoch, `must be ${expected.epoch}`],
    ['roster_version', header.rosterVersion === expected.rosterVersion, `must be ${expected.rosterVersion}`],
    ['roster_hash', sameBytes(header.rosterHash, expected.rosterHash), 'must be the hash of the roster'],
    ['device_lists', pinsExactly(header.deviceLists, expected.memberIds), 'must pin each member once and nobody else'],
    [
      'initiator',
      initiator?.userId === expected.initiator.userId && initiator.deviceId === expected.initiator.deviceId,
      'must be the calling device',
    ],
    [
      'initiator_identity_key',
      sameBytes(header.initiatorIdentityKey, expected.initiatorIdentityKey),
      'must be the registered identity key of the calling device',
    ],
    [
      'initiator_signing_key',
      sameBytes(header.initiatorSigningKey, expected.initiatorSigningKey),
      'must be the registered signing key of the calling device',
    ],
    [
      'history_policy',
      expected.historyPolicy === undefined || header.historyPolicy === expected.historyPolicy,
      'must be the policy of the conversation',
    ],
    [
      'previous_header_hash',
      sameBytes(header.previousHeaderHash, expected.previousHeaderHash ?? new Uint8Array()),
      expected.previousHeaderHash ? "must be the hash of the current session's header" : 'must be empty for epoch 1',
    ],
  ];
  const broken = checks.find(([, agrees]) => !agrees);
  return broken && { field: broken[0], description: broken[2] };
}

function pinsExactly(pins: readonly DeviceListVersion[], memberIds: readonly string[]): boolean {
  const pinned = new Set(pins.map((pin) => pin.userId));
  return pins.length === memberIds.length && pinned.size === pins.length && memberIds.every((id) => pinned.has(id));
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

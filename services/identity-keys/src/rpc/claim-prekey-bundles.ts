import { type ClaimResult, IdentityKeysService } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { type Call, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import { attr, trace } from '@keytrail/telemetry';
import { createClaimExemption } from '../claim-exemption.ts';
import { digestDevices, digestUsers, repeatedDevice } from '../domain/claim-request.ts';
import type { Standings } from '../standings.ts';
import { type ClaimedUserRow, readClaimedUsers, resolveUsers, type UsersDevices } from '../store/claimed-users.ts';
import { type ClaimedRow, ClaimIdReused, DeviceListsMoved, readClaim } from '../store/claims.ts';
import { forbiddenUsers, type TakeBundlesParts, takeBundles } from '../take-bundles.ts';
import { callerKey } from './caller-key.ts';
import { refuseInactive } from './calling-standing.ts';
import { claimedUserMessage, claimResultMessage } from './device-messages.ts';

export interface ClaimPrekeyBundlesParts extends TakeBundlesParts {
  readonly standings: Standings;
  readonly maxDevicesPerClaim: number;
  readonly maxRequestBytes: number;
  readonly maxAnswerBytes: number;
}

interface Asked {
  readonly caller: string;
  readonly claimId: string;
  readonly keyRequestId: string;
}

/** Takes a bundle of each named device, or of each device of the named users. Idempotent by claim_id, which is the caller's own. For active devices. */
export function claimPrekeyBundles(parts: ClaimPrekeyBundlesParts): Rpc {
  const { maxRequestBytes, maxAnswerBytes } = parts;
  return unary(IdentityKeysService.method.claimPrekeyBundles, {
    allow: ['device', 'service'],
    maxRequestBytes,
    maxAnswerBytes,
    async handle({ claimId, devices, userIds, keyRequestId }, call) {
      const repeated = repeatedDevice(devices);
      if (repeated !== undefined) throw invalidField(`devices[${repeated}]`, 'the device stands twice in the request');
      await refuseInactive(parts.standings, call);
      trace.getActiveSpan()?.setAttribute(attr.claimId, claimId);
      const asked = { caller: callerKey(call), claimId, keyRequestId };
      try {
        return userIds.length > 0
          ? await claimFromUsers(parts, call, asked, userIds)
          : { results: await claimFromDevices(parts, call, asked, devices) };
      } catch (error) {
        if (!(error instanceof ClaimIdReused)) throw error;
        throw refuse('REQUEST_ID_REUSED', error.message, { metadata: { request_id: claimId } });
      }
    },
  });
}

async function claimFromDevices(
  parts: ClaimPrekeyBundlesParts,
  call: Call,
  asked: Asked,
  devices: readonly Ref[],
): Promise<ClaimResult[]> {
  refuseTooMany(devices.length, parts.maxDevicesPerClaim);
  trace.getActiveSpan()?.setAttribute(attr.devicesClaimed, devices.length);
  const claim = { ...asked, devices, devicesDigest: digestDevices(devices), bundles: devices.length };
  if (parts.policy.name !== 'any-device') {
    // Before anybody is asked what may be refused now.
    const recorded = await readClaim(parts.db, claim, { lowBelow: parts.lowPrekeysBelow });
    if (recorded) {
      parts.signals.claimed('repeated');
      return resultsOf(parts, call, devices, recorded);
    }
  }
  const userIds = devices.map(({ userId }) => userId);
  const exemption = createClaimExemption(parts, call.caller, { devices, keyRequestId: asked.keyRequestId });
  const forbidden = await forbiddenUsers(parts.policy, call, { userIds, exemption });
  const notPermitted = devices.flatMap(({ userId }, i) => (forbidden.has(userId) ? [i + 1] : []));
  const { rows } = await takeBundles(parts, call, {
    ...claim,
    exemption,
    ...(notPermitted.length > 0 && { notPermitted }),
  });
  return resultsOf(parts, call, devices, rows);
}

async function claimFromUsers(parts: ClaimPrekeyBundlesParts, call: Call, asked: Asked, userIds: readonly string[]) {
  const { db, maxDevicesPerClaim } = parts;
  const devicesDigest = digestUsers(userIds);
  for (;;) {
    const rows = await readClaim(db, { ...asked, devicesDigest }, { lowBelow: parts.lowPrekeysBelow });
    if (rows) {
      parts.signals.claimed('repeated');
      return recordedAnswer(parts, call, { ...asked, userIds }, rows);
    }
    const resolved = await resolveUsers(db, userIds, maxDevicesPerClaim);
    const served = { devices: resolved.devices, keyRequestId: asked.keyRequestId };
    const exemption = createClaimExemption(parts, call.caller, served);
    const forbidden = await forbiddenUsers(parts.policy, call, { userIds, exemption });
    const devices = resolved.devices.filter(({ userId }) => !forbidden.has(userId));
    refuseTooMany(devices.length, maxDevicesPerClaim);
    const told = await toldUsers(parts, call, resolved);
    const users = resolved.users.map((user) =>
      forbidden.has(user.user_id) || !told.has(user.user_id) ? untold(user) : user,
    );
    trace.getActiveSpan()?.setAttribute(attr.devicesClaimed, devices.length);
    const withDevices = new Set(devices.map(({ userId }) => userId));
    const claim = {
      ...asked,
      exemption,
      devices,
      devicesDigest,
      users: users.map((user) => ({ userId: user.user_id, version: user.device_list_version })),
      bundles: devices.length + userIds.length - withDevices.size,
    };
    try {
      const taken = await takeBundles(parts, call, claim);
      if (taken.repeated) return await recordedAnswer(parts, call, { ...asked, userIds }, taken.rows);
      return { results: await resultsOf(parts, call, devices, taken.rows), users: users.map(claimedUserMessage) };
    } catch (error) {
      // A device came or went meanwhile: its user is looked up again.
      if (!(error instanceof DeviceListsMoved)) throw error;
      call.signal.throwIfAborted();
    }
  }
}

/** As it was answered first, whatever devices the users have by now. */
async function recordedAnswer(
  parts: ClaimPrekeyBundlesParts,
  call: Call,
  asked: Asked & { readonly userIds: readonly string[] },
  rows: readonly ClaimedRow[],
): Promise<{ results: ClaimResult[]; users: ReturnType<typeof claimedUserMessage>[] }> {
  const { users, devices } = await readClaimedUsers(parts.db, asked);
  const there = devices.flatMap((device, i) => {
    const row = rows[i];
    return device && row ? [{ device, row }] : [];
  });
  const refs = there.map(({ device }) => device);
  const results = await resultsOf(
    parts,
    call,
    refs,
    there.map(({ row }) => row),
  );
  // A user who was erased since has no name here any more; the caller knows whom it asked for.
  return { results, users: users.map((user, i) => claimedUserMessage({ ...user, user_id: asked.userIds[i] ?? '' })) };
}

/** The list of a user's active devices is told to anybody who may claim from them; of a user without any, only those hear who may know. */
async function toldUsers(
  { sharing }: ClaimPrekeyBundlesParts,
  call: Call,
  { users, devices }: UsersDevices,
): Promise<ReadonlySet<string>> {
  const active = new Set(devices.map(({ userId }) => userId));
  const without = users.map(({ user_id }) => user_id).filter((userId) => !active.has(userId));
  return without.length === 0 ? active : new Set([...active, ...(await sharing.knownTo(call.caller, without))]);
}

function untold({ user_id }: ClaimedUserRow): ClaimedUserRow {
  return { user_id, device_list_version: 0n, root_key: null, log_head: null };
}

/** Why there is no bundle is told to those who may know about the user; to strangers it is one answer for all. Throws PEER_UNAVAILABLE. */
async function resultsOf(
  { sharing }: ClaimPrekeyBundlesParts,
  call: Call,
  devices: readonly Ref[],
  rows: readonly ClaimedRow[],
): Promise<ClaimResult[]> {
  const without = devices.filter((_, i) => rows[i]?.signed_prekey_id === null);
  const known =
    without.length === 0
      ? new Set<string>()
      : await sharing.knownTo(
          call.caller,
          without.map(({ userId }) => userId),
        );
  return devices.map((device, i) => {
    const row = rows[i];
    if (!row) throw new Error('a claim has one row for each device');
    return claimResultMessage(device, row, known.has(device.userId));
  });
}

function refuseTooMany(devices: number, limit: number): void {
  if (devices <= limit) return;
  throw refuse('LIMIT_EXCEEDED', `more than ${limit} devices: claim from fewer users at once`, {
    metadata: { limit: String(limit), scope: 'devices in one claim' },
  });
}

import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type DeviceViewSchema, IdentityKeysOperatorService } from '@keytrail/contracts';
import { audited } from '@keytrail/diagnosis/audited';
import { invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { recordAnswer } from '../../store/audit-log.ts';
import { listSeenDevices, listUserIds, readSeenUser, type SeenDevice } from '../../store/operator-devices.ts';

const usersAtOnce = 2_000;
const usersLookedThrough = 1_000_000;

/** All devices that a user ever had, with what is there of each: also of rows that are damaged. */
export function findDevices({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysOperatorService.method.findDevices, {
    allow: ['operator', 'service:session'],
    handle({ userId: named, userPseudonym }, call) {
      const about = { action: 'find_devices', userId: named || undefined, note: userPseudonym };
      return audited(call, { db, record: recordAnswer, about }, async (recordDone) => {
        if ((named === '') === (userPseudonym === ''))
          throw invalidField('user_id', 'names the user, or else user_pseudonym does');
        const userId = named || (await userBehind(db, userPseudonym, call.signal));
        const user = await readSeenUser(db, userId);
        const devices = await listSeenDevices(db, userId);
        await recordDone(db, { userId });
        return {
          userId,
          userPseudonym: pseudonym(userId),
          deviceListVersion: user.version,
          rootKeyPresent: user.rootKeyPresent,
          ...(user.rootKeyChangedAt && { rootKeyChangedAt: timestampFromDate(user.rootKeyChangedAt) }),
          ...(user.erasedAt && { erasedAt: timestampFromDate(user.erasedAt) }),
          devices: devices.map((device) => deviceView(userId, device)),
        };
      });
    },
  });
}

/**
 * The user whose id has this pseudonym: ids are looked through, a page at a time, as nothing is stored by pseudonyms. Throws
 * NOT_FOUND_OR_NOT_PERMITTED when none of those that were looked through has it.
 */
async function userBehind(db: Database, sought: string, signal: AbortSignal): Promise<string> {
  let after = '';
  for (let looked = 0; looked < usersLookedThrough; looked += usersAtOnce) {
    signal.throwIfAborted();
    const ids = await listUserIds(db, after, usersAtOnce);
    const found = ids.find((id) => pseudonym(id) === sought);
    if (found !== undefined) return found;
    const last = ids.at(-1);
    if (ids.length < usersAtOnce || last === undefined) break;
    after = last;
  }
  throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'no user here has this pseudonym');
}

function deviceView(userId: string, seen: SeenDevice): MessageInitShape<typeof DeviceViewSchema> {
  const keys: readonly (readonly [string, boolean])[] = [
    ['identity_key', seen.identityKey],
    ['signing_key', seen.signingKey],
    ['certificate', seen.certificate],
    ['signed_prekey', seen.signedPrekey],
    ['last_resort_prekey', seen.lastResortPrekey],
  ];
  const named = (present: boolean) => keys.flatMap(([name, there]) => (there === present ? [name] : []));
  return {
    device: { userId, deviceId: seen.deviceId },
    devicePseudonym: pseudonym(seen.deviceId),
    registeredAt: timestampFromDate(seen.addedAt),
    deviceListVersion: seen.addedInVersion,
    ...(seen.revokedAt && { revokedAt: timestampFromDate(seen.revokedAt) }),
    revocationDeviceListVersion: seen.revokedInVersion ?? 0n,
    keysPresent: named(true),
    keysMissing: named(false),
    oneTimePrekeys: Number(seen.oneTime),
    oneTimeKemPrekeys: Number(seen.kem),
    prekeysClaimed: seen.claimed,
    ...(seen.signedPrekeyAddedAt && { signedPrekeyRotatedAt: timestampFromDate(seen.signedPrekeyAddedAt) }),
    suite: seen.suite ?? 0,
    writerBuild: seen.writerBuild,
    traceId: seen.traceId,
    revocationWriterBuild: seen.revocationWriterBuild,
    revocationTraceId: seen.revocationTraceId,
  };
}

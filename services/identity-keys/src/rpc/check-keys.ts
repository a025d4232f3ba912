import { create } from '@bufbuild/protobuf';
import { type CheckKeysRequest, CheckKeysResponseSchema, IdentityKeysService } from '@keytrail/contracts';
import { publishedKeysDigest, type Ref } from '@keytrail/crypto';
import { deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import {
  comparePool,
  type KnownPrekey,
  outOfOrder,
  type PoolDifference,
  sameBytes,
  sameKey,
} from '../domain/published-keys.ts';
import { type PrekeyStatusRow, readPrekeyStatus } from '../store/prekey-status.ts';
import { type PublishedPrekeyRow, readPublishedPrekeys } from '../store/published-prekeys.ts';
import { prekeyStatusMessage } from './prekey-status-message.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface CheckKeysParts {
  readonly db: Database;
  readonly limits: PrekeyLimits;
}

/** Compares the calling device's keys with those that would be handed out, in two statements. Changes nothing. */
export function checkKeys({ db, limits }: CheckKeysParts): Rpc {
  return unary(IdentityKeysService.method.checkKeys, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      refuseOutOfOrder('one_time_prekeys', request.oneTimePrekeys);
      refuseOutOfOrder('one_time_kem_prekeys', request.oneTimeKemPrekeys);
      const stored = await readPrekeyStatus(db, device, limits);
      if (!stored)
        throw refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
          metadata: { device_id: device.deviceId },
        });
      refuseRevoked(device, stored.revoked_at);
      const rows = await readPublishedPrekeys(db, stored.device_number, {
        oneTime: request.oneTimePrekeys.map(({ keyId }) => keyId),
        kem: request.oneTimeKemPrekeys.map(({ keyId }) => keyId),
      });
      return create(CheckKeysResponseSchema, {
        ...compare(device, request, stored, rows),
        status: prekeyStatusMessage(stored, limits),
      });
    },
  });
}

function compare(device: Ref, request: CheckKeysRequest, stored: PrekeyStatusRow, rows: readonly PublishedPrekeyRow[]) {
  const signedPrekey = { keyId: Number(stored.signed_prekey_id), hash: stored.signed_prekey_hash };
  const lastResortPrekey = { keyId: Number(stored.last_resort_prekey_id), hash: stored.last_resort_prekey_hash };
  const oneTime = comparePool(request.oneTimePrekeys, ...poolOf(rows, false));
  const kem = comparePool(request.oneTimeKemPrekeys, ...poolOf(rows, true));
  const digest = publishedKeysDigest({
    ...device,
    identityKey: stored.identity_key,
    signingKey: stored.signing_key,
    certificateSignature: stored.certificate_signature,
    signedPrekey,
    lastResortPrekey,
    oneTimePrekeys: oneTime.hashes,
    oneTimeKemPrekeys: kem.hashes,
  });
  const agrees = sameBytes(digest, request.digest);
  const signedPrekeyDiffers = !sameKey(request.signedPrekey, signedPrekey);
  const lastResortPrekeyDiffers = !sameKey(request.lastResortPrekey, lastResortPrekey);
  const prekeysDiffer = signedPrekeyDiffers || lastResortPrekeyDiffers || differ(oneTime) || differ(kem);
  return {
    matches: agrees && oneTime.notHeld.length + kem.notHeld.length === 0,
    // The device sends no fingerprint of these: they are to blame when nothing else is.
    identityDiffers: !agrees && !prekeysDiffer,
    signedPrekeyDiffers,
    lastResortPrekeyDiffers,
    oneTimePrekeys: differenceMessage(oneTime, stored),
    oneTimeKemPrekeys: differenceMessage(kem, stored),
  };
}

function differ({ neverUploaded, otherKey }: PoolDifference): boolean {
  return neverUploaded.length + otherKey.length > 0;
}

/** What this database has never seen may have been claimed in a time that it has lost: the device is not asked to upload it once more. */
function differenceMessage(
  { neverUploaded, otherKey, notHeld, claimed }: PoolDifference,
  { uploads_lost }: PrekeyStatusRow,
) {
  return { neverUploaded: uploads_lost ? [] : neverUploaded, otherKey, notHeld, claimed };
}

function poolOf(rows: readonly PublishedPrekeyRow[], kem: boolean): [KnownPrekey[], Set<number>] {
  const known: KnownPrekey[] = [];
  const unclaimed = new Set<number>();
  for (const row of rows) {
    if (row.kem !== kem) continue;
    const keyId = Number(row.key_id);
    if (row.from_pool) unclaimed.add(keyId);
    else known.push({ keyId, hash: row.hash ?? undefined, retired: row.retired, otherKind: row.last_resort });
  }
  return [known, unclaimed];
}

function refuseOutOfOrder(field: string, prekeys: CheckKeysRequest['oneTimePrekeys']): void {
  const index = outOfOrder(prekeys);
  if (index !== undefined) throw invalidField(`${field}[${index}].key_id`, 'ids are ascending, and each stands once');
}

import { create } from '@bufbuild/protobuf';
import {
  IdentityKeysService,
  type ReplenishPrekeysRequest,
  ReplenishPrekeysRequestSchema,
  type ReplenishPrekeysResponse,
  ReplenishPrekeysResponseSchema,
} from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { keysOfPrekeys, repeatedKeyId, signaturesOfPrekeys } from '../domain/key-set.ts';
import type { PrismaClient } from '../store/generated/client.ts';
import { addKemPrekeys, addOneTimePrekeys, countUnclaimed, type Fate, lockDevice } from '../store/prekeys.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from '../verify-keys.ts';
import { oncePerRequest } from './once-per-request.ts';
import { refuseOverfull } from './refuse-overfull.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface ReplenishPrekeysParts {
  readonly db: Database;
  readonly prisma: PrismaClient;
  readonly maxPrekeysPerPool: number;
}

/**
 * Adds one-time prekeys to the calling device's pools. Idempotent by request_id, and by key: one that was uploaded before, claimed or
 * not, changes nothing.
 */
export function replenishPrekeys({ db, prisma, maxPrekeysPerPool }: ReplenishPrekeysParts): Rpc {
  return unary(IdentityKeysService.method.replenishPrekeys, {
    allow: ['device'],
    async handle(request, call) {
      const { userId, deviceId } = deviceCaller(call);
      const repeated = repeatedKeyId(request);
      if (repeated) throw invalidField(repeated, 'the key id stands twice in this upload');
      const device = await prisma.device.findUnique({
        where: { userId_deviceId: { userId, deviceId } },
        select: { deviceNumber: true, userId: true, deviceId: true, signingKey: true, revokedAt: true },
      });
      if (!device)
        throw refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
          metadata: { device_id: deviceId },
        });
      refuseRevoked(device, device.revokedAt);
      await refuseInvalidKeys(keysOfPrekeys(request));
      await refuseInvalidSignatures(signaturesOfPrekeys(device, request));

      const { response, repeated: again } = await oncePerRequest(
        db,
        call,
        { input: ReplenishPrekeysRequestSchema, output: ReplenishPrekeysResponseSchema, request },
        (tx) => addPrekeys(tx, device, request, maxPrekeysPerPool),
      );
      call.log.info(
        { user: pseudonym(userId), device: pseudonym(deviceId), counts: response.counts, repeated: again },
        'prekeys replenished',
      );
      return response;
    },
  });
}

async function addPrekeys(
  tx: Transaction,
  device: Ref & { readonly deviceNumber: bigint },
  request: ReplenishPrekeysRequest,
  limit: number,
): Promise<ReplenishPrekeysResponse> {
  refuseRevoked(device, await lockDevice(tx, device.deviceNumber));
  const oneTime = await addOneTimePrekeys(tx, device.deviceNumber, request.oneTimePrekeys);
  refuseConflict('one_time_prekeys', request.oneTimePrekeys, oneTime);
  const kem = await addKemPrekeys(tx, device.deviceNumber, request.oneTimeKemPrekeys);
  refuseConflict('one_time_kem_prekeys', request.oneTimeKemPrekeys, kem);
  const counts = await countUnclaimed(tx, device.deviceNumber);
  refuseOverfull('one_time_prekeys', { unclaimed: counts.oneTime, added: added(oneTime) }, limit);
  refuseOverfull('one_time_kem_prekeys', { unclaimed: counts.kem, added: added(kem) }, limit);
  return create(ReplenishPrekeysResponseSchema, { counts });
}

function added(fates: readonly Fate[]): number {
  return fates.filter((fate) => fate === 'added').length;
}

function refuseConflict(kind: string, prekeys: readonly { keyId: number }[], fates: readonly Fate[]): void {
  const index = fates.indexOf('conflict');
  if (index < 0) return;
  const field = `${kind}[${index}].key_id`;
  throw refuse('PREKEY_ID_CONFLICT', `${field}: the id is in use, or was, with another key`, {
    metadata: { field, key_id: String(prekeys[index]?.keyId) },
  });
}

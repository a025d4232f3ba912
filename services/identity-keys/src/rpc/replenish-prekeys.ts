import { create } from '@bufbuild/protobuf';
import {
  IdentityKeysService,
  type ReplenishPrekeysRequest,
  type ReplenishPrekeysResponse,
  ReplenishPrekeysResponseSchema,
} from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { keysOfPrekeys, repeatedKeyId, signaturesOfPrekeys } from '../domain/key-set.ts';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import { countRetired } from '../prekey-metrics.ts';
import type { PrismaClient } from '../store/generated/client.ts';
import { settleNotice } from '../store/low-prekey-notices.ts';
import { addKemPrekeys, addOneTimePrekeys, countUnclaimed, type Fate, lockDevice } from '../store/prekeys.ts';
import { retirePrekeys } from '../store/retired-prekeys.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from '../verify-keys.ts';
import { callerKey } from './caller-key.ts';
import { type CallingDevice, findCallingDevice } from './calling-device.ts';
import { refuseConflict } from './refuse-conflict.ts';
import { refuseOverfull } from './refuse-overfull.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface ReplenishPrekeysParts {
  readonly db: Database;
  readonly prisma: PrismaClient;
  readonly maxPrekeysPerPool: number;
  readonly limits: PrekeyLimits;
}

/**
 * Retires the named prekeys of the calling device, then adds new ones to its pools. Idempotent by request_id, and by key: one that was
 * uploaded before, claimed or not, changes nothing.
 */
export function replenishPrekeys({ db, prisma, maxPrekeysPerPool, limits }: ReplenishPrekeysParts): Rpc {
  return unary(IdentityKeysService.method.replenishPrekeys, {
    allow: ['device'],
    async handle(request, call) {
      const repeated = repeatedKeyId(request);
      if (repeated) throw invalidField(repeated, 'the key id stands twice in this upload');
      const device = await findCallingDevice(prisma, call);
      await refuseInvalidKeys(keysOfPrekeys(request));
      await refuseInvalidSignatures(signaturesOfPrekeys(device, request));

      const { response, repeated: again } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.replenishPrekeys, request, callerKey(call)),
        (tx) => changePools(tx, device, request, { maxPrekeysPerPool, limits }),
      );
      call.log.info(
        {
          user: pseudonym(device.userId),
          device: pseudonym(device.deviceId),
          counts: response.counts,
          repeated: again,
        },
        'prekeys replenished',
      );
      return response;
    },
  });
}

async function changePools(
  tx: Transaction,
  device: CallingDevice,
  request: ReplenishPrekeysRequest,
  { maxPrekeysPerPool: limit, limits }: Pick<ReplenishPrekeysParts, 'maxPrekeysPerPool' | 'limits'>,
): Promise<ReplenishPrekeysResponse> {
  refuseRevoked(device, await lockDevice(tx, device.deviceNumber));
  const retired = await retirePrekeys(tx, device.deviceNumber, {
    oneTime: request.retireOneTimeKeyIds,
    kem: request.retireKemKeyIds,
  });
  const oneTime = await addOneTimePrekeys(tx, device.deviceNumber, request.oneTimePrekeys);
  refuseConflict('one_time_prekeys', request.oneTimePrekeys, oneTime);
  const kem = await addKemPrekeys(tx, device.deviceNumber, request.oneTimeKemPrekeys);
  refuseConflict('one_time_kem_prekeys', request.oneTimeKemPrekeys, kem);
  const counts = await countUnclaimed(tx, device.deviceNumber);
  refuseOverfull('one_time_prekeys', { unclaimed: counts.oneTime, added: added(oneTime) }, limit);
  refuseOverfull('one_time_kem_prekeys', { unclaimed: counts.kem, added: added(kem) }, limit);
  await settleNotice(tx, device.deviceNumber, limits);
  tx.afterCommit(() => countRetired(retired, 'device'));
  return create(ReplenishPrekeysResponseSchema, { counts, retired });
}

function added(fates: readonly Fate[]): number {
  return fates.filter((fate) => fate === 'added').length;
}

import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  IdentityKeysService,
  type RotateSignedPrekeyRequest,
  type RotateSignedPrekeyResponse,
  RotateSignedPrekeyResponseSchema,
} from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { keepTrace, pseudonym } from '@keytrail/telemetry';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import { keysOfRotation, signaturesOfRotation } from '../domain/rotation.ts';
import type { PrismaClient } from '../store/generated/client.ts';
import { settleNotice } from '../store/low-prekey-notices.ts';
import { countUnclaimed, lockDevice } from '../store/prekeys.ts';
import { rotateLastResortPrekey, rotateSignedPrekey as rotateSigned } from '../store/rotations.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from '../verify-keys.ts';
import { callerKey } from './caller-key.ts';
import { type CallingDevice, findCallingDevice } from './calling-device.ts';
import { prekeyIdConflict } from './refuse-conflict.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface RotateSignedPrekeyParts {
  readonly db: Database;
  readonly prisma: PrismaClient;
  readonly limits: PrekeyLimits;
}

/**
 * Makes a signed prekey, a last-resort prekey, or both, the calling device's current ones, or changes nothing. Idempotent by request_id, and
 * by key while it is current; a key that was replaced does not come back.
 */
export function rotateSignedPrekey({ db, prisma, limits }: RotateSignedPrekeyParts): Rpc {
  return unary(IdentityKeysService.method.rotateSignedPrekey, {
    allow: ['device'],
    async handle(request, call) {
      const device = await findCallingDevice(prisma, call);
      await refuseInvalidKeys(keysOfRotation(request));
      await refuseInvalidSignatures(signaturesOfRotation(device, request));
      keepTrace('prekeys rotated');
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.rotateSignedPrekey, request, callerKey(call)),
        (tx) => rotate(tx, device, request, limits),
      );
      call.log.info(
        {
          user: pseudonym(device.userId),
          device: pseudonym(device.deviceId),
          signed: request.signedPrekey !== undefined,
          lastResort: request.lastResortPrekey !== undefined,
          repeated,
        },
        'prekeys rotated',
      );
      return response;
    },
  });
}

async function rotate(
  tx: Transaction,
  device: CallingDevice,
  { signedPrekey, lastResortPrekey }: RotateSignedPrekeyRequest,
  limits: PrekeyLimits,
): Promise<RotateSignedPrekeyResponse> {
  refuseRevoked(device, await lockDevice(tx, device.deviceNumber));
  if (signedPrekey && (await rotateSigned(tx, device.deviceNumber, signedPrekey)) === 'conflict')
    throw prekeyIdConflict('signed_prekey.key_id', signedPrekey.keyId);
  if (lastResortPrekey && (await rotateLastResortPrekey(tx, device.deviceNumber, lastResortPrekey)) === 'conflict')
    throw prekeyIdConflict('last_resort_prekey.key_id', lastResortPrekey.keyId);
  await settleNotice(tx, device.deviceNumber, limits);
  return create(RotateSignedPrekeyResponseSchema, {
    keepOldUntil: timestampFromMs(Date.now() + limits.graceMs),
    counts: await countUnclaimed(tx, device.deviceNumber),
  });
}

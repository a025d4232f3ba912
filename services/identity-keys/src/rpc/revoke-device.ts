import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  IdentityKeysService,
  type RevokeDeviceResponse,
  RevokeDeviceResponseSchema,
  RevokedBy,
} from '@keytrail/contracts';
import { deviceRevocationStatement, type Ref } from '@keytrail/crypto';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { type Call, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { keepTrace, pseudonym } from '@keytrail/telemetry';
import {
  revocationByDevice,
  revocationByOperator,
  type SignedRevocation,
  signatureValidForMs,
} from '../domain/revocation-request.ts';
import { recordAudit } from '../store/audit-log.ts';
import type { Revoker } from '../store/device-log.ts';
import { type LockedUser, lockUser } from '../store/devices.ts';
import {
  devicesOfUser,
  findRevocation,
  type Revocation,
  revokeDevices,
  type StoredDevice,
  type Writer,
} from '../store/revocations.ts';
import { refuseInvalidSignatures } from '../verify-keys.ts';
import { writerOf } from '../writer.ts';
import { callerKey } from './caller-key.ts';
import { announceDevice } from './device-list-events.ts';
import { registeredDevice } from './registered-device.ts';

/** Who asks: a device of the user with the root key's signature, or an operator with a reason. */
type Asker =
  | { readonly kind: 'device'; readonly device: Ref; readonly signed: SignedRevocation }
  | { readonly kind: 'operator'; readonly operator: string; readonly note: string };

/** Ends a device for good. Idempotent by request_id, and by device: again is a no-op with the first answer. */
export function revokeDevice({ db, writerBuild }: { readonly db: Database; readonly writerBuild: string }): Rpc {
  return unary(IdentityKeysService.method.revokeDevice, {
    allow: ['device', 'operator'],
    async handle(request, call) {
      const target = request.device;
      if (!target) throw new Error('the request was not validated');
      const asker = askerOf(request, call);
      keepTrace('device revoked');
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.revokeDevice, request, callerKey(call)),
        (tx) => revoke(tx, target, asker, writerOf({ writerBuild })),
      );
      call.log.info(
        {
          user: pseudonym(target.userId),
          device: pseudonym(target.deviceId),
          version: String(response.deviceListVersion),
          by: asker.kind,
          repeated,
        },
        'device revoked',
      );
      return response;
    },
  });
}

function askerOf(request: Parameters<typeof revocationByDevice>[0], { caller, method }: Call): Asker {
  if (caller.kind === 'operator') {
    const broken = revocationByOperator(request);
    if (broken) throw invalidField(broken.field, broken.rule);
    return { kind: 'operator', operator: caller.subject, note: request.auditNote };
  }
  if (caller.kind !== 'device')
    throw refuse('CALLER_NOT_ALLOWED', 'this method is for devices and operators', {
      metadata: { method, caller: caller.kind },
    });
  const signed = revocationByDevice(request);
  if ('rule' in signed) throw invalidField(signed.field, signed.rule);
  return { kind: 'device', device: { userId: caller.userId, deviceId: caller.deviceId }, signed };
}

async function revoke(tx: Transaction, target: Ref, asker: Asker, writer: Writer): Promise<RevokeDeviceResponse> {
  const userId = asker.kind === 'device' ? asker.device.userId : target.userId;
  const user = await lockUser(tx, userId);
  const devices = user ? await devicesOfUser(tx, userId) : [];
  if (asker.kind === 'device') registeredDevice(asker.device, devices);
  const device = userId === target.userId ? devices.find(({ device_id }) => device_id === target.deviceId) : undefined;
  if (!user || !device) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such device, or it is not yours');
  if (!device.revoked_at) {
    const revoker = await revokerOf(asker, { userId, user, device });
    for (const entry of await revokeDevices(tx, userId, [device], { rootKey: user.root_key, revoker }, writer))
      await announceDevice(tx, target, entry, { revoked: true });
    if (asker.kind === 'operator')
      recordAudit(tx, {
        operator: asker.operator,
        action: 'revoke_device',
        userId,
        deviceId: target.deviceId,
        note: asker.note,
        traceId: writer.traceId,
      });
  }
  const revocation = await findRevocation(tx, target);
  if (!revocation) throw new Error('a device was revoked without a trace');
  return answer(revocation);
}

/** Throws INVALID_FIELD for a time that is too far from now, SIGNATURE_INVALID. */
async function revokerOf(
  asker: Asker,
  { userId, user, device }: { userId: string; user: LockedUser; device: StoredDevice },
): Promise<Revoker> {
  if (asker.kind === 'operator') return { by: RevokedBy.OPERATOR };
  const { signedAtMs, signature } = asker.signed;
  if (Math.abs(Number(signedAtMs) - Date.now()) > signatureValidForMs)
    throw invalidField('revoked_at', 'is more than a day from the time of the server');
  const keys = { userId, deviceId: device.device_id, identityKey: device.identity_key, signingKey: device.signing_key };
  const statement = deviceRevocationStatement(keys, { rootKey: user.root_key, revokedAtMs: signedAtMs, signature });
  await refuseInvalidSignatures([{ field: 'signature', statement }]);
  return { by: RevokedBy.USER_DEVICE, revokingDeviceId: asker.device.deviceId, signedAtMs, signature };
}

function answer({ version, entry_hash, revoked_at, removed_one_time, removed_kem }: Revocation): RevokeDeviceResponse {
  return create(RevokeDeviceResponseSchema, {
    deviceListVersion: version,
    logHead: entry_hash,
    revokedAt: timestampFromDate(revoked_at),
    removed: { oneTime: removed_one_time, kem: removed_kem },
  });
}

import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { type DeleteUserResponse, DeleteUserResponseSchema, IdentityKeysService, RevokedBy } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { keepTrace, pseudonym } from '@keytrail/telemetry';
import { askToErase } from '../jobs/complete-erasures.ts';
import { recordAudit } from '../store/audit-log.ts';
import { lockUser } from '../store/devices.ts';
import { type Erasure, holdErasureOf, insertErasure, markErased } from '../store/erasures.ts';
import { devicesOfUser, revokeDevices, type Writer } from '../store/revocations.ts';
import { writerOf } from '../writer.ts';
import { callerKey } from './caller-key.ts';
import { announceDevice } from './device-list-events.ts';
import { erasureMessage } from './erasure-message.ts';

interface Wanted {
  readonly userId: string;
  readonly operator: string;
  readonly note: string;
}

/**
 * Begins the erasure of a user over all services; also of one who never registered here, as others may know the id. In one transaction no
 * device of the user is good any more, and the id cannot come back. Idempotent by request_id, and by user while the erasure names the user.
 */
export function deleteUser({ db, writerBuild }: { readonly db: Database; readonly writerBuild: string }): Rpc {
  return unary(IdentityKeysService.method.deleteUser, {
    allow: ['operator'],
    async handle(request, call) {
      const { caller } = call;
      if (caller.kind !== 'operator')
        throw refuse('CALLER_NOT_ALLOWED', 'this method is for operators', {
          metadata: { method: call.method, caller: caller.kind },
        });
      const wanted = { userId: request.userId, operator: caller.subject, note: request.auditNote };
      keepTrace('user erased');
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.deleteUser, request, callerKey(call)),
        (tx) => beginErasure(tx, wanted, writerOf({ writerBuild })),
      );
      const { erasureId } = response.erasure ?? {};
      call.log.info({ erasureId, user: pseudonym(request.userId), repeated }, 'user to be erased');
      return response;
    },
  });
}

async function beginErasure(tx: Transaction, wanted: Wanted, writer: Writer): Promise<DeleteUserResponse> {
  const known = await holdErasureOf(tx, wanted.userId);
  return create(DeleteUserResponseSchema, {
    erasure: await erasureMessage(tx, known ?? (await begin(tx, wanted, writer))),
  });
}

async function begin(tx: Transaction, { userId, operator, note }: Wanted, writer: Writer): Promise<Erasure> {
  const user = await lockUser(tx, userId);
  const devices = user ? await devicesOfUser(tx, userId) : [];
  if (user) {
    const left = devices.filter(({ revoked_at }) => !revoked_at);
    const revoker = { by: RevokedBy.OPERATOR } as const;
    const entries = await revokeDevices(tx, userId, left, { rootKey: user.root_key, revoker }, writer);
    for (const { deviceId, ...entry } of entries)
      await announceDevice(tx, { userId, deviceId }, entry, { revoked: true });
    await markErased(tx, userId);
  }
  const deviceIds = devices.map(({ device_id }) => device_id);
  const erasure = await insertErasure(tx, { erasureId: randomUUID(), userId, deviceIds });
  await askToErase(tx, erasure);
  recordAudit(tx, { operator, action: 'delete_user', userId, note, traceId: writer.traceId });
  return erasure;
}

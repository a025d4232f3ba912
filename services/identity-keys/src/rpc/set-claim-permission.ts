import { create } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { IdentityKeysService, SetClaimPermissionResponseSchema } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { setClaimPermission as store } from '../store/claim-permissions.ts';
import { isOfErasedUser } from '../store/erasures.ts';
import { callerKey } from './caller-key.ts';

/** Lets a user claim the prekeys of another one until a time, or no more. For the application, as operator. Idempotent by request_id. Throws USER_ERASED. */
export function setClaimPermission({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysService.method.setClaimPermission, {
    allow: ['operator'],
    async handle(request, call) {
      const { userId, targetUserId } = request;
      const until = request.expiresAt && timestampDate(request.expiresAt);
      const expiresAt = until !== undefined && until.getTime() > Date.now() ? until : undefined;
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.setClaimPermission, request, callerKey(call)),
        async (tx) => {
          await store(tx, { userId, targetUserId, expiresAt, grantedBy: callerKey(call) });
          return create(SetClaimPermissionResponseSchema);
        },
      ).catch((error: unknown) => {
        throw isOfErasedUser(error) ? refuse('USER_ERASED', 'one of the users has been erased') : error;
      });
      call.log.info(
        {
          user: pseudonym(userId),
          target: pseudonym(targetUserId),
          operator: pseudonym(callerKey(call)),
          expires_at: expiresAt?.toISOString() ?? null,
          repeated,
        },
        'claim permission set',
      );
      return response;
    },
  });
}

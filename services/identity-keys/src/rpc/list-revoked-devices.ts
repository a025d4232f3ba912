import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { IdentityKeysService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { listRevocations } from '../store/revocations.ts';

const largestPage = 1_000;

/** All revocations in the order of their numbers: who has read up to one has missed none below it. */
export function listRevokedDevices({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysService.method.listRevokedDevices, {
    allow: ['service:session', 'service:conversation', 'service:presence'],
    async handle({ after, pageSize }) {
      const page = pageSize || largestPage;
      const revocations = await listRevocations(db, after, page + 1);
      return {
        revocations: revocations.slice(0, page).map(({ number, userId, deviceId, revokedAt }) => ({
          number,
          device: { userId, deviceId },
          revokedAt: timestampFromDate(revokedAt),
        })),
        more: revocations.length > page,
      };
    },
  });
}

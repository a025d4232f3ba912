import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { IdentityKeysService, SetRecoveryResponseSchema } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { lockUser } from '../store/devices.ts';
import { keepRecovery } from '../store/recoveries.ts';
import { devicesOfUser } from '../store/revocations.ts';
import { callerKey } from './caller-key.ts';
import { refuseOtherRootKey } from './refuse-other-root-key.ts';
import { registeredDevice } from './registered-device.ts';

/** Keeps the user's present root key, sealed by a key that only the user has. Idempotent by request_id. */
export function setRecovery({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysService.method.setRecovery, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.setRecovery, request, callerKey(call)),
        async (tx) => {
          const user = await lockUser(tx, device.userId);
          registeredDevice(device, user ? await devicesOfUser(tx, device.userId) : []);
          refuseOtherRootKey(device.userId, user?.root_key, request.rootKey);
          const updatedAt = await keepRecovery(tx, device.userId, request);
          return create(SetRecoveryResponseSchema, { updatedAt: timestampFromDate(updatedAt) });
        },
      );
      call.log.info({ user: pseudonym(device.userId), device: pseudonym(device.deviceId), repeated }, 'recovery kept');
      return response;
    },
  });
}

import { create } from '@bufbuild/protobuf';
import { type GetPrekeyStatusRequest, GetPrekeyStatusResponseSchema, IdentityKeysService } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { type Call, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import { readPrekeyStatus } from '../store/prekey-status.ts';
import { prekeyStatusMessage } from './prekey-status-message.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface GetPrekeyStatusParts {
  readonly db: Database;
  readonly limits: PrekeyLimits;
}

/** Levels and ages of a device's prekeys, in one statement. */
export function getPrekeyStatus({ db, limits }: GetPrekeyStatusParts): Rpc {
  return unary(IdentityKeysService.method.getPrekeyStatus, {
    allow: ['device', 'service', 'operator'],
    async handle(request, call) {
      const device = deviceAskedFor(request, call);
      const row = await readPrekeyStatus(db, device, limits);
      if (!row)
        throw refuse('DEVICE_NOT_REGISTERED', 'the device has not been registered', {
          metadata: { device_id: device.deviceId },
        });
      refuseRevoked(device, row.revoked_at);
      return create(GetPrekeyStatusResponseSchema, { status: prekeyStatusMessage(row, limits) });
    },
  });
}

function deviceAskedFor({ device }: GetPrekeyStatusRequest, { caller }: Call): Ref {
  if (caller.kind === 'device') {
    if (device && (device.userId !== caller.userId || device.deviceId !== caller.deviceId))
      throw invalidField('device', 'devices ask for themselves');
    return caller;
  }
  if (!device) throw invalidField('device', 'services and operators name the device');
  return device;
}

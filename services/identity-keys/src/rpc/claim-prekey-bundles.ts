import { IdentityKeysService } from '@keytrail/contracts';
import { invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { attr, trace } from '@keytrail/telemetry';
import { digestDevices, repeatedDevice } from '../domain/claim-request.ts';
import type { LowPrekeys } from '../low-prekeys.ts';
import { type ClaimedRow, ClaimIdReused, claimPrekeyBundles as claim } from '../store/claims.ts';
import { callerKey } from './caller-key.ts';
import { claimResultMessage } from './device-messages.ts';

export interface ClaimPrekeyBundlesParts {
  readonly db: Database;
  readonly lowPrekeys: LowPrekeys;
  readonly lowPrekeysBelow: number;
}

/** Takes a bundle of each named device. Idempotent by claim_id, which is the caller's own. */
export function claimPrekeyBundles({ db, lowPrekeys, lowPrekeysBelow }: ClaimPrekeyBundlesParts): Rpc {
  return unary(IdentityKeysService.method.claimPrekeyBundles, {
    allow: ['device', 'service'],
    async handle({ claimId, devices }, call) {
      const repeated = repeatedDevice(devices);
      if (repeated !== undefined) throw invalidField(`devices[${repeated}]`, 'the device stands twice in the request');
      trace.getActiveSpan()?.setAttributes({ [attr.claimId]: claimId, [attr.devicesClaimed]: devices.length });
      const rows = await claim(
        db,
        { caller: callerKey(call), claimId, devices, devicesDigest: digestDevices(devices) },
        { lowBelow: lowPrekeysBelow, signal: call.signal },
      ).catch((error: unknown) => {
        if (!(error instanceof ClaimIdReused)) throw error;
        throw refuse('REQUEST_ID_REUSED', error.message, { metadata: { request_id: claimId } });
      });
      await lowPrekeys.tell(lowDevices(rows));
      return {
        results: devices.map((device, i) => {
          const row = rows[i];
          if (!row) throw new Error('a claim has one row for each device');
          return claimResultMessage(device, row);
        }),
      };
    },
  });
}

function lowDevices(rows: readonly ClaimedRow[]) {
  return rows.flatMap(({ low, device_number, prekeys_added }) =>
    low && device_number !== null && prekeys_added !== null
      ? [{ deviceNumber: device_number, prekeysAdded: prekeys_added }]
      : [],
  );
}

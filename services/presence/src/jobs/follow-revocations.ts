import type { Client } from '@connectrpc/connect';
import type { IdentityKeysService } from '@keytrail/contracts';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Telemetry } from '@keytrail/telemetry';
import type { Gateway } from '../gateway.ts';

type Revocations = Pick<Client<typeof IdentityKeysService>, 'listRevokedDevices'>;

const firstStride = 1_000n;

/**
 * Ends the streams of revoked devices that no event told of, within one interval and one call: reads on in the list of revocations, from
 * where it stood when this gateway began, since every device is asked for when it attaches. Nothing else is done here that this could wait for.
 */
export function followRevocations(
  {
    gateway,
    identityKeys,
    log,
  }: {
    readonly gateway: Gateway;
    readonly identityKeys: Revocations;
    readonly log: Telemetry['log'];
  },
  everyMs: number,
): Rounds {
  let after: bigint | undefined;
  return startRounds({
    what: 'the pull of revocations',
    everyMs,
    log,
    async round() {
      if (after === undefined) {
        after = await newestRevocation(identityKeys);
        gateway.followsRevocations = true;
      }
      const { revocations, more } = await identityKeys.listRevokedDevices({ after });
      for (const { number, device } of revocations) {
        if (device) gateway.attachments.of(device.userId, device.deviceId)?.end('revoked');
        after = number;
      }
      return more;
    },
  });
}

/** A number of which all newer revocations fit on one page, found in strides that double: the list can only be read forwards. */
async function newestRevocation(identityKeys: Revocations): Promise<bigint> {
  let known = 0n;
  let none: bigint | undefined;
  for (let stride = firstStride; none === undefined || none - known > firstStride; stride *= 2n) {
    const probe: bigint = none === undefined ? known + stride : (known + none) / 2n;
    const [next] = (await identityKeys.listRevokedDevices({ after: probe, pageSize: 1 })).revocations;
    if (next) known = next.number;
    else none = probe;
  }
  return known;
}

import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Rpc } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { deviceNotActive } from '../refusals.ts';
import { revokedSince } from '../store/revoked-devices.ts';

/** The method, refused to devices that are known to be revoked: they read no log and no roster, and change nothing. One statement more. */
export function forActiveDevices({ db }: Pick<Parts, 'db'>, rpc: Rpc): Rpc {
  if (rpc.kind !== 'unary') throw new Error('this service has no streams');
  const handle: Extract<Rpc, { kind: 'unary' }>['handle'] = async (request, call) => {
    const { caller } = call;
    const since = caller.kind === 'device' ? await revokedSince(db, caller) : undefined;
    if (caller.kind === 'device' && since)
      throw deviceNotActive(caller.deviceId, { state: 'revoked', revokedAt: timestampFromDate(since) });
    return rpc.handle(request, call);
  };
  return { ...rpc, handle };
}

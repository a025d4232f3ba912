import type { Outcome } from '@keytrail/diagnosis';
import type { DeviceEntry } from '../domain/device-entry.ts';

export interface Picture {
  /** Streams that this gateway holds. */
  readonly attached: number;
  /** Of them, how many were compared with Redis. */
  readonly compared: number;
  /** Of those, how many Redis does not know as they are. */
  readonly lost: number;
  /** Gateways with a lease. */
  readonly gateways: number;
}

export function judgePresence({ attached, compared, lost, gateways }: Picture): Outcome {
  const evidence = { attached, compared, lost, gateways };
  if (lost > 0)
    return {
      status: 'fail',
      summary: `${lost} of ${compared} devices that are attached here are offline for everybody else`,
      evidence,
      hint: 'Redis lost data: the gateway writes them again within one renewal (KEYTRAIL_GATEWAY_RENEW_MS). If it stays so, see its log, REDIS and LEASES',
    };
  return { status: 'ok', summary: `${attached} devices are attached here, and Redis knows them`, evidence };
}

type Leases = readonly { readonly gatewayId: string; readonly endsInMs: number }[];

export function judgeLeases(own: string, leases: Leases): Outcome {
  const mine = leases.find(({ gatewayId }) => gatewayId === own);
  const live = leases.filter(({ endsInMs }) => endsInMs > 0).length;
  const evidence = { gateway: own, gateways: live, ...(mine && { endsInMs: Math.round(mine.endsInMs) }) };
  if (mine && mine.endsInMs > 0)
    return { status: 'ok', summary: `this gateway has its lease; ${live} gateways in all`, evidence };
  return {
    status: 'fail',
    summary: 'this gateway has no lease: its devices are offline for everybody',
    evidence,
    hint: 'it takes a new one at the next renewal; if it stays so, this process stands still or cannot write to Redis (its log says “gateway lease was lost”)',
  };
}

export function judgeGhosts(entries: readonly Pick<DeviceEntry, 'gatewayId'>[], leases: Leases): Outcome {
  const live = new Set(leases.filter(({ endsInMs }) => endsInMs > 0).map(({ gatewayId }) => gatewayId));
  const ghosts = entries.filter(({ gatewayId }) => !live.has(gatewayId));
  const gone = new Set(ghosts.map(({ gatewayId }) => gatewayId));
  const evidence = { entries: entries.length, ghosts: ghosts.length, goneGateways: gone.size };
  if (ghosts.length > 0)
    return {
      status: 'warn',
      summary: `${ghosts.length} of ${entries.length} entries point to ${gone.size} gateways that are gone`,
      evidence,
      hint: 'a gateway was killed: its devices are offline until they attach again, which they do by themselves; their old entries go with time',
    };
  return { status: 'ok', summary: `${entries.length} entries, all of gateways with a lease`, evidence };
}

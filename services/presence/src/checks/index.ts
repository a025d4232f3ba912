import type { Outcome, Probe } from '@keytrail/diagnosis';
import type { Gateway } from '../gateway.ts';
import type { LeaseStore } from '../store/lease-store.ts';
import { isRedisAway } from '../store/redis-connection.ts';
import { judgeGhosts, judgeLeases, judgePresence } from './judgements.ts';

interface Checked {
  readonly leases: LeaseStore;
  readonly gateway: Gateway;
}

/** Attachments that are compared with Redis, and users whose entries are looked through for ghosts. */
const compared = 500;
const lookedThrough = 5_000;

/** What a gateway is asked about itself and about what Redis has of it. */
export function presenceProbes({ leases, gateway }: Checked): Probe[] {
  return [
    { code: 'REDIS', run: () => askRedis(leases) },
    {
      code: 'PRESENCE',
      async run() {
        const held = gateway.attachments.some(compared);
        const found = await leases.findAll([...new Set(held.map(({ userId }) => userId))]);
        const entries = new Set(
          found.map(({ userId, deviceId, entry }) => `${userId} ${deviceId} ${entry.gatewayId} ${entry.connectionId}`),
        );
        const lost = held.filter(
          ({ userId, deviceId, connectionId, ended }) =>
            !ended && !entries.has(`${userId} ${deviceId} ${gateway.id} ${connectionId}`),
        ).length;
        const live = (await leases.listLeases()).filter(({ endsInMs }) => endsInMs > 0).length;
        return judgePresence({ attached: gateway.attachments.size, compared: held.length, lost, gateways: live });
      },
    },
    { code: 'LEASES', run: async () => judgeLeases(gateway.id, await leases.listLeases()) },
    {
      code: 'GHOSTS',
      async run() {
        const entries = await leases.someEntries(lookedThrough);
        return judgeGhosts(entries, await leases.listLeases());
      },
    },
  ];
}

async function askRedis(leases: LeaseStore): Promise<Outcome> {
  const from = performance.now();
  try {
    await leases.ping();
    const ms = Math.round(performance.now() - from);
    return { status: 'ok', summary: `Redis answers in ${ms} ms`, evidence: { roundTripMs: ms } };
  } catch (error) {
    if (!isRedisAway(error)) throw error;
    return {
      status: 'fail',
      summary: 'Redis does not answer: nobody can be found online',
      hint: 'start Redis, or look at KEYTRAIL_REDIS_URL and the network; streams stay, and the picture is right one lease after it is back',
    };
  }
}

import type { EventBus } from '@keytrail/events';
import type { Probe } from '../check.ts';

const hint = 'start NATS, or look at KEYTRAIL_NATS_URL and the network; events wait in the outbox meanwhile';

/** That NATS answers this process. */
export function probeNats(bus: EventBus): Probe {
  return {
    code: 'NATS',
    async run(signal) {
      if (!bus.isConnected()) return { status: 'fail', summary: 'NATS is away', hint };
      const answered = await Promise.race([
        bus.connection.rtt(),
        new Promise<undefined>((resolve) => {
          const timer = setTimeout(() => resolve(undefined), 2_000);
          signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
        }),
      ]);
      if (answered === undefined) return { status: 'fail', summary: 'NATS does not answer within 2 s', hint };
      const version = bus.connection.info?.version ?? 'unknown';
      return {
        status: 'ok',
        summary: `NATS ${version} answers in ${answered} ms`,
        evidence: { version, roundTripMs: answered, server: bus.connection.getServer() },
      };
    },
  };
}

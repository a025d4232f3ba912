import type { ConsumerLag, EventBus } from '@keytrail/events';
import type { Outcome, Probe } from '../check.ts';

/** From so many events on that wait for a consumer it is behind. */
export const lagWarnAt = 1_000;

/** That the consumers of the whole fleet keep up. */
export function probeConsumers(bus: EventBus): Probe {
  return {
    code: 'CONSUMERS',
    async run() {
      if (!bus.isConnected())
        return { status: 'unknown', summary: 'NATS is away: its consumers cannot be looked at', hint: 'see NATS' };
      return judgeConsumers(await bus.consumerLags());
    },
  };
}

export function judgeConsumers(lags: readonly ConsumerLag[]): Outcome {
  const sum = (of: (lag: ConsumerLag) => number) => lags.reduce((total, lag) => total + of(lag), 0);
  const name = ({ consumer, stream }: ConsumerLag) => `${consumer} of ${stream}`;
  const evidence = {
    consumers: lags.length,
    pending: sum(({ pending }) => pending),
    unsettled: sum(({ unsettled }) => unsettled),
    redelivered: sum(({ redelivered }) => redelivered),
  };
  const deserted = lags.filter(({ pending, receivers }) => receivers === 0 && pending > 0);
  if (deserted[0])
    return {
      status: 'fail',
      summary: `events wait, and nobody receives: ${deserted.map(name).join(', ')}`,
      evidence,
      hint: 'the service that the consumer belongs to does not run, or lost NATS: see SERVICES_REACHABLE and NATS',
    };
  const behind = lags.filter(({ pending }) => pending >= lagWarnAt);
  if (behind[0])
    return {
      status: 'warn',
      summary: `${behind.map((lag) => `${name(lag)} is ${lag.pending} events behind`).join(', ')}`,
      evidence,
      hint: 'more replicas of the service, or find out what makes its handler slow (traces of `process …`)',
    };
  const again = lags.filter(({ redelivered }) => redelivered > 0);
  if (again[0])
    return {
      status: 'warn',
      summary: `events come again and again: ${again.map((lag) => `${name(lag)} (${lag.redelivered})`).join(', ')}`,
      evidence,
      hint: 'their handler fails: the log of the service says why (“an event could not be handled”); after eight times they are dead letters',
    };
  return { status: 'ok', summary: `${lags.length} consumers keep up, ${evidence.pending} events wait`, evidence };
}

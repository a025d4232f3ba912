import { JetStreamApiCodes, JetStreamApiError, type JetStreamManager } from '@nats-io/jetstream';
import { nanos } from '@nats-io/nats-core';
import { type ConsumerType, consumers, type EventType, streams } from './catalogue.ts';

export interface TopologyOptions {
  readonly replicas: number;
  readonly storage: 'file' | 'memory';
}

/** How long an event may stay unconsumed, and an inbox must remember at least. */
export const eventRetentionMs = 3 * 24 * 60 * 60 * 1000;
/** How long a handler may take without a sign of life before the event goes to another replica. */
export const ackWaitMs = 30_000;

/** The live configuration of NATS is not what this build wants, and cannot be made so. Names every difference. */
export class TopologyMismatch extends Error {
  readonly subject: string;
  readonly differences: readonly string[];

  constructor(subject: string, differences: readonly string[], remedy: string) {
    super(`${subject} differs from the catalogue: ${differences.join('; ')}. ${remedy}`);
    this.name = 'TopologyMismatch';
    this.subject = subject;
    this.differences = differences;
  }
}

/** The sources of a consumer: each stream with the subjects it is filtered by. */
export function sourcesOf(consumer: ConsumerType): { stream: string; subjects: string[] }[] {
  const byStream = Map.groupBy(consumer.events, (event: EventType) => event.stream);
  return [...byStream].map(([stream, events]) => ({ stream, subjects: events.map(({ subject }) => subject).sort() }));
}

type Config = Record<string, unknown>;

function streamConfig(name: string, subjects: readonly string[], describe: string, options: TopologyOptions): Config {
  return {
    name,
    description: describe,
    subjects: [...subjects],
    retention: 'limits',
    storage: options.storage,
    num_replicas: options.replicas,
    max_age: nanos(eventRetentionMs),
    discard: 'old',
    duplicate_window: nanos(2 * 60 * 1000),
  };
}

function consumerConfig(consumer: ConsumerType, subjects: string[]): Config {
  return {
    durable_name: consumer.name,
    description: consumer.describe,
    ack_policy: 'explicit',
    deliver_policy: 'all',
    filter_subjects: subjects,
    ack_wait: nanos(ackWaitMs),
    // The server would drop an event whose last delivery crashed its handler; the consumer counts itself and keeps a dead letter.
    max_deliver: -1,
    max_ack_pending: 1024,
  };
}

const fixedOfStreams = ['retention', 'storage'];
const fixedOfConsumers = ['ack_policy', 'deliver_policy'];

function differences(wanted: Config, live: Config): string[] {
  return Object.keys(wanted).filter((key) => JSON.stringify(wanted[key]) !== JSON.stringify(live[key]));
}

function tell(keys: string[], wanted: Config, live: Config): string[] {
  return keys.map((key) => `${key} is ${JSON.stringify(live[key])}, wanted ${JSON.stringify(wanted[key])}`);
}

interface Resource {
  readonly subject: string;
  readonly wanted: Config;
  readonly fixed: readonly string[];
  readonly notFound: number;
  info(): Promise<{ config: object }>;
  add(): Promise<{ config: object }>;
  update(): Promise<{ config: object }>;
}

/** Creates what is missing and updates what differs. Throws TopologyMismatch for what cannot be changed, or what the server ignored. */
export async function ensureTopology(manager: JetStreamManager, options: TopologyOptions): Promise<void> {
  for (const { name, subjects, describe } of streams) {
    const wanted = streamConfig(name, subjects, describe, options);
    await ensure({
      subject: `stream ${name}`,
      wanted,
      fixed: fixedOfStreams,
      notFound: JetStreamApiCodes.StreamNotFound,
      info: () => manager.streams.info(name),
      add: () => manager.streams.add(wanted as { name: string }),
      update: () => manager.streams.update(name, wanted),
    });
  }
  for (const consumer of Object.values<ConsumerType>(consumers)) {
    for (const { stream, subjects } of sourcesOf(consumer)) {
      const wanted = consumerConfig(consumer, subjects);
      await ensure({
        subject: `consumer ${consumer.name} of ${stream}`,
        wanted,
        fixed: fixedOfConsumers,
        notFound: JetStreamApiCodes.ConsumerNotFound,
        info: () => manager.consumers.info(stream, consumer.name),
        add: () => manager.consumers.add(stream, wanted),
        update: () => manager.consumers.update(stream, consumer.name, wanted),
      });
    }
  }
}

async function ensure({ subject, wanted, fixed, notFound, info, add, update }: Resource): Promise<void> {
  let live: Config;
  try {
    live = { ...(await info()).config };
  } catch (error) {
    if (!(error instanceof JetStreamApiError) || error.code !== notFound) throw error;
    live = { ...(await add()).config };
  }
  const differing = differences(wanted, live);
  if (differing.length === 0) return;
  const stuck = differing.filter((key) => fixed.includes(key));
  if (stuck.length > 0) {
    throw new TopologyMismatch(
      subject,
      tell(stuck, wanted, live),
      'This cannot be changed in place: delete it, or change the setting.',
    );
  }
  const updated: Config = { ...(await update()).config };
  const ignored = differences(wanted, updated);
  if (ignored.length > 0) throw new TopologyMismatch(subject, tell(ignored, wanted, updated), 'The server ignored it.');
}

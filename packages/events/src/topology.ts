import { JetStreamApiCodes, JetStreamApiError, type JetStreamManager } from '@nats-io/jetstream';
import { nanos } from '@nats-io/nats-core';
import { type ConsumerType, consumers, type EventType, streams } from './catalogue.ts';

export interface TopologyOptions {
  readonly replicas: number;
  readonly storage: 'file' | 'memory';
  /** Of one stream; 0 for no bound. */
  readonly maxBytes: number;
  readonly ackWaitMs: number;
}

/** What was found when the live server was compared with the catalogue; each entry names one difference. */
export interface TopologyReport {
  /** Differences that were mended. */
  readonly mended: readonly string[];
  /** Differences that cannot be: the service is not ready. */
  readonly unmended: readonly string[];
  /** What a newer build has added, and consumers that nobody here knows: left alone. */
  readonly foreign: readonly string[];
}

/** How long an event may stay unconsumed, and an inbox must remember at least. */
export const eventRetentionMs = 3 * 24 * 60 * 60 * 1000;

/** The sources of a consumer: each stream with the subjects it is filtered by. */
export function sourcesOf(consumer: ConsumerType): { stream: string; subjects: string[] }[] {
  const byStream = Map.groupBy(consumer.events, (event: EventType) => event.stream);
  return [...byStream].map(([stream, events]) => ({ stream, subjects: events.map(({ subject }) => subject).sort() }));
}

type Config = Record<string, unknown>;

function streamConfig(subjects: readonly string[], options: TopologyOptions): Config {
  return {
    subjects: [...subjects],
    retention: 'limits',
    storage: options.storage,
    num_replicas: options.replicas,
    max_age: nanos(eventRetentionMs),
    max_bytes: options.maxBytes || -1,
    max_msgs: -1,
    max_msgs_per_subject: -1,
    max_msg_size: -1,
    discard: 'old',
    duplicate_window: nanos(2 * 60 * 1000),
  };
}

function consumerConfig(subjects: string[], { ackWaitMs }: TopologyOptions): Config {
  return {
    ack_policy: 'explicit',
    deliver_policy: 'all',
    filter_subjects: subjects,
    ack_wait: nanos(ackWaitMs),
    // The server would drop an event whose last delivery crashed its handler; the consumer counts itself and keeps a dead letter.
    max_deliver: -1,
    max_ack_pending: 1024,
  };
}

interface Resource {
  /** For messages: `stream SESSION`. */
  readonly subject: string;
  readonly wanted: Config;
  /** What cannot be changed in place. */
  readonly fixed: readonly string[];
  /** The list of subjects, which a newer build may have made longer. */
  readonly growing: string;
  readonly notFound: number;
  info(): Promise<{ config: object }>;
  add(): Promise<{ config: object }>;
  update(config: Config): Promise<{ config: object }>;
}

/**
 * Creates what is missing, mends what differs, and leaves alone what a newer build has added: a list of subjects that holds more than
 * the catalogue's, and consumers that are not in it. So builds of two catalogues do not undo each other's work. Throws what a server
 * says that cannot be asked, or does not create what is missing.
 */
export async function ensureTopology(manager: JetStreamManager, options: TopologyOptions): Promise<TopologyReport> {
  const report = { mended: [] as string[], unmended: [] as string[], foreign: [] as string[] };
  for (const { name, subjects, describe } of streams) {
    const wanted = streamConfig(subjects, options);
    await ensure(report, {
      subject: `stream ${name}`,
      wanted,
      fixed: ['retention', 'storage'],
      growing: 'subjects',
      notFound: JetStreamApiCodes.StreamNotFound,
      info: () => manager.streams.info(name),
      add: () => manager.streams.add({ name, description: describe, ...wanted } as { name: string }),
      update: (config) => manager.streams.update(name, config),
    });
  }
  const known = new Map<string, Set<string>>(streams.map(({ name }) => [name, new Set()]));
  for (const consumer of Object.values<ConsumerType>(consumers)) {
    for (const { stream, subjects } of sourcesOf(consumer)) {
      known.get(stream)?.add(consumer.name);
      const wanted = consumerConfig(subjects, options);
      await ensure(report, {
        subject: `consumer ${consumer.name} of ${stream}`,
        wanted,
        fixed: ['ack_policy', 'deliver_policy'],
        growing: 'filter_subjects',
        notFound: JetStreamApiCodes.ConsumerNotFound,
        info: () => manager.consumers.info(stream, consumer.name),
        add: () =>
          manager.consumers.add(stream, { durable_name: consumer.name, description: consumer.describe, ...wanted }),
        update: (config) => manager.consumers.update(stream, consumer.name, config),
      });
    }
  }
  for (const [stream, names] of known)
    for await (const { name, config } of manager.consumers.list(stream))
      if (config.durable_name && !names.has(name))
        report.foreign.push(`consumer ${name} of ${stream} is not in the catalogue`);
  return report;
}

/** How the live server differs from the catalogue. */
export interface TopologyDifference {
  /** `stream SESSION`, or `consumer session-dispatcher of SESSION`. */
  readonly subject: string;
  /** It is not there at all. */
  readonly missing: boolean;
  /** In words; empty when it is missing. */
  readonly what: string;
}

/** Compares without changing anything. What a newer build has added is no difference. Throws when the server does not answer. */
export async function compareTopology(
  manager: JetStreamManager,
  options: TopologyOptions,
): Promise<TopologyDifference[]> {
  const found: TopologyDifference[] = [];
  const compare = async (
    subject: string,
    growing: string,
    wanted: Config,
    info: () => Promise<{ config: object }>,
    notFound: readonly number[],
  ) => {
    try {
      const live: Config = { ...(await info()).config };
      const target = isLonger(live[growing], wanted[growing]) ? { ...wanted, [growing]: live[growing] } : wanted;
      for (const key of differences(target, live))
        found.push({ subject, missing: false, what: tell(key, target, live) });
    } catch (error) {
      if (!(error instanceof JetStreamApiError) || !notFound.includes(error.code)) throw error;
      found.push({ subject, missing: true, what: '' });
    }
  };
  const { StreamNotFound, ConsumerNotFound } = JetStreamApiCodes;
  for (const { name, subjects } of streams)
    await compare(`stream ${name}`, 'subjects', streamConfig(subjects, options), () => manager.streams.info(name), [
      StreamNotFound,
    ]);
  for (const consumer of Object.values<ConsumerType>(consumers))
    for (const { stream, subjects } of sourcesOf(consumer))
      await compare(
        `consumer ${consumer.name} of ${stream}`,
        'filter_subjects',
        consumerConfig(subjects, options),
        () => manager.consumers.info(stream, consumer.name),
        [ConsumerNotFound, StreamNotFound],
      );
  return found;
}

/** How far a consumer is behind on one of its streams. */
export interface ConsumerLag {
  readonly consumer: string;
  readonly stream: string;
  /** Events that were not delivered yet. */
  readonly pending: number;
  /** Delivered, and not settled yet. */
  readonly unsettled: number;
  /** Of those, delivered more than once. */
  readonly redelivered: number;
  /** Replicas that wait for events. */
  readonly receivers: number;
}

/** Of the consumers that are there. Throws when the server does not answer. */
export async function readConsumerLags(manager: JetStreamManager): Promise<ConsumerLag[]> {
  const lags: ConsumerLag[] = [];
  for (const consumer of Object.values<ConsumerType>(consumers))
    for (const { stream } of sourcesOf(consumer)) {
      try {
        const info = await manager.consumers.info(stream, consumer.name);
        lags.push({
          consumer: consumer.name,
          stream,
          pending: info.num_pending,
          unsettled: info.num_ack_pending,
          redelivered: info.num_redelivered,
          receivers: info.num_waiting,
        });
      } catch (error) {
        // That one is missing is told by the comparison.
        if (!(error instanceof JetStreamApiError)) throw error;
      }
    }
  return lags;
}

async function ensure(
  report: { mended: string[]; unmended: string[]; foreign: string[] },
  { subject, wanted, fixed, growing, notFound, info, add, update }: Resource,
): Promise<void> {
  let live: Config;
  try {
    live = { ...(await info()).config };
  } catch (error) {
    if (!(error instanceof JetStreamApiError) || error.code !== notFound) throw error;
    live = { ...(await add()).config };
  }
  let target = wanted;
  if (isLonger(live[growing], wanted[growing])) {
    report.foreign.push(`${subject}: ${tell(growing, wanted, live)}`);
    target = { ...wanted, [growing]: live[growing] };
  }
  const differing = differences(target, live);
  if (differing.length === 0) return;
  const stuck = differing.filter((key) => fixed.includes(key));
  const changes = differing.filter((key) => !fixed.includes(key));
  report.unmended.push(
    ...stuck.map(
      (key) =>
        `${subject}: ${tell(key, target, live)}; it cannot be changed in place: delete it, or change the setting`,
    ),
  );
  if (changes.length === 0) return;
  try {
    // What is fixed goes along as it is, so that the rest can be mended.
    const updated: Config = { ...(await update({ ...target, ...pick(live, stuck) })).config };
    const ignored = differences(pick(target, changes), updated);
    report.unmended.push(
      ...ignored.map((key) => `${subject}: ${tell(key, target, updated)}; the server ignored the change`),
    );
    report.mended.push(
      ...changes.filter((key) => !ignored.includes(key)).map((key) => `${subject}: ${tell(key, target, live)}`),
    );
  } catch (error) {
    if (!(error instanceof JetStreamApiError)) throw error;
    report.unmended.push(
      ...changes.map(
        (key) => `${subject}: ${tell(key, target, live)}; the server refused the change: ${error.message}`,
      ),
    );
  }
}

function differences(wanted: Config, live: Config): string[] {
  return Object.keys(wanted).filter((key) => JSON.stringify(sorted(wanted[key])) !== JSON.stringify(sorted(live[key])));
}

function sorted(value: unknown): unknown {
  return Array.isArray(value) ? [...value].sort() : value;
}

function isLonger(live: unknown, wanted: unknown): boolean {
  if (!Array.isArray(live) || !Array.isArray(wanted)) return false;
  return live.length > wanted.length && wanted.every((subject) => live.includes(subject));
}

function tell(key: string, wanted: Config, live: Config): string {
  return `${key} is ${JSON.stringify(live[key])}, wanted ${JSON.stringify(wanted[key])}`;
}

function pick(config: Config, keys: readonly string[]): Config {
  return Object.fromEntries(keys.map((key) => [key, config[key]]));
}

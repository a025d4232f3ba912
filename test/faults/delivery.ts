import { fromBinary } from '@bufbuild/protobuf';
import { MessageAddedSchema } from '@keytrail/contracts';
import { type ConsumerType, consumers, messageAdded } from '@keytrail/events';
import { type Constellation, servicesWithDatabase } from '@keytrail/local/constellation';
import { jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import pg from 'pg';
import { expect, vi } from 'vitest';

/** The rows of a statement in the database of one service. */
export async function rowsOf<R extends pg.QueryResultRow>(
  { databaseUrls }: Constellation,
  service: (typeof servicesWithDatabase)[number],
  text: string,
  values: unknown[] = [],
): Promise<R[]> {
  const client = new pg.Client({ connectionString: databaseUrls[service] });
  await client.connect();
  try {
    return (await client.query<R>(text, values)).rows;
  } finally {
    await client.end();
  }
}

/** How many rows each service with a database has in one of its tables. */
export async function countsOf(constellation: Constellation, table: 'outbox' | 'dead_letters'): Promise<number[]> {
  const counts = servicesWithDatabase.map((service) =>
    rowsOf<{ count: number }>(constellation, service, `SELECT count(*)::int AS count FROM ${table}`),
  );
  return (await Promise.all(counts)).map(([row]) => row?.count ?? -1);
}

/** Waits until every event is published, every consumer has handled what it was told, and none of it became a dead letter. */
export async function everythingIsDelivered(constellation: Constellation): Promise<void> {
  const connection = await connect({ servers: constellation.nats.url });
  try {
    const manager = await jetstreamManager(connection);
    const open = async () => {
      const infos = Object.values<ConsumerType>(consumers).flatMap((consumer) =>
        [...new Set(consumer.events.map(({ stream }) => stream))].map(async (stream) => {
          const { num_pending, num_ack_pending } = await manager.consumers.info(stream, consumer.name);
          return { consumer: `${consumer.name} of ${stream}`, unhandled: num_pending + num_ack_pending };
        }),
      );
      return (await Promise.all(infos)).filter(({ unhandled }) => unhandled > 0);
    };
    await vi.waitFor(
      async () => {
        expect(await countsOf(constellation, 'outbox')).toEqual([0, 0, 0]);
        expect(await open()).toEqual([]);
      },
      { timeout: 60_000, interval: 100 },
    );
    expect(await countsOf(constellation, 'dead_letters')).toEqual([0, 0, 0]);
  } finally {
    await connection.close();
  }
}

/** The sequences of message_added by conversation in the order of the stream, repetitions of one publication left out. */
export async function publishedSequences(constellation: Constellation): Promise<Map<string, bigint[]>> {
  const connection = await connect({ servers: constellation.nats.url });
  try {
    const manager = await jetstreamManager(connection);
    const { state } = await manager.streams.info(messageAdded.stream);
    const seen = new Set<string>();
    const sequences = new Map<string, bigint[]>();
    for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
      const message = await manager.streams.getMessage(messageAdded.stream, { seq });
      const id = message?.header.get('Nats-Msg-Id') ?? '';
      if (!message || message.subject !== messageAdded.subject || seen.has(id)) continue;
      seen.add(id);
      const { conversationId, sequence } = fromBinary(MessageAddedSchema, message.data);
      sequences.set(conversationId, [...(sequences.get(conversationId) ?? []), sequence]);
    }
    return sequences;
  } finally {
    await connection.close();
  }
}

/** What /readyz answers at each replica: its service, and why it is not ready. */
export async function unready({ replicas }: Constellation): Promise<string[]> {
  const answers = await Promise.all(
    replicas.map(async ({ service, webUrl }) => {
      const response = await fetch(`${webUrl}/readyz`);
      return response.ok ? [] : [`${service}: ${await response.text()}`];
    }),
  );
  return answers.flat();
}

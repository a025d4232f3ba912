import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ensureNats } from '@keytrail/local';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { expect, test } from 'vitest';
import { startTestPostgres } from '../../storage/test/own-database.ts';
import {
  addEvent,
  connectEvents,
  eventSettings,
  inboxMigration,
  messageAdded,
  outboxMigration,
  startEventGauges,
  startRelay,
} from '../src/index.ts';

interface Metric {
  readonly name: string;
  readonly unit: string;
  readonly gauge?: { readonly dataPoints: readonly { readonly asDouble?: number; readonly asInt?: number }[] };
}

test('a service exports how many events wait, since when, and how many were given up', async () => {
  const received: Metric[] = [];
  const receiver = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    if (request.url === '/v1/metrics') {
      const { resourceMetrics } = JSON.parse(Buffer.concat(chunks).toString()) as {
        resourceMetrics: { scopeMetrics: { metrics: Metric[] }[] }[];
      };
      received.push(...resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics.flatMap(({ metrics }) => metrics)));
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
  const [postgres, nats] = await Promise.all([startTestPostgres(), ensureNats({ own: true })]);
  const settings = readSettings(
    { ...telemetrySettings, ...eventSettings },
    {
      KEYTRAIL_ENVIRONMENT: 'development',
      KEYTRAIL_LOG_LEVEL: 'silent',
      KEYTRAIL_OTLP_URL: `http://127.0.0.1:${(receiver.address() as AddressInfo).port}`,
      KEYTRAIL_NATS_URL: nats.url,
    },
  );
  const telemetry = startTelemetry({ service: 'conversation', config: settings });
  // Without streams nothing is stored, so that what is written stays in the outbox.
  const bus = await connectEvents({ config: settings, log: telemetry.log });
  const db = await postgres.openDatabase(outboxMigration + inboxMigration);
  const relay = startRelay({ db, bus, service: 'test', log: telemetry.log });
  try {
    const conversationId = randomUUID();
    for (const sequence of [1n, 2n])
      await db.transaction((tx) =>
        addEvent(tx, messageAdded, { conversationId, sequence }, { aggregate: conversationId }),
      );
    await db.pool.query(`UPDATE outbox SET created_at = created_at - interval '1 hour'`);
    await db.pool.query(
      `INSERT INTO dead_letters (consumer, subject, event_id, payload, traceparent, reason) VALUES ('test', 's', 'e', '', '', 'why')`,
    );
    const gauges = startEventGauges({ bus, db, service: 'test', everyMs: 60_000, log: telemetry.log });
    await gauges.looked;
    // What a shutdown sends is what was found last.
    await telemetry.shutdown();
    await gauges.stop();
    const exported = (wanted: string) => {
      const found = received.find(({ name }) => name === wanted);
      const [point] = found?.gauge?.dataPoints ?? [];
      return { unit: found?.unit, value: point?.asDouble ?? point?.asInt };
    };
    expect(exported('keytrail.outbox.pending')).toEqual({ unit: '{event}', value: 2 });
    const { unit, value } = exported('keytrail.outbox.oldest_age');
    expect(unit).toBe('s');
    expect(value).toBeGreaterThan(3_600);
    expect(exported('keytrail.dead_letters')).toEqual({ unit: '{event}', value: 1 });
  } finally {
    await relay.stop();
    await bus.close();
    receiver.closeAllConnections();
    receiver.close();
    await Promise.all([postgres.stop(), nats.stop()]);
  }
});

import { operatorScope } from '@keytrail/auth';
import { type Constellation, startConstellation } from '@keytrail/local/constellation';
import pg from 'pg';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { run } from '../../packages/cli/src/program.ts';
import { type OtlpSink, startOtlpSink } from './otlp-sink.ts';

const services = ['identity-keys', 'session', 'conversation'] as const;

let constellation: Constellation;
let token: string;
let sink: OtlpSink;
beforeAll(async () => {
  sink = await startOtlpSink();
  constellation = await startConstellation({
    name: 'test-restored-databases',
    env: { KEYTRAIL_FENCE_LOOK_MS: '100', KEYTRAIL_OTLP_URL: sink.url, KEYTRAIL_METRICS_EXPORT_MS: '250' },
  });
  token = await constellation.issuer.token({ userId: 'olivia', deviceId: 'console', scopes: [operatorScope] });
});
afterAll(async () => {
  await constellation?.stop();
  await sink?.[Symbol.asyncDispose]();
});

async function keytrail(...args: string[]) {
  let out = '';
  const environment = {
    KEYTRAIL_OPERATOR_TOKEN: token,
    ...Object.fromEntries(
      services.map((service) => [
        `KEYTRAIL_${service.toUpperCase().replace('-', '_')}_TARGET`,
        constellation.grpcTarget(service),
      ]),
    ),
  };
  const code = await run(args, {
    environment,
    out: (text) => {
      out += text;
    },
    say: () => {},
  });
  return { code, out };
}

async function sql<R extends pg.QueryResultRow>(service: (typeof services)[number], text: string): Promise<R[]> {
  const client = new pg.Client({ connectionString: constellation.databaseUrls[service] });
  await client.connect();
  return client
    .query<R>(text)
    .then(({ rows }) => rows)
    .finally(() => client.end());
}

async function restored(service: (typeof services)[number]): Promise<string> {
  const response = await fetch(
    `${constellation.webUrl(service)}/keytrail.diagnostics.v1.DiagnosticsService/RunChecks`,
    {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      body: JSON.stringify({ codes: ['DATABASE_RESTORED'] }),
    },
  );
  const { results } = (await response.json()) as { results: { status: string }[] };
  return results.map(({ status }) => status).join();
}

/** What each service measures of restores that wait for an operator: the figure that the alert is about. */
async function measured(restores: number): Promise<void> {
  await vi.waitFor(
    () => {
      const points = sink
        .metrics()
        .flatMap(({ name, service, points }) =>
          name === 'keytrail.database.restores_unaccepted' ? points.map(({ value }) => `${service}: ${value}`) : [],
        );
      expect(points.sort()).toEqual(services.map((service) => `${service}: ${restores}`).sort());
    },
    { timeout: 20_000 },
  );
}

test('each service notices a restore of its database and says so until an operator has accepted it', async () => {
  expect(await keytrail('fence', 'status')).toMatchObject({ code: 0 });
  for (const service of services) {
    expect(await restored(service)).toBe('CHECK_STATUS_OK');
    // As the runbook has a restore made known that nothing could notice.
    await sql(service, "UPDATE restore_fence SET place = 'unknown'");
  }
  const status = await keytrail('fence', 'status');
  expect(status.code).toBe(1);
  for (const service of services) {
    expect(status.out).toMatch(new RegExp(`^${service}: it is on another server; noticed .*, accepted not yet$`, 'm'));
    expect(await restored(service)).toBe('CHECK_STATUS_FAIL');
  }
  await measured(1);

  expect(await keytrail('fence', 'accept', '--note', 'a drill')).toEqual({
    code: 0,
    out: services.map((service) => `${service}: 1 accepted\n`).join(''),
  });
  expect((await keytrail('fence', 'accept', '--note', 'again')).out).toContain('session: 0 accepted');
  expect((await keytrail('fence', 'status')).code).toBe(0);
  for (const service of services) {
    expect(await restored(service)).toBe('CHECK_STATUS_OK');
    expect(await sql(service, 'SELECT accepted_by, accepted_note FROM database_restores')).toEqual([
      { accepted_by: expect.any(String), accepted_note: 'a drill' },
    ]);
  }
  await measured(0);
});

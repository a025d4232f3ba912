import { run } from '@keytrail/cli';
import { SessionService } from '@keytrail/contracts';
import { type ServiceReplica, serviceNames, servicesWithDatabase } from '@keytrail/local/constellation';
import { migrateDatabase } from '@keytrail/storage';
import { expect, test, vi } from 'vitest';
import { startWorld } from '../e2e/world.ts';
import { startChats } from './chats.ts';
import { rowsOf } from './delivery.ts';
import { makeRelease } from './releases.ts';

async function readyz({ webUrl }: ServiceReplica): Promise<{ ready: boolean; why?: string }> {
  return (await (await fetch(`${webUrl}/readyz`)).json()) as { ready: boolean; why?: string };
}

test('on databases of the previous release this build starts, says what is missing and serves nothing, until they are migrated', async () => {
  using now = makeRelease({ name: 'schema-now' });
  using before = makeRelease({ name: 'schema-before', withoutNewestOf: servicesWithDatabase });
  await using world = await startWorld({
    name: 'test-previous-schema',
    migrationsOf: before.folder,
    releases: Object.fromEntries(serviceNames.map((service) => [service, now.folder])),
  });
  const { constellation } = world;
  const [session] = constellation.of('session');
  const pids = constellation.replicas.map(({ process }) => process.pid);
  for (const service of servicesWithDatabase) {
    const [replica] = constellation.of(service);
    expect(await readyz(replica as ServiceReplica)).toEqual({
      ready: false,
      why: `the database is behind: missing ${before.leftOut[service]}`,
    });
  }
  const token = await constellation.issuer.token({ userId: 'alice', deviceId: 'phone' });
  const refused = await fetch(`${session?.webUrl}/${SessionService.typeName}/ListKeyRequests`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: '{}',
  });
  expect(refused.status).toBe(503);
  const answer = await refused.text();
  expect(answer).toContain('SCHEMA_BEHIND');
  expect(answer).toContain(before.leftOut.session);

  for (const service of servicesWithDatabase) {
    // By the command for the tree's own migrations, which are those of `now`.
    const code = await run(['migrate', 'deploy', '--service', service], {
      environment: {
        [`KEYTRAIL_DATABASE_URL_${service.toUpperCase().replace('-', '_')}`]: constellation.databaseUrls[service],
      },
      out: () => {},
      say: () => {},
    });
    expect(code).toBe(0);
    expect(
      await migrateDatabase({ url: constellation.databaseUrls[service], migrations: now.migrationsOf(service) }),
    ).toEqual([]);
  }
  for (const replica of constellation.replicas)
    await vi.waitFor(async () => expect(await readyz(replica)).toEqual({ ready: true }), { timeout: 20_000 });
  const [chat] = await startChats(world, 1);
  await chat?.tablet.requestKey(chat.conversationId, chat.sessionId);
  // Relay, consumers and sweep have gone on, too.
  const states = () => rowsOf(constellation, 'session', 'SELECT state FROM key_requests');
  await vi.waitFor(async () => expect(await states()).toEqual([{ state: 'FULFILLED' }]), { timeout: 20_000 });
  expect(constellation.replicas.map(({ process }) => process.pid)).toEqual(pids);
}, 180_000);

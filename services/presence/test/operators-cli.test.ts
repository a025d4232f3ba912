import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
import { type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await startFixture();
}, 60_000);
afterEach(async () => {
  await fixture.endTest();
  await fixture.admin.flushall();
});
afterAll(() => fixture?.[Symbol.asyncDispose]());

const lasting = { KEYTRAIL_GATEWAY_LEASE_MS: '60000', KEYTRAIL_GATEWAY_RENEW_MS: '3600000' };

async function keytrail(of: Fixture, at: { readonly grpcPort: number }, ...args: string[]) {
  const ran = { out: '', err: '' };
  const code = await run(['online', ...args], {
    environment: {
      KEYTRAIL_PRESENCE_TARGET: `127.0.0.1:${at.grpcPort}`,
      KEYTRAIL_OPERATOR_TOKEN: await of.operatorToken(),
    },
    out(text) {
      ran.out += text;
    },
    say(text) {
      ran.err += text;
    },
  });
  return { code, ...ran };
}

describe('keytrail online', () => {
  test('shows who is attached, to which gateway, and names each user who was asked about and is not', async () => {
    const gateway = await fixture.gateway(lasting);
    for (const [user, device] of [
      ['alice', 'phone'],
      ['alice', 'tablet'],
      ['bob', 'phone'],
    ] as const)
      await (await fixture.device(gateway, user, device)).attach(1n);
    const all = await keytrail(fixture, gateway);
    expect(all).toMatchObject({ code: 0, err: '3 online of 3 that have an entry\n' });
    expect(all.out).toMatch(/\n +alice\/tablet +yes +20/);
    expect(all.out).toMatch(/GATEWAY +ALIVE .*\n +\S+ \(answered\) +yes +\d+ms +3 +3 +0 +-/);

    const some = await keytrail(fixture, gateway, 'bob', 'carol', 'dave');
    expect(some).toMatchObject({
      code: 0,
      err: '1 online of 1 that have an entry\ncarol is offline: no device has an entry\ndave is offline: no device has an entry\n',
    });
    expect(some.out).not.toContain('alice');
    const json = await keytrail(fixture, gateway, 'bob', 'carol', '--json');
    expect(JSON.parse(json.out)).toMatchObject({
      attached: { devices: [{ device: { userId: 'bob' }, online: true }], more: false },
      gateways: { storeReachable: true, gateways: [{ isOwn: true, entries: '3', streams: '3' }] },
      withoutEntry: ['carol'],
    });
  });

  test('says that there are more, and then calls nobody offline whom the limit may have hidden', async () => {
    const gateway = await fixture.gateway(lasting);
    for (const user of ['alice', 'bob']) await (await fixture.device(gateway, user, 'phone')).attach(1n);
    const cut = await keytrail(fixture, gateway, '--limit', '1', 'alice', 'bob');
    expect(cut).toMatchObject({ code: 0, err: '1 online of 1 that have an entry, and there are more (--limit)\n' });
  });

  test('ends with 4 for entries of a gateway that is gone, and for streams that nobody finds', async () => {
    const gateway = await fixture.gateway(lasting);
    await (await fixture.device(gateway, 'alice', 'phone')).attach(1n);
    const ghost = '1|deadbeef0000-1|00000000-0000-4000-8000-000000000000|1';
    await fixture.admin.hset('keytrail:devices:{carol}', 'phone', ghost);
    const haunted = await keytrail(fixture, gateway);
    expect(haunted).toMatchObject({ code: 4, err: expect.stringContaining('entries of 1 gateway that is gone') });
    expect(haunted.err).toContain('1 online of 2 that have an entry');
    expect(haunted.out).toMatch(/\n! +carol\/phone +NO /);
    expect(haunted.out).toMatch(/\n! +deadbeef0000-1 +NO +- +1 /);

    await fixture.admin.del('keytrail:devices:{carol}', 'keytrail:devices:{alice}');
    const lost = await keytrail(fixture, gateway);
    expect(lost).toMatchObject({
      code: 4,
      err: expect.stringContaining('1 stream of the gateway that answered without an entry: nobody finds its device'),
    });
    expect(lost.out).toMatch(/\n! +\S+ \(answered\) +yes +\d+ms +0 +1 +1 /);
  });

  test('ends with 4 while Redis cannot be asked, and then calls nobody offline', async () => {
    await using another = await startFixture();
    const gateway = await another.gateway();
    await (await another.device(gateway, 'alice', 'phone')).attach(1n);
    await another.redis.stop();
    const blind = await keytrail(another, gateway, 'alice');
    expect(blind).toMatchObject({ code: 4, err: expect.stringMatching(/^Redis could not be asked: .*\n$/) });
    expect(JSON.parse((await keytrail(another, gateway, 'alice', '--json')).out)).toMatchObject({
      gateways: { storeReachable: false },
      withoutEntry: [],
    });
    await another.endTest();
  }, 60_000);
});

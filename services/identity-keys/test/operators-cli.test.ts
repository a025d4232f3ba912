import { randomUUID } from 'node:crypto';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import { connectEvents, type EventBus, eventSettings, publishHint, userErased } from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { pseudonym, startTelemetry, type Telemetry, telemetrySettings } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
let bus: EventBus;
let telemetry: Telemetry;
beforeAll(async () => {
  service = await startIdentityKeys({
    settings: { KEYTRAIL_LOG_LEVEL: 'error', KEYTRAIL_ERASURE_ROUND_MS: '200' },
  });
  const config = readSettings(
    { ...eventSettings, ...telemetrySettings },
    { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_LOG_LEVEL: 'silent', KEYTRAIL_NATS_URL: service.natsUrl },
  );
  telemetry = startTelemetry({ service: 'test', config });
  bus = await connectEvents({ config, log: telemetry.log });
}, 60_000);
afterAll(async () => {
  await bus?.close();
  await telemetry?.shutdown();
  await service?.stop();
});

async function keytrail(...args: string[]) {
  const ran = { out: '', err: '' };
  const code = await run(args, {
    environment: {
      KEYTRAIL_IDENTITY_KEYS_TARGET: service.target(),
      KEYTRAIL_OPERATOR_TOKEN: await service.operatorToken(),
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

async function phoneAndTablet(): Promise<string> {
  const userId = newUser();
  const { device: phone } = await service.register({ userId, deviceId: 'phone', oneTime: 4, kem: 3 });
  await service.register({ userId, deviceId: 'tablet', rootKey: phone.rootKey });
  return userId;
}

describe('keytrail devices', () => {
  test('shows what is there of each device that the user ever had, by id or by pseudonym', async () => {
    const userId = await phoneAndTablet();
    await service.revoke(userId, 'tablet');
    const shown = await keytrail('devices', userId);
    expect(shown).toMatchObject({
      code: 0,
      err: `2 devices of ${userId} (${pseudonym(userId)} in traces), list version 3\n`,
    });
    expect(shown.out).toMatch(new RegExp(`\\n +phone +${pseudonym('phone')} +active +version 1 .* all +4 +3 `));
    expect(shown.out).toMatch(/\n +tablet +\S+ +revoked 20/);
    expect(await keytrail('devices', '--pseudonym', pseudonym(userId))).toEqual(shown);
    const { code, out } = await keytrail('devices', userId, '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      userId,
      rootKeyPresent: true,
      devices: [
        { device: { deviceId: 'phone' }, keysMissing: [], oneTimePrekeys: 4 },
        { revokedAt: expect.anything() },
      ],
    });
  });

  test('ends with 1 when nothing is known of the user, as of a misspelt one', async () => {
    expect(await keytrail('devices', 'nobody')).toEqual({ code: 1, out: '', err: 'nothing is known of nobody\n' });
    const json = await keytrail('devices', 'nobody', '--json');
    expect([json.code, JSON.parse(json.out)]).toMatchObject([1, { userId: 'nobody', devices: [] }]);
    expect(await keytrail('devices', '--pseudonym', '0123456789abcdef')).toMatchObject({
      code: 1,
      err: expect.stringContaining('no user here has this pseudonym'),
    });
  });

  test('tells a user who was erased from one who never was, and ends with 0', async () => {
    const userId = await phoneAndTablet();
    const operator = await service.asOperator();
    const auditNote = 'the user asked for it';
    const { erasure } = await operator.deleteUser({ requestId: randomUUID(), userId, auditNote });
    expect(await keytrail('devices', userId)).toMatchObject({
      code: 0,
      err: expect.stringMatching(/^2 devices of .*, who was erased at 20/),
    });
    for (const by of ['conversation', 'presence', 'session'] as const)
      await publishHint(bus, userErased[by], {
        erasureId: erasure?.erasureId ?? '',
        report: { service: by, erasedAt: timestampNow(), counts: [] },
      });
    await vi.waitFor(async () => {
      expect(await keytrail('devices', userId)).toMatchObject({
        code: 0,
        out: '',
        err: expect.stringMatching(`^${userId} was erased at 20`),
      });
    }, 10_000);
  });

  test('marks devices that lack keys, and a user without a root key, and ends with 4', async () => {
    const userId = await phoneAndTablet();
    await service.db.pool.query('ALTER TABLE devices DROP CONSTRAINT devices_have_a_last_resort_prekey');
    await service.db.pool.query(
      `DELETE FROM last_resort_prekeys p USING devices d
       WHERE d.device_number = p.device_number AND d.user_id = $1 AND d.device_id = 'tablet'`,
      [userId],
    );
    const damaged = await keytrail('devices', userId);
    expect(damaged).toMatchObject({ code: 4, err: expect.stringContaining('1 of them lacks keys: nobody can seal') });
    expect(damaged.out).toMatch(/\n! +tablet .* NO last_resort_prekey /);
    expect(damaged.err).not.toContain('root key');

    const rootless = await phoneAndTablet();
    await service.db.pool.query('ALTER TABLE users ALTER COLUMN root_key DROP NOT NULL');
    await service.db.pool.query('ALTER TABLE devices DROP CONSTRAINT devices_certified_by_root_key');
    await service.db.pool.query('UPDATE users SET root_key = NULL WHERE user_id = $1', [rootless]);
    const unrooted = await keytrail('devices', rootless);
    expect(unrooted).toMatchObject({ code: 4, err: expect.stringContaining("the user's root key is missing") });
    expect(unrooted.out).not.toContain('!');
    expect(JSON.parse((await keytrail('devices', rootless, '--json')).out)).toMatchObject({ rootKeyPresent: false });
  });
});

import type { DescService } from '@bufbuild/protobuf';
import { ConversationService, IdentityKeysService, PresenceService, SessionService } from '@keytrail/contracts';
import { type Constellation, startConstellation } from '@keytrail/local/constellation';
import { afterAll, beforeAll, expect, test } from 'vitest';

const services: readonly (readonly [Parameters<Constellation['webUrl']>[0], DescService])[] = [
  ['identity-keys', IdentityKeysService],
  ['session', SessionService],
  ['conversation', ConversationService],
  ['presence', PresenceService],
];

let constellation: Constellation;

beforeAll(async () => {
  constellation = await startConstellation({ name: 'test-every-method' });
});
afterAll(async () => {
  await constellation?.stop();
});

test.each(services)('%s serves every method of its contract', async (service, contract) => {
  const isServed = async (method: string) => {
    const response = await fetch(`${constellation.webUrl(service)}/${contract.typeName}/${method}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{}',
    });
    return ((await response.json()) as { code?: string }).code !== 'unimplemented';
  };
  expect(await isServed('NoSuchMethod')).toBe(false);
  const served = await Promise.all(contract.methods.map(async ({ name }) => ({ name, served: await isServed(name) })));
  expect(served.filter((method) => !method.served)).toEqual([]);
});

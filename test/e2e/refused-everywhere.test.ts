import { setTimeout as pause } from 'node:timers/promises';
import type { DescMethod, DescService } from '@bufbuild/protobuf';
import { create } from '@bufbuild/protobuf';
import type { Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import { RefusalError } from '@keytrail/client';
import {
  ConversationOperatorService,
  ConversationService,
  DiagnosticsService,
  IdentityKeysOperatorService,
  IdentityKeysService,
  PresenceOperatorService,
  PresenceService,
  SessionOperatorService,
  SessionService,
} from '@keytrail/contracts';
import type { Constellation } from '@keytrail/local/constellation';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

type Service = Parameters<Constellation['webUrl']>[0];

const servedBy: readonly (readonly [Service, readonly DescService[]])[] = [
  ['identity-keys', [IdentityKeysService, IdentityKeysOperatorService, DiagnosticsService]],
  ['session', [SessionService, SessionOperatorService, DiagnosticsService]],
  ['conversation', [ConversationService, ConversationOperatorService, DiagnosticsService]],
  ['presence', [PresenceService, PresenceOperatorService, DiagnosticsService]],
];

let world: World;
beforeAll(async () => {
  world = await startWorld({ name: 'test-refused-everywhere', traceRatio: 0 });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

type Wire = 'grpc' | 'web';

function transportTo(service: Service, wire: Wire): Transport {
  const { constellation } = world;
  return wire === 'grpc'
    ? createGrpcTransport({ target: constellation.grpcTarget(service) })
    : createConnectTransport({ baseUrl: constellation.webUrl(service), useBinaryFormat: true });
}

/** What a call of any method ends with; undefined when it was answered. */
async function errorOf(transport: Transport, method: DescMethod, headers: Record<string, string>): Promise<unknown> {
  const request = create(method.input);
  try {
    if (method.methodKind === 'server_streaming') {
      const one = (async function* () {
        yield request;
      })();
      const { message } = await transport.stream(method as never, undefined, 10_000, headers, one as never);
      for await (const _ of message) return undefined;
      return undefined;
    }
    await transport.unary(method as never, undefined, 10_000, headers, request as never);
    return undefined;
  } catch (error) {
    return error;
  }
}

/** The line in a service's log about the refusal with this trace id; logs are written by another process. */
async function logLine(service: Service, traceId: string): Promise<{ reason?: string; method?: string } | undefined> {
  for (let left = 40; left > 0; left -= 1) {
    for (const { process } of world.constellation.of(service)) {
      const line = process.lines().find((each) => each.trace_id === traceId && each.reason !== undefined);
      if (line) return line as { reason?: string; method?: string };
    }
    await pause(50);
  }
  return undefined;
}

const tried = [
  { what: 'no token', headers: {}, reasons: ['TOKEN_MISSING'] },
  { what: 'a broken token', headers: { authorization: 'Bearer no.token.atall' }, reasons: ['TOKEN_INVALID'] },
];

describe.each<Wire>(['grpc', 'web'])('over %s', (wire) => {
  test.each(servedBy)(
    '%s tells the trace of every refusal of every method, and logs it under the same',
    async (service, contracts) => {
      const transport = transportTo(service, wire);
      const device = await world.constellation.issuer.token({ userId: someone('nobody'), deviceId: 'phone' });
      const ways = [
        ...tried,
        { what: 'an empty request', headers: { authorization: `Bearer ${device}` }, reasons: [] },
      ];
      for (const method of contracts.flatMap(({ methods }) => methods)) {
        for (const { what, headers, reasons } of ways) {
          const traceId = `${Math.random().toString(16).slice(2, 14).padEnd(12, '0')}${'ab'.repeat(10)}`;
          const traceparent = `00-${traceId}-${'cd'.repeat(8)}-00`;
          const error = await errorOf(transport, method, { ...headers, traceparent });
          // Some are for anyone, and some requests are complete when they are empty.
          if (error === undefined) continue;
          const about = `${method.parent.typeName}/${method.name}: ${what}`;
          const refusal = readRefusal(error);
          expect(refusal.reason, about).not.toBe('');
          // Whether each is served is another test's matter: also what is not has a trace.
          const served = refusal.reason !== 'METHOD_UNKNOWN';
          if (reasons.length > 0 && served) expect(reasons, about).toContain(refusal.reason);
          expect(refusal.reason, about).not.toBe('INTERNAL_FAULT');
          expect(refusal.traceId, about).toMatch(/^[0-9a-f]{32}$/);
          if (wire === 'web') expect(refusal.traceId, about).toBe(traceId);
          expect(await logLine(service, refusal.traceId ?? ''), about).toMatchObject({
            reason: refusal.reason,
            method: served ? `${method.parent.typeName}/${method.name}` : '_OTHER',
          });
        }
      }
    },
  );
});

describe('the error of the SDK', () => {
  test('leads to the trace of a refusal', async () => {
    const device = world.device(someone('alice'), 'phone');
    await device.register();
    const error = await device
      .getConversation('00000000-0000-4000-8000-000000000000')
      .catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RefusalError);
    const { traceId = '', reason } = error as RefusalError;
    expect(await logLine('conversation', traceId)).toMatchObject({ reason });
  });

  test('has the trace of a call that no service answered', async () => {
    const transports = {
      ...world.transportsOf(someone('alice'), 'phone'),
      identityKeys: createGrpcTransport({ target: '127.0.0.1:1', retry: { retries: 0 } }),
    };
    const device = world.device(someone('alice'), 'phone', { transports, retry: { retries: 0 } });
    const error = await device.register().catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ reason: '', traceId: expect.stringMatching(/^[0-9a-f]{32}$/) });
  });
});

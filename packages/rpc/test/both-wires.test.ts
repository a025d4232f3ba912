import { create } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import {
  type ErrorInfoSchema,
  HelpSchema,
  MissCause,
  PresenceService,
  Recovery,
  SessionService,
} from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Refusal, readRefusal } from '../src/refusal.ts';
import { clientsOf, startTestService, type TestService, type WireUnderTest } from './test-service.ts';

let service: TestService;
const alice = { wires: [] as WireUnderTest[], close() {} };
const others: Record<string, ReturnType<typeof clientsOf>> = {};

beforeAll(async () => {
  service = await startTestService({ config: { callerRequestsPerSecond: 0 } });
  Object.assign(alice, clientsOf(service, 'Bearer alice'));
  others.nobody = clientsOf(service);
  others.forged = clientsOf(service, 'Bearer forged');
  others.operator = clientsOf(service, 'Bearer olga');
});
afterAll(async () => {
  for (const { close } of [alice, ...Object.values(others)]) close();
  await service.stop();
});

interface Failure {
  readonly what: string;
  readonly as?: 'nobody' | 'forged' | 'operator';
  readonly call: (wire: WireUnderTest) => Promise<unknown>;
  readonly expected: Partial<Refusal>;
  readonly logged?: boolean;
  /** Wires that cannot even say it. */
  readonly except?: RegExp;
}

const say = (deed: string) => (wire: WireUnderTest) => wire.client.listOnline({ userIds: [deed] });
async function attachTo({ client }: WireUnderTest, attachCounter: bigint): Promise<unknown> {
  const got = [];
  for await (const message of client.attach({ attachCounter })) got.push(message);
  return got;
}

const failures: Failure[] = [
  { what: 'no token', as: 'nobody', call: say('a'), expected: { code: Code.Unauthenticated, reason: 'TOKEN_MISSING' } },
  {
    what: 'a forged token',
    as: 'forged',
    call: say('a'),
    expected: { code: Code.Unauthenticated, reason: 'TOKEN_INVALID', metadata: { problem: 'signature' } },
  },
  {
    what: 'a caller of another kind',
    as: 'operator',
    call: say('a'),
    expected: {
      code: Code.PermissionDenied,
      reason: 'CALLER_NOT_ALLOWED',
      metadata: { method: 'keytrail.presence.v1.PresenceService/ListOnline', caller: 'operator' },
    },
  },
  {
    what: 'a field that breaks its rule',
    call: ({ client }) => client.listOnline({ userIds: ['ok', 'not ok'] }),
    expected: {
      code: Code.InvalidArgument,
      reason: 'INVALID_FIELD',
      metadata: { field: 'user_ids[1]' },
      fields: [{ field: 'user_ids[1]', description: expect.stringContaining('pattern') as never }],
    },
  },
  {
    what: 'a field that breaks its rule, of a stream',
    call: (wire) => attachTo(wire, 0n),
    expected: { code: Code.InvalidArgument, reason: 'INVALID_FIELD', metadata: { field: 'attach_counter' } },
  },
  {
    what: 'a request that is too large',
    call: ({ client }) => client.listOnline({ userIds: ['a'.repeat(4 * 1024 * 1024 + 100)] }),
    except: /GET/,
    expected: {
      code: Code.ResourceExhausted,
      reason: 'LIMIT_EXCEEDED',
      metadata: { limit: '4194304 bytes', scope: 'request' },
    },
  },
  {
    what: 'an answer that is too large',
    call: say('too-large'),
    expected: {
      code: Code.ResourceExhausted,
      reason: 'LIMIT_EXCEEDED',
      metadata: { limit: '4194304 bytes', scope: 'answer' },
    },
  },
  {
    what: 'a refusal of the handler',
    call: say('conflict'),
    expected: {
      code: Code.Aborted,
      reason: 'EPOCH_CONFLICT',
      message: 'another session won this epoch',
      metadata: { current_epoch: '7', current_session_id: 's7', current_roster_version: '3' },
    },
  },
  {
    what: 'a refusal to come back later',
    call: say('unavailable'),
    expected: {
      code: Code.Unavailable,
      reason: 'EXPLANATION_INCOMPLETE',
      metadata: { peer: 'conversation' },
      retryAfterMs: 1500,
    },
  },
  {
    what: 'a miss',
    call: say('miss'),
    expected: {
      code: Code.NotFound,
      reason: 'DEVICE_ADDED_AFTER_SESSION',
      metadata: { device_added_in_version: '4', session_device_list_version: '3' },
      retryAfterMs: 250,
      miss: expect.objectContaining({
        cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
        recovery: Recovery.REQUESTABLE,
        helpUrl: 'docs/reasons/device-added-after-session.md',
      }) as never,
    },
  },
  {
    what: 'the uniform answer',
    call: say('stranger'),
    expected: { code: Code.NotFound, reason: 'NOT_FOUND_OR_NOT_PERMITTED', metadata: {} },
  },
  {
    what: 'a refusal in a stream',
    call: (wire) => attachTo(wire, 13n),
    expected: { code: Code.Aborted, reason: 'CONNECTION_SUPERSEDED' },
  },
  ...['crash', 'throw-text', 'foreign-error', 'unserialisable'].map((deed) => ({
    what: `a fault (${deed})`,
    call: say(deed),
    expected: {
      code: Code.Internal,
      reason: 'INTERNAL_FAULT',
      message: 'a fault of the server; the trace id leads to the rest',
      metadata: {},
    },
    logged: true,
  })),
  {
    what: 'a fault in a stream',
    call: (wire) => attachTo(wire, 14n),
    expected: { code: Code.Internal, reason: 'INTERNAL_FAULT' },
    logged: true,
  },
  {
    what: 'a method that nobody serves',
    call: ({ client }) => client.heartbeat({ connectionId: crypto.randomUUID() }),
    expected: { code: Code.Unimplemented, reason: 'METHOD_UNKNOWN' },
  },
  {
    what: 'a service that is not there',
    call: ({ transport }) =>
      transport.unary(
        SessionService.method.ackKey,
        undefined,
        undefined,
        undefined,
        create(SessionService.method.ackKey.input),
      ),
    expected: { code: Code.Unimplemented, reason: 'METHOD_UNKNOWN' },
  },
];

async function failureOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => {
      throw new Error('was answered');
    },
    (error: unknown) => error,
  );
}

describe('a failure is told in the same way on each wire:', () => {
  test.each(failures)('$what', async ({ call, as, expected, logged = false, except }) => {
    const told = [];
    for (const wire of as === undefined ? alice.wires : (others[as] as ReturnType<typeof clientsOf>).wires) {
      if (except?.test(wire.wire)) continue;
      const error = await failureOf(call(wire));
      const { traceId, miss, ...refusal } = readRefusal(error);
      expect({ ...refusal, miss }, wire.wire).toMatchObject(expected);
      expect(traceId, wire.wire).toMatch(/^[0-9a-f]{32}$/);
      if (miss !== undefined) expect(miss.traceId, wire.wire).toBe(traceId);
      const logLine = service.log.find((line) => line.includes(traceId as string) && line.includes('"error"'));
      expect(logLine !== undefined, wire.wire).toBe(logged);
      if (!logged) expect(logOf(traceId), wire.wire).toContainEqual(expect.objectContaining(reasonOf(refusal)));
      told.push({ ...refusal, details: detailsOf(error) });
    }
    for (const one of told) expect(one).toEqual(told[0]);
  });

  const reasonOf = ({ reason }: Pick<Refusal, 'reason'>) => ({ reason, level: 'info' });
  const logOf = (traceId: string | undefined) =>
    service.log.map((line) => JSON.parse(line) as { trace_id?: string }).filter((line) => line.trace_id === traceId);

  function detailsOf(error: unknown) {
    const { details } = error as { details: { type: string }[] };
    const { findDetails } = error as { findDetails(desc: typeof ErrorInfoSchema | typeof HelpSchema): unknown[] };
    return { types: details.map(({ type }) => type), help: findDetails.call(error, HelpSchema) };
  }
});

describe('an answer', () => {
  test('is the same on each wire, and carries trace id and build', async () => {
    for (const { wire, transport } of alice.wires) {
      const { message, header, trailer } = await transport.unary(
        PresenceService.method.listOnline,
        undefined,
        undefined,
        undefined,
        { userIds: ['u1', 'u2'] },
      );
      expect(
        message.devices.map(({ device }) => device?.userId),
        wire,
      ).toEqual(['u1', 'u2']);
      const all = new Headers([...header, ...trailer]);
      expect(all.get('keytrail-trace-id'), wire).toMatch(/^[0-9a-f]{32}/);
      expect(all.get('keytrail-build'), wire).toMatch(/^\d+\.\d+\.\d+\+/);
    }
  });

  test('of a stream comes message by message, however many', async () => {
    for (const wire of alice.wires) expect(await attachTo(wire, 1000n), wire.wire).toHaveLength(1000);
  });
});

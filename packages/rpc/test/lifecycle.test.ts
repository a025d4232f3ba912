import { once } from 'node:events';
import { create } from '@bufbuild/protobuf';
import { Code, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { Client, credentials, loadPackageDefinition } from '@grpc/grpc-js';
import { createServiceIdentity } from '@keytrail/auth';
import { PresenceService } from '@keytrail/contracts';
import { context, contextFromTraceparent, currentTraceparent } from '@keytrail/telemetry';
import { service as healthDefinition } from 'grpc-health-check';
import { afterEach, describe, expect, test } from 'vitest';
import {
  type Call,
  connectPeer,
  createGrpcTransport,
  currentCall,
  readRefusal,
  serverStream,
  unary,
} from '../src/index.ts';
import { clientsOf, startTestService, type TestService, type TestServiceOptions } from './test-service.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function start(options?: TestServiceOptions, authorization = 'Bearer alice') {
  const service = await startTestService(options);
  closers.push(() => service.stop());
  return { service, ...connectTo(service, authorization) };
}

function connectTo(service: TestService, authorization: string) {
  const { wires, close } = clientsOf(service, authorization);
  closers.push(close);
  return { wires: wires.filter(({ wire }) => ['gRPC', 'Connect, JSON', 'gRPC-Web'].includes(wire)) };
}

async function refusalOf(work: Promise<unknown>) {
  return readRefusal(
    await work.then(
      () => new Error('was answered'),
      (error: unknown) => error,
    ),
  );
}

function deferred<T = void>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

describe('a deadline', () => {
  test('that the caller sets is the deadline of the call', async () => {
    const { service, wires } = await start();
    for (const { wire, client } of wires) {
      const before = Date.now();
      await client.listOnline({ userIds: ['a'] }, { timeoutMs: 30_000 });
      const { deadlineAt } = service.calls.at(-1) as Call;
      expect(deadlineAt - 30_000, wire).toBeGreaterThanOrEqual(before - 1);
      expect(deadlineAt - 30_000, wire).toBeLessThanOrEqual(Date.now() + 1);
      const refusal = await refusalOf(client.listOnline({ userIds: ['hang'] }, { timeoutMs: 30 }));
      expect(refusal.code, wire).toBe(Code.DeadlineExceeded);
    }
  });

  test('is the default without one, told with its reason', async () => {
    const { wires } = await start({ config: { defaultDeadlineMs: 30 } });
    for (const { wire, client } of wires.slice(1)) {
      const refusal = await refusalOf(client.listOnline({ userIds: ['hang'] }));
      expect(refusal, wire).toMatchObject({ code: Code.DeadlineExceeded, reason: 'DEADLINE_EXCEEDED' });
    }
  });

  test('is bounded, however long the caller would wait', async () => {
    const { service, wires } = await start({ config: { maxDeadlineMs: 30 } });
    for (const { wire, client } of wires) {
      const refusal = await refusalOf(client.listOnline({ userIds: ['hang'] }, { timeoutMs: 3_600_000 }));
      expect(refusal, wire).toMatchObject({ code: Code.DeadlineExceeded, reason: 'DEADLINE_EXCEEDED' });
    }
    for (const { signal } of service.calls) expect(readRefusal(signal.reason).reason).toBe('DEADLINE_EXCEEDED');
  });

  test('is passed on to the peers that are asked within', async () => {
    const peer = await start();
    const asked = deferred<number>();
    const { wires } = await start({
      async onCall() {
        const client = connectPeer(PresenceService, {
          target: `127.0.0.1:${peer.service.server.grpcPort}`,
          identity: { service: 'session', header: () => 'Keytrail-Service session x' },
          peer: 'presence',
          timeoutMs: 60_000,
        });
        closers.push(() => client.close());
        await client.listOnline({ userIds: ['a'] });
        asked.resolve(currentCall()?.deadlineAt as number);
      },
    });
    await wires[0]?.client.listOnline({ userIds: ['a'] }, { timeoutMs: 5_000 });
    const [received] = peer.service.calls as [Call];
    expect(received.deadlineAt).toBeLessThanOrEqual((await asked.promise) + 50);
    expect(received.caller).toEqual({ kind: 'service', service: 'session' });
  });
});

test('a call that its caller gives up is aborted', async () => {
  const arrived: ((call: Call) => void)[] = [];
  const { wires } = await start({ onCall: (call) => arrived.shift()?.(call) });
  for (const { wire, client } of wires) {
    const giveUp = new AbortController();
    const call = new Promise<Call>((resolve) => arrived.push(resolve));
    const answer = refusalOf(client.listOnline({ userIds: ['hang'] }, { signal: giveUp.signal }));
    const { signal } = await call;
    const aborted = once(signal, 'abort');
    giveUp.abort();
    expect((await answer).code, wire).toBe(Code.Canceled);
    await aborted;
    expect(readRefusal(signal.reason).reason, wire).toBe('CANCELLED');
  }
});

describe('limits', () => {
  test('of requests per second are per caller, and say when to come back', async () => {
    const { service, wires } = await start({ config: { callerRequestsPerSecond: 1, callerBurst: 2 } });
    const client = (wires[0] as (typeof wires)[0]).client;
    await client.listOnline({ userIds: ['a'] });
    await client.listOnline({ userIds: ['a'] });
    for (const { wire, client } of wires) {
      const refusal = await refusalOf(client.listOnline({ userIds: ['a'] }));
      expect(refusal, wire).toMatchObject({
        code: Code.ResourceExhausted,
        reason: 'LIMIT_EXCEEDED',
        metadata: { limit: '1 requests per second', scope: 'caller' },
      });
      expect(refusal.retryAfterMs, wire).toBeGreaterThan(0);
    }
    for (const authorization of ['Bearer bob', 'Keytrail-Service session x'])
      await connectTo(service, authorization).wires[0]?.client.listOnline({ userIds: ['a'] });
  });

  test('of calls in flight count until the answer', async () => {
    const release = deferred();
    const entered = deferred();
    const { wires } = await start({
      limit: { inFlight: 1 },
      onCall: () => {
        entered.resolve();
        return release.promise;
      },
    });
    const client = (wires[0] as (typeof wires)[0]).client;
    const first = client.listOnline({ userIds: ['a'] });
    await entered.promise;
    const method = 'keytrail.presence.v1.PresenceService/ListOnline';
    expect(await refusalOf(client.listOnline({ userIds: ['a'] }))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { scope: method },
    });
    release.resolve();
    await first;
    await client.listOnline({ userIds: ['a'] });
  });
});

test('a service may call what is open to it by name alone', async () => {
  const { service } = await start();
  const [session] = connectTo(service, 'Keytrail-Service session x').wires;
  await session?.client.listOnline({ userIds: ['a'] });
  const [conversation] = connectTo(service, 'Keytrail-Service conversation x').wires;
  expect(await refusalOf(conversation?.client.listOnline({ userIds: ['a'] }) as Promise<unknown>)).toMatchObject({
    reason: 'CALLER_NOT_ALLOWED',
    metadata: { caller: 'conversation' },
  });
});

describe('a stop', () => {
  async function* untilDrained(call: Call) {
    yield { message: { case: 'draining' as const, value: { reconnectAfterMs: 0 } } };
    if (!call.draining.aborted) await once(call.draining, 'abort');
    yield { message: { case: 'draining' as const, value: { reconnectAfterMs: 5 } } };
  }

  test('asks streams to end, lets calls be answered, and then is over', async () => {
    const release = deferred();
    const entered = deferred();
    const { service, wires } = await start({
      attach: untilDrained,
      onCall: () => {
        entered.resolve();
        return release.promise;
      },
    });
    const streams = wires.map(({ client }) => client.attach({ attachCounter: 1n })[Symbol.asyncIterator]());
    for (const stream of streams) await stream.next();
    const answer = (wires[0] as (typeof wires)[0]).client.listOnline({ userIds: ['a'] });
    await entered.promise;
    const stopped = service.server.stop();
    for (const stream of streams) {
      expect((await stream.next()).value?.message.value).toMatchObject({ reconnectAfterMs: 5 });
      expect((await stream.next()).done).toBe(true);
    }
    release.resolve();
    expect((await answer).devices).toHaveLength(1);
    await stopped;
  });

  test('is over within its bound when a stream does not end', async () => {
    const { service, wires } = await start({
      config: { drainMs: 50 },
      async *attach(call) {
        yield { message: { case: 'draining', value: { reconnectAfterMs: 0 } } };
        await once(call.signal, 'abort');
      },
    });
    const streams = wires.map(({ client }) => client.attach({ attachCounter: 1n })[Symbol.asyncIterator]());
    for (const stream of streams) await stream.next();
    const [, ...ends] = await Promise.all([
      service.server.stop(),
      ...streams.map((stream) => refusalOf(stream.next())),
    ]);
    for (const end of ends)
      expect(end).toMatchObject({ code: Code.Unavailable, reason: 'SHUTTING_DOWN', retryAfterMs: 500 });
  });
});

describe('health', () => {
  const Health = loadPackageDefinition({ health: healthDefinition } as never).health as unknown as new (
    target: string,
    with_: ReturnType<typeof credentials.createInsecure>,
  ) => Client & {
    check(request: object, done: (error: unknown, answer: { status: string }) => void): void;
    watch(request: object): AsyncIterable<{ status: string }> & { cancel(): void };
  };

  test('follows readiness, on both ports', async () => {
    let ready = { ready: false, why: 'the schema is behind' } as { ready: boolean; why?: string };
    const { service } = await start({ readiness: async () => ready });
    const readyz = () => fetch(`http://127.0.0.1:${service.server.webPort}/readyz`);
    const health = new Health(`127.0.0.1:${service.server.grpcPort}`, credentials.createInsecure());
    closers.push(() => health.close());
    const check = (name: string) =>
      new Promise<string>((resolve, reject) =>
        health.check({ service: name }, (error, answer) => (error === null ? resolve(answer.status) : reject(error))),
      );
    const behind = await readyz();
    expect([behind.status, await behind.json()]).toEqual([503, ready]);
    expect(await check('')).toBe('NOT_SERVING');
    ready = { ready: true };
    expect((await readyz()).status).toBe(200);
    for (const name of ['', 'keytrail.presence.v1.PresenceService']) expect(await check(name)).toBe('SERVING');
    service.server.setReady(false);
    expect((await readyz()).status).toBe(503);
    expect(await check('')).toBe('NOT_SERVING');
    const alive = await fetch(`http://127.0.0.1:${service.server.webPort}/healthz`);
    expect([alive.status, await alive.json()]).toMatchObject([200, { healthy: true }]);
  });

  test('is watched until the server stops, which watching does not hold up', async () => {
    const { service } = await start();
    const health = new Health(`127.0.0.1:${service.server.grpcPort}`, credentials.createInsecure());
    closers.push(() => health.close());
    const seen: string[] = [];
    const first = deferred();
    const watching = (async () => {
      for await (const { status } of health.watch({ service: '' })) {
        seen.push(status);
        first.resolve();
      }
    })();
    await first.promise;
    await service.server.stop();
    await watching;
    expect(seen).toEqual(['SERVING', 'NOT_SERVING']);
  });
});

test('reflection tells a stranger what is served, and how', async () => {
  const { service } = await start();
  const client = new Client(`127.0.0.1:${service.server.grpcPort}`, credentials.createInsecure());
  closers.push(() => client.close());
  const ask = async (path: string, request: number[]) => {
    const stream = client.makeBidiStreamRequest(path, Buffer.from, (answer: Buffer) => answer);
    stream.end(Uint8Array.from(request));
    let text = '';
    for await (const answer of stream) text += (answer as Buffer).toString('latin1');
    return text;
  };
  const symbol = Buffer.from('keytrail.presence.v1.PresenceService');
  for (const version of ['v1', 'v1alpha']) {
    const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;
    // ServerReflectionRequest.list_services, then .file_containing_symbol.
    const services = await ask(path, [0x3a, 0]);
    for (const name of ['keytrail.presence.v1.PresenceService', 'grpc.health.v1.Health'])
      expect(services).toContain(name);
    expect(await ask(path, [0x22, symbol.length, ...symbol])).toContain('keytrail/presence/v1/presence.proto');
  }
});

describe('a peer', () => {
  const identity = createServiceIdentity({ serviceCredential: 'x' }, 'session');
  function peerAt(port: number) {
    const client = connectPeer(PresenceService, {
      target: `127.0.0.1:${port}`,
      identity,
      peer: 'presence',
      timeoutMs: 500,
      retry: { retries: 1, backoffMs: 1 },
    });
    closers.push(() => client.close());
    return client;
  }

  test('that is not there is PEER_UNAVAILABLE, by name', async () => {
    const { service } = await start();
    const { grpcPort } = service.server;
    await service.stop();
    expect(await refusalOf(peerAt(grpcPort).listOnline({ userIds: ['a'] }))).toMatchObject({
      code: Code.Unavailable,
      reason: 'PEER_UNAVAILABLE',
      metadata: { peer: 'presence' },
      retryAfterMs: 500,
    });
  });

  test('that does not answer in time is PEER_UNAVAILABLE', async () => {
    const { service } = await start();
    expect(
      await refusalOf(peerAt(service.server.grpcPort).listOnline({ userIds: ['hang'] }, { timeoutMs: 20 })),
    ).toMatchObject({
      reason: 'PEER_UNAVAILABLE',
      metadata: { peer: 'presence' },
    });
  });

  test.each([
    ['conflict', { code: Code.Aborted, reason: 'EPOCH_CONFLICT', metadata: { current_epoch: '7' } }],
    ['miss', { code: Code.NotFound, reason: 'DEVICE_ADDED_AFTER_SESSION', miss: { retryAfterMs: 250 } }],
    ['unavailable', { code: Code.Unavailable, reason: 'EXPLANATION_INCOMPLETE' }],
    [
      'crash',
      {
        code: Code.Internal,
        reason: 'INTERNAL_FAULT',
        message: 'a fault of the server; the trace id leads to the rest',
      },
    ],
    ['not valid', { code: Code.Internal, reason: 'INTERNAL_FAULT' }],
  ])('whose refusal (%s) nobody catches passes it on when it is about the matter', async (deed, expected) => {
    const peer = await start();
    const { wires } = await start({
      async onCall() {
        await peerAt(peer.service.server.grpcPort).listOnline({ userIds: [deed] });
      },
    });
    for (const { wire, client } of wires)
      expect(await refusalOf(client.listOnline({ userIds: ['a'] })), wire).toMatchObject(expected);
  });

  test('that is away for a moment is asked again, if asking twice does no harm', async () => {
    const { service } = await start();
    let tried = 0;
    const transport = createGrpcTransport({
      target: `127.0.0.1:${service.server.grpcPort}`,
      authorization: () => 'Bearer alice',
      retry: { retries: 2, backoffMs: 1 },
    });
    closers.push(() => transport.close());
    const { calls } = service;
    const refusal = await refusalOf(createClient(PresenceService, transport).listOnline({ userIds: ['unavailable'] }));
    tried = calls.length;
    expect([refusal.reason, tried]).toEqual(['EXPLANATION_INCOMPLETE', 3]);
  });
});

describe('the trace of a caller goes on', () => {
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  const request = create(PresenceService.method.listOnline.input, { userIds: ['a'] });

  async function seenBy(transports: (service: TestService) => readonly Transport[]): Promise<string[]> {
    const seen: string[] = [];
    const { service } = await start({ onCall: () => void seen.push(currentTraceparent()) });
    for (const transport of transports(service))
      await context.with(contextFromTraceparent(traceparent), () =>
        transport.unary(PresenceService.method.listOnline, undefined, undefined, { traceparent }, request),
      );
    return seen.map((each) => each.replace(/-[0-9a-f]{16}-/, '-span-'));
  }

  test("of a device on every wire, and its wish to be sampled on none: both are the public's", async () => {
    const seen = await seenBy((service) => {
      const { wires, close } = clientsOf(service, 'Bearer alice');
      closers.push(close);
      return wires.map(({ transport }) => transport);
    });
    expect(seen).toHaveLength(7);
    expect(new Set(seen)).toEqual(new Set(['00-0af7651916cd43dd8448eb211c80319c-span-00']));
  });

  test('of a peer, with its wish to be sampled', async () => {
    const seen = await seenBy((service) => {
      const { grpc, close } = clientsOf(service, 'Keytrail-Service session x');
      closers.push(close);
      return [grpc];
    });
    expect(seen).toEqual(['00-0af7651916cd43dd8448eb211c80319c-span-01']);
  });
});

test('a miss that a peer tells is kept by each process on the way', async () => {
  const seen: string[] = [];
  const peer = await start();
  const { wires } = await start({
    async onCall() {
      const client = connectPeer(PresenceService, {
        target: `127.0.0.1:${peer.service.server.grpcPort}`,
        identity: { service: 'session', header: () => 'Keytrail-Service session x' },
        peer: 'presence',
        timeoutMs: 5_000,
      });
      closers.push(() => client.close());
      await client.listOnline({ userIds: ['a'] });
      seen.push(currentTraceparent().slice(-2));
      await client.listOnline({ userIds: ['miss'] }).catch(() => {});
      seen.push(currentTraceparent().slice(-2));
    },
  });
  await wires[1]?.client.listOnline({ userIds: ['a'] });
  expect(seen).toEqual(['00', '01']);
});

test('a server refuses to start with a method served twice, or of a service it does not serve', async () => {
  const { startServer } = await import('../src/index.ts');
  const rpc = unary(PresenceService.method.heartbeat, { allow: ['device'], handle: () => ({}) });
  const stream = serverStream(PresenceService.method.attach, { allow: ['device'], async *handle() {} });
  const options = { service: 'presence', config: {}, authenticator: {}, telemetry: {} } as never as Parameters<
    typeof startServer
  >[0];
  await expect(
    startServer({
      ...options,
      config: { callerBurst: 1 } as never,
      rpcs: [rpc, stream, rpc],
      services: [PresenceService],
    }),
  ).rejects.toThrow('served twice');
  await expect(startServer({ ...options, rpcs: [rpc], services: [] })).rejects.toThrow('not served here');
});

test('what a handler leaves running after its answer is not bound by the deadline of its call', async () => {
  const answered = deferred();
  const later = deferred<Call | undefined>();
  const { wires } = await start({
    onCall() {
      void answered.promise.then(() => later.resolve(currentCall()));
    },
  });
  await wires[0]?.client.listOnline({ userIds: ['a'] });
  answered.resolve();
  expect(await later.promise).toBeUndefined();
});

test('browsers reach streams over HTTP/1.1', async () => {
  const { service } = await start();
  const client = createClient(
    PresenceService,
    createConnectTransport({
      baseUrl: `http://127.0.0.1:${service.server.webPort}`,
      httpVersion: '1.1',
      interceptors: [
        (next) => (request) => {
          request.header.set('authorization', 'Bearer alice');
          return next(request);
        },
      ],
    }),
  );
  const ids = [];
  for await (const { message } of client.attach({ attachCounter: 3n }))
    if (message.case === 'greeting') ids.push(Number(message.value.connectionId));
  expect(ids).toEqual([0, 1, 2]);
});

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  attr,
  context,
  contextFromTraceparent,
  currentTraceId,
  currentTraceparent,
  keepTrace,
  linkFromTraceparent,
  markMiss,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  trace,
  traceparentOf,
  tracer,
  withSpan,
} from '../src/index.ts';
import type { Observed } from './fixture.ts';
import { observe } from './fixture.ts';

const theirs = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331';

let observed: Observed;
beforeAll(async () => {
  observed = await observe({ KEYTRAIL_SLOW_MS: '300' });
});
afterAll(() => observed.stop());

/** A request with one statement; `inside` runs after the statement, in the request's span. */
async function request(inside: () => unknown = () => {}, name = 'GetInitialSession'): Promise<string> {
  return withSpan(name, { kind: SpanKind.SERVER, parent: ROOT_CONTEXT }, async () => {
    await withSpan('statement', { kind: SpanKind.CLIENT }, async () => {});
    await inside();
    return currentTraceId();
  });
}

describe('with nothing sampled', () => {
  test('a hit leaves no trace', async () => {
    expect(await observed.names(await request())).toEqual([]);
  });

  test('a miss leaves its whole local part, what ended before it was found included', async () => {
    const id = await request(() => markMiss('SESSION_UNKNOWN'));
    const tree = await observed.exported(id);
    expect(tree.spans.map((span) => span.name)).toEqual(['GetInitialSession', 'statement']);
    expect(tree.orphans).toEqual([]);
    expect(tree.roots[0]?.span.attributes).toMatchObject({
      [attr.miss]: true,
      [attr.missCause]: 'SESSION_UNKNOWN',
      [attr.kept]: 'miss',
    });
  });

  test('a miss found deep inside stands on the span that found it', async () => {
    const id = await request(() => withSpan('explain', {}, async () => markMiss('DEVICE_REVOKED')));
    const { spans } = await observed.exported(id);
    expect(spans.find((span) => span.attributes[attr.missCause] === 'DEVICE_REVOKED')?.name).toBe('explain');
    expect(spans).toHaveLength(3);
  });

  test('a miss that is told by the attribute alone leaves its local part', async () => {
    let id = '';
    const client = withSpan('open session', { parent: ROOT_CONTEXT }, async () => {
      id = currentTraceId();
      await withSpan('call', { kind: SpanKind.CLIENT }, (span) => void span.setAttribute(attr.miss, true));
      // What is called from then on carries the sampled flag.
      expect(currentTraceparent()).toMatch(/-01$/);
    });
    await client;
    expect(await observed.names(id)).toEqual(['open session', 'call']);
  });

  test('an error of the server is kept, with what was thrown', async () => {
    let id = '';
    const broken = request(() => {
      id = currentTraceId();
      throw new TypeError('broken: Bearer abcdef');
    });
    await expect(broken).rejects.toThrow(TypeError);
    const [root] = (await observed.exported(id)).spans;
    expect(root).toMatchObject({ status: 'error', statusMessage: 'broken: Bearer [redacted]' });
    expect(root?.attributes[attr.errorType]).toBe('TypeError');
    expect(root?.events[0]).toMatchObject({ name: 'exception', attributes: { 'exception.type': 'TypeError' } });
  });

  test('a failed call that the request got over is not an error', async () => {
    const id = await request(() =>
      withSpan('peer', { kind: SpanKind.CLIENT }, async () => Promise.reject(new Error('away'))).catch(() => {}),
    );
    expect(await observed.names(id)).toEqual([]);
  });

  test('a refusal that is expected is not an error', async () => {
    let id = '';
    const refused = withSpan('AddMembers', { kind: SpanKind.SERVER, isError: () => false }, async () => {
      id = currentTraceId();
      throw new Error('refused');
    });
    await expect(refused).rejects.toThrow('refused');
    expect(await observed.names(id)).toEqual([]);
  });

  test('a slow request is kept; a stream that is meant to last is not slow', async () => {
    const startTime = Date.now() - 301;
    const slow = tracer().startSpan('slow', { kind: SpanKind.SERVER, startTime });
    const stream = tracer().startSpan('Attach', { startTime, attributes: { [attr.longLived]: true } });
    slow.end();
    stream.end();
    expect(await observed.names(slow.spanContext().traceId)).toEqual(['slow']);
    expect(await observed.names(stream.spanContext().traceId)).toEqual([]);
  });

  test('a write of keys is kept, and says why', async () => {
    const id = await request(() => keepTrace('session written'), 'StoreSession');
    expect((await observed.exported(id)).roots[0]?.span.attributes[attr.kept]).toBe('session written');
  });

  test('a write of keys in a trace that is sampled says why too, for a collector that thins those', async () => {
    const traceId = '1af7651916cd43dd8448eb211c80319c';
    const parent = contextFromTraceparent(`00-${traceId}-b7ad6b7169203331-01`);
    await withSpan('StoreSession', { kind: SpanKind.SERVER, parent }, async () => {
      keepTrace('session written');
      keepTrace('and again');
    });
    const [span] = (await observed.exported(traceId)).spans;
    expect(span?.attributes[attr.kept]).toBe('session written');
  });

  test('what ends after its root follows the root: kept with it', async () => {
    const late: { end(): void }[] = [];
    const id = await request(() => {
      markMiss('SESSION_UNKNOWN');
      late.push(tracer().startSpan('late'));
    });
    late[0]?.end();
    expect(await observed.names(id)).toContain('late');
  });

  test('what ends after a root that was dropped is dropped, unless it is kept itself', async () => {
    const late: (() => void)[] = [];
    const id = await request(() => {
      const dropped = tracer().startSpan('dropped');
      const kept = tracer().startSpan('kept');
      late.push(() => dropped.end());
      late.push(() => context.with(trace.setSpan(ROOT_CONTEXT, kept), () => keepTrace('late')));
      late.push(() => kept.end());
    });
    for (const happen of late) happen();
    expect(await observed.names(id)).toEqual(['kept']);
  });

  test('what starts after the root ended is a local part of its own', async () => {
    const traceparent: string[] = [];
    const id = await request(() => traceparent.push(currentTraceparent()));
    const parent = contextFromTraceparent(traceparent[0] ?? '');
    await withSpan('publish', { kind: SpanKind.PRODUCER, parent }, async () => keepTrace('published'));
    const { spans, orphans } = await observed.exported(id);
    expect(spans.map((span) => span.name)).toEqual(['publish']);
    expect(orphans).toHaveLength(1);
  });
});

test('a span lasts as long as the promise of its work, of whatever make', async () => {
  const work = Promise.withResolvers<number>();
  // biome-ignore lint/suspicious/noThenProperty: the shape of Prisma's promises
  const lazy = { then: work.promise.then.bind(work.promise) } as Promise<number>;
  let recording = () => false;
  const result = withSpan('lazy', {}, (span) => {
    recording = () => span.isRecording();
    return lazy;
  });
  expect(recording()).toBe(true);
  work.resolve(3);
  expect(await result).toBe(3);
  expect(recording()).toBe(false);
});

describe('the sampled flag', () => {
  test('is set on calls from the discovery of a miss on', async () => {
    await request(() => {
      expect(currentTraceparent()).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
      markMiss('SESSION_UNKNOWN');
      expect(currentTraceparent()).toMatch(/-01$/);
      withSpan('ask conversation', { kind: SpanKind.CLIENT }, (span) => {
        expect(traceparentOf(span)).toMatch(/-01$/);
        expect(span.spanContext().traceFlags).toBe(1);
      });
    });
  });

  test('is set on the request too when the miss is found below it', async () => {
    await withSpan('request', { parent: ROOT_CONTEXT }, async () => {
      await withSpan('explain', {}, async () => markMiss('SESSION_UNKNOWN'));
      expect(currentTraceparent()).toMatch(/-01$/);
    });
  });

  test('is followed when a caller set it', async () => {
    const parent = contextFromTraceparent(`${theirs}-01`);
    await withSpan('continued', { kind: SpanKind.SERVER, parent }, async () => {
      expect(currentTraceId()).toBe('0af7651916cd43dd8448eb211c80319c');
    });
    const [span] = (await observed.exported('0af7651916cd43dd8448eb211c80319c')).spans;
    expect(span).toMatchObject({ name: 'continued', parentSpanId: 'b7ad6b7169203331' });
  });

  test("of a stranger is not followed, the stranger's trace id is", () => {
    withSpan('edge', { parent: contextFromTraceparent(`${theirs}-01`, { sampling: 'ours' }) }, () => {
      expect(currentTraceId()).toBe('0af7651916cd43dd8448eb211c80319c');
      expect(currentTraceparent()).toMatch(/-00$/);
    });
  });
});

test('a traceparent that is empty, broken or all zero starts a new trace, and links to nothing', () => {
  for (const broken of ['', 'x', `${theirs}`, `ff${theirs.slice(2)}-01`, `00-${'0'.repeat(32)}-b7ad6b7169203331-01`]) {
    expect(contextFromTraceparent(broken)).toBe(ROOT_CONTEXT);
    expect(linkFromTraceparent(broken)).toBeUndefined();
  }
});

test('the exported form holds kind, resource, links and times below a millisecond', async () => {
  const link = linkFromTraceparent(`${theirs}-00`, { 'keytrail.epoch': 3 });
  const span = tracer().startSpan('process', { root: true, kind: SpanKind.CONSUMER, links: link ? [link] : [] });
  span.setAttribute(attr.reason, 'x'.repeat(10_000)).setStatus({ code: SpanStatusCode.ERROR, message: 'no' });
  span.end();
  const [stored] = (await observed.exported(span.spanContext().traceId)).spans;
  expect(stored).toMatchObject({
    kind: 'consumer',
    service: 'session',
    instance: 'session-1',
    parentSpanId: '',
    status: 'error',
    links: [{ traceId: '0af7651916cd43dd8448eb211c80319c', attributes: { 'keytrail.epoch': 3 } }],
  });
  expect(String(stored?.attributes[attr.reason])).toHaveLength(4_096);
});

test('attributes that callers share are never changed by a span', () => {
  const shared = Object.freeze({ [attr.rpcSystem]: 'grpc' });
  const span = tracer().startSpan('a', { attributes: shared });
  span.setAttribute(attr.epoch, 1);
  span.end();
  expect(shared).toEqual({ [attr.rpcSystem]: 'grpc' });
});

import type { Span } from '@opentelemetry/api';
import { ROOT_CONTEXT, trace } from '@opentelemetry/api';
import { expect, test } from 'vitest';
import type { LocalPartBounds } from '../src/local-parts.ts';
import { LocalParts, localPartOf } from '../src/local-parts.ts';
import type { RecordedSpan } from '../src/recorded-span.ts';
import { Recorder } from '../src/recorder.ts';
import { SpanQueue } from '../src/span-queue.ts';

function recording(bounds: Partial<LocalPartBounds>, ratio = 0) {
  const sent: RecordedSpan[] = [];
  const queue = new SpanQueue(async (spans) => {
    sent.push(...spans);
    return true;
  });
  const parts = new LocalParts(queue, { slowMs: 1_000, bounds });
  return { recorder: new Recorder(parts, { ratio }), parts, queue, sent };
}

function child(recorder: Recorder, of: Span, name: string): void {
  recorder.startSpan(name, {}, trace.setSpan(ROOT_CONTEXT, of)).end();
}

test('a root that never ends holds a bounded number of spans, the newest', async () => {
  const { recorder, parts, queue, sent } = recording({ spansPerPart: 10 });
  const root = recorder.startSpan('Attach', {}, ROOT_CONTEXT);
  for (let i = 0; i < 1_003; i += 1) child(recorder, root, `notify ${i}`);
  expect(parts.waiting).toBeLessThanOrEqual(10);
  expect(parts.overflowed).toBe(1_003 - parts.waiting);
  const part = localPartOf(root);
  if (part !== undefined) parts.keep(part);
  await queue.flush();
  expect(sent.at(-1)?.name).toBe('notify 1002');
  expect(parts.waiting).toBe(0);
});

test('roots that never end hold a bounded number of spans together; the oldest go first', () => {
  const { recorder, parts } = recording({ parts: 5, spans: 8 });
  const roots = Array.from({ length: 20 }, (_, i) => recorder.startSpan(`root ${i}`, {}, ROOT_CONTEXT));
  for (const root of roots) for (let i = 0; i < 2; i += 1) child(recorder, root, 'child');
  expect(parts.waiting).toBe(8);
  expect(parts.overflowed).toBe(32);
  for (const root of roots) root.end();
  expect(parts.waiting).toBe(0);
  expect(parts.unsampled).toBe(20 + 8);
});

test('roots that last and forget what they began with lose nothing, however many, and what ends later waits', () => {
  const { recorder, parts } = recording({ spans: 8 });
  for (let i = 0; i < 20; i += 1) {
    const root = recorder.startSpan('Attach', {}, ROOT_CONTEXT);
    child(recorder, root, 'assert');
    const part = localPartOf(root);
    if (part !== undefined) parts.forget(part);
  }
  expect(parts).toMatchObject({ waiting: 0, overflowed: 0, unsampled: 20 });
  const root = recorder.startSpan('Attach', {}, ROOT_CONTEXT);
  child(recorder, root, 'assert');
  expect(parts.waiting).toBe(1);
});

test('a sampled root holds nothing back', () => {
  const { recorder, parts, queue } = recording({}, 1);
  const root = recorder.startSpan('root', {}, ROOT_CONTEXT);
  child(recorder, root, 'child');
  expect(parts.waiting).toBe(0);
  expect(queue.length).toBe(1);
});

test('while the receiver does not answer, the queue is bounded and counts what it loses', async () => {
  const answer = Promise.withResolvers<boolean>();
  const queue = new SpanQueue(() => answer.promise, { capacity: 100, batch: 10 });
  const parts = new LocalParts(queue, { slowMs: 1_000 });
  const recorder = new Recorder(parts, { ratio: 1 });
  for (let i = 0; i < 1_000; i += 1) recorder.startSpan('root', {}, ROOT_CONTEXT).end();
  expect(queue.length).toBe(100);
  expect(queue.overflowed).toBe(890);
  answer.resolve(false);
  await queue.close();
  expect(queue.length).toBe(0);
  expect(queue.failed).toBe(110);
});

test('without a receiver nothing waits', () => {
  const queue = new SpanQueue(undefined);
  const recorder = new Recorder(new LocalParts(queue, { slowMs: 1_000 }), { ratio: 1 });
  recorder.startSpan('root', {}, ROOT_CONTEXT).end();
  expect(queue.length).toBe(0);
});

test('the ratio decides by trace id', () => {
  const { recorder } = recording({}, 0.25);
  expect(recorder.draws(`${'f'.repeat(24)}3fffffff`)).toBe(true);
  expect(recorder.draws(`${'0'.repeat(24)}40000000`)).toBe(false);
});

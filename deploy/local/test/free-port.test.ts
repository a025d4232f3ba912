import { mkdtempSync, rmSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { findFreePort, promisePort } from '../src/free-port.ts';

const folder = mkdtempSync(join(tmpdir(), 'keytrail-ports-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('no port is given twice before whoever got it listens', async () => {
  const ports = await Promise.all(Array.from({ length: 500 }, () => findFreePort()));
  expect(new Set(ports).size).toBe(500);
});

test('a port is promised once, whoever asks, until its promise is old', () => {
  expect(promisePort(12_345, folder)).toBe(true);
  expect(promisePort(12_345, folder)).toBe(false);
  const threeMinutesAgo = Date.now() / 1000 - 180;
  utimesSync(join(folder, '12345'), threeMinutesAgo, threeMinutesAgo);
  expect(promisePort(12_345, folder)).toBe(true);
});

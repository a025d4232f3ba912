import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Browser, type Page, startBrowser } from '@keytrail/local/browser';
import { attributeReference } from '@keytrail/telemetry';
import { assembleTrace, renderTraceHtml, reportTrace, type TraceSpan } from '@keytrail/traces';
import { afterAll, beforeAll, expect, type TestContext, test } from 'vitest';
import { missedRead, span } from '../../packages/traces/test/fixture.ts';

let browser: Browser | undefined;
let reason = '';
let folder = '';

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'keytrail-waterfall-'));
  try {
    browser = await startBrowser();
  } catch (error) {
    reason = `no browser can be had: ${(error as Error).message}`;
    process.stderr.write(`keytrail: the waterfall is not tested in a browser, as ${reason}\n`);
  }
}, 300_000);
afterAll(async () => {
  await browser?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

const registered = new Set<string>(attributeReference.map(({ name }) => name));

async function waterfall(
  context: TestContext,
  spans: readonly TraceSpan[],
  options?: { script?: boolean },
): Promise<Page> {
  if (browser === undefined) return context.skip(reason);
  const html = renderTraceHtml([reportTrace(assembleTrace(spans), (name) => registered.has(name))]);
  const file = join(folder, `${context.task.id}.html`);
  await writeFile(file, html);
  const page = await browser.page(options);
  await page.open(pathToFileURL(file).href);
  return page;
}

const hostile = `"><img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;

test('every hop is a row with a bar within the page, and the page asks for nothing', async (context) => {
  const page = await waterfall(context, missedRead);
  expect(await page.evaluate(`document.querySelectorAll('li.hop').length`)).toBe(missedRead.length);
  const bars = await page.evaluate<{ left: number; right: number; from: number; to: number; visible: boolean }[]>(`
    [...document.querySelectorAll('.bar')].map((bar) => {
      const [outer, inner] = [bar.getBoundingClientRect(), bar.querySelector('rect').getBoundingClientRect()];
      return { left: outer.left, right: outer.right, from: inner.left, to: inner.right, visible: inner.width > 0 };
    }).filter((bar) => bar.right > bar.left)`);
  expect(bars).toHaveLength(missedRead.length);
  for (const bar of bars) {
    expect(bar.visible).toBe(true);
    expect(bar.from).toBeGreaterThanOrEqual(bar.left - 0.5);
    expect(bar.to).toBeLessThanOrEqual(bar.right + 0.5);
  }
  expect(await page.evaluate(`document.documentElement.scrollWidth <= innerWidth`)).toBe(true);
  expect(await page.evaluate(`document.body.innerText`)).toContain('MISS DEVICE_ADDED_AFTER_SESSION · REQUESTABLE');
  expect(page.requests).toEqual([expect.stringMatching(/^file:/)]);
  expect(page.problems).toEqual([]);
});

test('hostile names are text, and steer neither the page nor the direction of what is read', async (context) => {
  const page = await waterfall(context, [
    span(hostile, '1', '', hostile, [0, 5], {
      status: 'error',
      statusMessage: hostile,
      instance: hostile,
      build: hostile,
      attributes: {
        'keytrail.miss.cause': hostile,
        'keytrail.reason': `a\u202Eb`,
        'rpc.method': hostile,
        unknown: 'kept out',
      },
    }),
  ]);
  expect(await page.evaluate(`document.title`)).toMatch(/^Trace /);
  expect(await page.evaluate(`document.querySelectorAll('img, script:not(body > script), [onerror]').length`)).toBe(0);
  expect(await page.evaluate(`document.querySelector('.service').textContent`)).toBe(hostile);
  const text = await page.evaluate<string>(`document.documentElement.textContent`);
  expect(text).toContain('a\uFFFDb');
  expect(text).not.toContain('\u202E');
  expect(text).not.toContain('kept out');
  expect(page.requests).toHaveLength(1);
  expect(page.problems).toEqual([]);
});

test('the policy of the page stops what would be loaded or run, even if it were in the page', async (context) => {
  const page = await waterfall(context, missedRead);
  await page.evaluate(`(() => {
    const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/pixel'; document.body.append(image);
    const inline = document.createElement('script'); inline.textContent = "document.title = 'owned'"; document.body.append(inline);
  })()`);
  expect(await page.evaluate(`document.title`)).toMatch(/^Trace /);
  expect(page.problems.join('\n')).toMatch(/Content Security Policy/);
});

const focused = `document.activeElement.parentElement.parentElement.id.at(-1)`;
const shown = `[...document.querySelectorAll('summary.row')].filter((row) => row.checkVisibility()).length`;

test('rows are opened, closed and walked over with the keyboard alone', async (context) => {
  const page = await waterfall(context, missedRead);
  while ((await page.evaluate(`document.activeElement.matches('summary.row')`)) !== true) await page.press('Tab');
  expect(await page.evaluate(focused)).toBe('1');
  const all = await page.evaluate<number>(shown);
  await page.press('ArrowDown');
  expect(await page.evaluate(focused)).toBe('2');
  await page.press('ArrowLeft');
  expect(await page.evaluate(`document.activeElement.parentElement.open`)).toBe(false);
  expect(await page.evaluate<number>(shown)).toBeLessThan(all);
  await page.press('ArrowDown');
  expect(await page.evaluate(focused)).toBe('8');
  await page.press('ArrowUp');
  await page.press('ArrowRight');
  expect(await page.evaluate<number>(shown)).toBe(all);
  await page.press('Enter');
  expect(await page.evaluate(`document.activeElement.parentElement.open`)).toBe(false);
  await page.press('ArrowLeft');
  expect(await page.evaluate(focused)).toBe('1');
  await page.press('End');
  expect(await page.evaluate(focused)).toBe('d');
  await page.evaluate(`document.getElementById('open-all').click()`);
  expect(await page.evaluate<number>(shown)).toBe(all);
});

test('on paper everything is open, and in the dark it is dark', async (context) => {
  const page = await waterfall(context, missedRead);
  await page.evaluate(`document.getElementById('close-all').click(); dispatchEvent(new Event('beforeprint'))`);
  await page.emulate({ medium: 'print' });
  expect(await page.evaluate(shown)).toBe(missedRead.length);
  const ground = `getComputedStyle(document.body).backgroundColor`;
  await page.emulate({ colours: 'light' });
  const light = await page.evaluate(ground);
  await page.emulate({ colours: 'dark' });
  expect(await page.evaluate(ground)).not.toBe(light);
});

test('without scripts it reads the same, and its rows still open and close', async (context) => {
  const page = await waterfall(context, missedRead, { script: false });
  expect(await page.evaluate(shown)).toBe(missedRead.length);
  expect(await page.evaluate(`document.getElementById('buttons').hidden`)).toBe(true);
  while ((await page.evaluate(`document.activeElement.matches('summary.row')`)) !== true) await page.press('Tab');
  await page.press('Enter');
  expect(await page.evaluate<number>(shown)).toBeLessThan(missedRead.length);
  expect(page.problems).toEqual([]);
});

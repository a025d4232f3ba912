import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { baseEnvironment, findPrograms, type Program } from '../servers/programs-on-path.ts';
import { NotAvailable } from '../servers/server.ts';
import { installChromium } from '../toolchain/chromium-package.ts';
import { Devtools } from './devtools.ts';

/** A page in a real browser. */
export interface Page {
  /** Resolves once it has loaded. */
  open(url: string): Promise<void>;
  /** The value of an expression in the page, which must be JSON. */
  evaluate<T>(expression: string): Promise<T>;
  /** Presses and releases a key by its name, as ArrowDown, Enter or Tab. */
  press(key: string): Promise<void>;
  /** Pretends to have a medium (`print`), or a colour scheme. */
  emulate(media: { readonly medium?: 'print' | 'screen'; readonly colours?: 'dark' | 'light' }): Promise<void>;
  /** Every URL that the page asked for, itself included. */
  readonly requests: readonly string[];
  /** Errors: uncaught ones, and what the console and the content policy complain about. */
  readonly problems: readonly string[];
}

export interface Browser extends AsyncDisposable {
  readonly version: string;
  page(options?: { readonly script?: boolean }): Promise<Page>;
}

/** `KEYTRAIL_CHROMIUM`, one on PATH, or the one of npm. Throws {@link NotAvailable} with what was wrong with each. */
export async function startBrowser(): Promise<Browser> {
  const given = process.env.KEYTRAIL_CHROMIUM;
  const names = ['chromium', 'chromium-browser', 'google-chrome', 'chrome-headless-shell'];
  const [found] = given === undefined ? findPrograms(names) : [given];
  return launch(found === undefined ? await installChromium() : { path: found, version: '', env: {} });
}

const flags = [
  '--headless',
  // Tests run as root where there is nobody else, and open no page but their own.
  '--no-sandbox',
  '--disable-gpu',
  '--disable-software-rasterizer',
  '--disable-dev-shm-usage',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-quic',
  '--no-first-run',
  '--no-default-browser-check',
  '--remote-debugging-pipe',
];

async function launch({ path, env }: Program): Promise<Browser> {
  const profile = await mkdtemp(join(tmpdir(), 'keytrail-browser-'));
  const child = spawn(path, [...flags, `--user-data-dir=${profile}`, 'about:blank'], {
    env: { ...baseEnvironment(), ...env },
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
  });
  const [, , , to, from] = child.stdio;
  const exited = once(child, 'exit').catch(() => []);
  const devtools = new Devtools(to as Writable, from as Readable);
  const stop = async () => {
    await Promise.race([devtools.call('Browser.close').catch(() => {}), exited]);
    child.kill('SIGKILL');
    await exited;
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    const { product } = await Promise.race([
      devtools.call('Browser.getVersion'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`it ended with code ${code}`);
      }),
    ]);
    return {
      version: String(product),
      page: (options) => openPage(devtools, options?.script ?? true),
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await stop();
    throw new NotAvailable(`${path} does not start: ${(error as Error).message}`, { cause: error });
  }
}

async function openPage(devtools: Devtools, script: boolean): Promise<Page> {
  const { targetId } = await devtools.call('Target.createTarget', { url: 'about:blank' });
  const { sessionId } = await devtools.call('Target.attachToTarget', { targetId, flatten: true });
  const call = (method: string, params: object = {}) => devtools.call(method, params, String(sessionId));
  const requests: string[] = [];
  const problems: string[] = [];
  let loaded = () => {};
  devtools.listen(({ method, params, sessionId: of }) => {
    if (of !== sessionId) return;
    if (method === 'Page.loadEventFired') loaded();
    if (method === 'Network.requestWillBeSent') requests.push((params.request as { url: string }).url);
    if (method === 'Runtime.exceptionThrown') problems.push(JSON.stringify(params.exceptionDetails));
    if (method === 'Log.entryAdded') problems.push((params.entry as { text: string }).text);
    if (method === 'Runtime.consoleAPICalled' && params.type === 'error') problems.push(JSON.stringify(params.args));
  });
  for (const domain of ['Page', 'Network', 'Runtime', 'Log']) await call(`${domain}.enable`);
  if (!script) await call('Emulation.setScriptExecutionDisabled', { value: true });
  return {
    requests,
    problems,
    async open(url) {
      const whole = new Promise<void>((resolve) => {
        loaded = resolve;
      });
      const { errorText } = await call('Page.navigate', { url });
      if (errorText) throw new Error(`${url}: ${String(errorText)}`);
      await whole;
    },
    async evaluate(expression) {
      const { result, exceptionDetails } = await call('Runtime.evaluate', { expression, returnByValue: true });
      if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails));
      return (result as { value: never }).value;
    },
    async press(key) {
      const code = keyCodes[key];
      const text = key === 'Enter' ? { text: '\r' } : {};
      const which = { key, code: key, windowsVirtualKeyCode: code };
      await call('Input.dispatchKeyEvent', { type: text.text ? 'keyDown' : 'rawKeyDown', ...which, ...text });
      await call('Input.dispatchKeyEvent', { type: 'keyUp', ...which });
    },
    async emulate({ medium = 'screen', colours = 'light' }) {
      const features = [{ name: 'prefers-color-scheme', value: colours }];
      await call('Emulation.setEmulatedMedia', { media: medium, features });
    },
  };
}

const keyCodes: Readonly<Record<string, number>> = {
  Tab: 9,
  Enter: 13,
  End: 35,
  Home: 36,
  ArrowLeft: 37,
  ArrowUp: 38,
  ArrowRight: 39,
  ArrowDown: 40,
};

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { run } from '@keytrail/cli';
import type { CheckCode, Status } from '@keytrail/diagnosis';
import { type ConstellationOptions, serviceNames, type servicesWithDatabase } from '@keytrail/local/constellation';
import pg from 'pg';
import { expect } from 'vitest';
import { startWorld, type World } from '../e2e/world.ts';
import { makeRelease, type Release } from './releases.ts';

/** What a run of the command wrote and ended with. */
export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

interface Found {
  readonly code: CheckCode;
  readonly status: Status;
  readonly summary: string;
  readonly hint: string;
  readonly places: readonly {
    readonly where: string;
    readonly status: Status;
    readonly summary: string;
    readonly sql?: string;
    readonly evidence?: Readonly<Record<string, string>>;
  }[];
}

/** A constellation that runs from a copy of the tree, so that nobody else's edits are seen, and the command of operators. */
export interface DoctorWorld extends AsyncDisposable {
  readonly world: World;
  readonly release: Release;
  keytrail(args: readonly string[], environment?: Readonly<Record<string, string>>): Promise<Ran>;
  doctor(args: readonly string[], environment?: Readonly<Record<string, string>>): Promise<Ran>;
  /** The findings of one run of these checks, by code. */
  findings(codes: string, ...args: string[]): Promise<{ code: number; of: (code: CheckCode) => Found; all: Found[] }>;
  /** Expects the check to end so, in words that match; and the exit code with it. */
  names(code: CheckCode, status: Status, words: RegExp, ...args: string[]): Promise<void>;
  /** The same, as soon as it is so: of what takes its time. */
  comesToName(code: CheckCode, status: Status, words: RegExp): Promise<void>;
  /** Expects the checks to be ok again, as soon as they are. */
  isOkAgain(codes: string): Promise<void>;
  /** Statements past all constraints and triggers, as somebody with all rights may run them. */
  past(service: (typeof servicesWithDatabase)[number], ...texts: string[]): Promise<pg.QueryResult[]>;
  databaseUrls(): Record<string, string>;
}

const exitCodes: Readonly<Record<Status, number>> = { ok: 0, fail: 1, warn: 4, unknown: 5, skip: 0 };
const variable = (service: string) => service.toUpperCase().replace('-', '_');

export async function startDoctorWorld(name: string, options: ConstellationOptions): Promise<DoctorWorld> {
  const release = makeRelease({ name });
  const world = await startWorld({
    name: `test-${name}`,
    own: true,
    releases: Object.fromEntries(serviceNames.map((service) => [service, release.folder])),
    migrationsOf: release.folder,
    ...options,
  }).catch((error) => {
    release.remove();
    throw error;
  });
  const { constellation } = world;
  const token = await constellation.issuer.token({
    userId: 'operator',
    deviceId: 'console',
    scopes: ['keytrail:operator'],
  });
  const targets = Object.fromEntries(
    serviceNames.map((service) => [`KEYTRAIL_${variable(service)}_TARGET`, constellation.grpcTarget(service)]),
  );

  async function keytrail(args: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<Ran> {
    const written = { out: '', err: '' };
    const code = await run(['--timeout', '5s', ...args], {
      environment: { KEYTRAIL_OPERATOR_TOKEN: token, ...targets, ...environment },
      out(text) {
        written.out += text;
      },
      say(text) {
        written.err += text;
      },
    });
    return { code, ...written };
  }

  const doctor: DoctorWorld['doctor'] = (args, environment) => keytrail(['doctor', ...args], environment);

  async function findings(codes: string, ...args: string[]) {
    const ran = await doctor(['-o', 'json', '--only', codes, ...args], databaseUrls());
    const { checks } = JSON.parse(ran.out) as { checks: Found[] };
    const of = (code: CheckCode) => checks.find((each) => each.code === code) as Found;
    return { code: ran.code, of, all: checks };
  }

  const names: DoctorWorld['names'] = async (check, status, words, ...args) => {
    const { code, of } = await findings(check, ...args);
    expect(of(check)).toMatchObject({ status, summary: expect.stringMatching(words) });
    expect(code).toBe(exitCodes[status]);
  };

  function databaseUrls(): Record<string, string> {
    return Object.fromEntries(
      Object.entries(constellation.databaseUrls).map(([service, url]) => [
        `KEYTRAIL_DATABASE_URL_${variable(service)}`,
        url,
      ]),
    );
  }

  return {
    world,
    release,
    keytrail,
    doctor,
    findings,
    databaseUrls,
    names,
    async comesToName(check, status, words) {
      for (let tries = 0; tries < 200; tries++) {
        const { of } = await findings(check);
        if (of(check).status === status && words.test(of(check).summary)) return;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      await names(check, status, words);
    },
    async isOkAgain(codes) {
      for (let tries = 0; ; tries++) {
        const { code, all } = await findings(codes);
        if (code === 0) return;
        if (tries >= 100) expect(all.filter(({ status }) => status !== 'ok')).toEqual([]);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    },
    async past(service, ...texts) {
      const url = new URL(constellation.postgres.url);
      url.pathname = new URL(constellation.databaseUrls[service]).pathname;
      const client = new pg.Client(url.href);
      await client.connect();
      try {
        await client.query('SET session_replication_role = replica');
        const results = [];
        for (const text of texts) results.push(await client.query(text));
        return results;
      } finally {
        await client.end();
      }
    },
    async [Symbol.asyncDispose]() {
      await world[Symbol.asyncDispose]();
      release.remove();
    },
  };
}

/** A command that prints tokens of the development issuer, as an operator's would. */
export function tokenScript(folder: string, issuerUrl: string): string {
  const file = join(folder, 'token.mjs');
  writeFileSync(
    file,
    `const [user, device] = process.argv.slice(2);
const answer = await fetch('${issuerUrl}/token', { method: 'POST', body: JSON.stringify({ user, device }) });
console.log((await answer.json()).token);
`,
  );
  return `${process.execPath} ${file}`;
}

/** The environment in which a process's clock, and no other's, is so far ahead. */
export function clockAhead(folder: string, ms: number): { readonly NODE_OPTIONS: string } {
  const file = join(folder, 'clock-ahead.mjs');
  writeFileSync(
    file,
    `const Right = Date;
globalThis.Date = class Date extends Right {
  constructor(...given) {
    super(...(given.length > 0 ? given : [Right.now() + ${ms}]));
  }
  static now() {
    return Right.now() + ${ms};
  }
};
`,
  );
  return { NODE_OPTIONS: `--import=${pathToFileURL(file)}` };
}

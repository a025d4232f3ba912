import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { checkoutFolder } from '../checkout.ts';
import type { StopRecord } from '../supervision/stop-recorded.ts';
import { upEnvironment } from '../up-environment.ts';

/** What `make up` started, for `make down`, the README's curl examples and other programs. */
export interface UpState {
  readonly record: StopRecord;
  readonly services: readonly { readonly service: string; readonly grpcTarget: string; readonly webUrl: string }[];
  readonly issuer: string;
  readonly traces: string;
  readonly servers: readonly {
    readonly kind: string;
    readonly version: string;
    readonly origin: string;
    readonly port: number;
  }[];
}

export const upStateFile = join(checkoutFolder, '.local', 'up.json');
/** Shell variables for the examples of the README: `. .local/up.env`. */
export const upEnvironmentFile = join(checkoutFolder, '.local', 'up.env');

/** An operator's token for bin/keytrail, readable by its owner alone: good as long as this issuer runs. */
export const operatorTokenFile = join(checkoutFolder, '.local', 'operator.token');

/** With passwords: kept out of the state, which is printed, and of logs. */
const databasesFile = join(checkoutFolder, '.local', 'databases.json');

export function writeUpDatabases(urls: Readonly<Record<string, string>>): void {
  writePrivate(databasesFile, JSON.stringify(urls));
}

function writePrivate(file: string, text: string): void {
  mkdirSync(dirname(file), { recursive: true });
  rmSync(file, { force: true });
  writeFileSync(file, text, { mode: 0o600 });
}

export function readUpState(): UpState | undefined {
  return existsSync(upStateFile) ? (JSON.parse(readFileSync(upStateFile, 'utf8')) as UpState) : undefined;
}

export function writeUpState(state: UpState): void {
  mkdirSync(dirname(upStateFile), { recursive: true });
  writeFileSync(upStateFile, `${JSON.stringify(state, null, 2)}\n`);
  writePrivate(
    upEnvironmentFile,
    upEnvironment({
      ...state,
      operatorTokenFile,
      databaseUrls: JSON.parse(readFileSync(databasesFile, 'utf8')),
      tokenCommand: `'${checkoutFolder}/bin/with-node' node '${checkoutFolder}/deploy/local/src/bin/token.ts'`,
    }),
  );
}

export function removeUpState(): void {
  rmSync(upStateFile, { force: true });
  rmSync(upEnvironmentFile, { force: true });
  rmSync(operatorTokenFile, { force: true });
  rmSync(databasesFile, { force: true });
}

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { checkoutFolder } from '../checkout.ts';
import type { StopRecord } from '../supervision/stop-recorded.ts';

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

const operatorTokenSeconds = 30 * 24 * 60 * 60;

/** Asks the development issuer for an operator's token. */
export async function writeOperatorToken({ issuer }: Pick<UpState, 'issuer'>): Promise<void> {
  const response = await fetch(`${issuer}/token`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      user: 'local-operator',
      device: 'console',
      scope: 'keytrail:operator',
      ttlSeconds: operatorTokenSeconds,
    }),
  });
  const { token, error } = (await response.json()) as { token?: string; error?: string };
  if (!token) throw new Error(`the issuer gave no operator's token: ${error ?? response.status}`);
  rmSync(operatorTokenFile, { force: true });
  writeFileSync(operatorTokenFile, `${token}\n`, { mode: 0o600 });
}

export function readUpState(): UpState | undefined {
  return existsSync(upStateFile) ? (JSON.parse(readFileSync(upStateFile, 'utf8')) as UpState) : undefined;
}

export function writeUpState(state: UpState): void {
  mkdirSync(dirname(upStateFile), { recursive: true });
  writeFileSync(upStateFile, `${JSON.stringify(state, null, 2)}\n`);
  const lines = [
    ...state.services.flatMap(({ service, grpcTarget, webUrl }) => {
      const name = service.toUpperCase().replaceAll('-', '_');
      return [
        `${name}=${webUrl}`,
        `${name}_GRPC=${grpcTarget}`,
        // For bin/keytrail.
        `export KEYTRAIL_${name}_TARGET=${grpcTarget}`,
      ];
    }),
    `ISSUER=${state.issuer}`,
    `TRACES=${state.traces}`,
    `export KEYTRAIL_TOKEN_COMMAND="'${checkoutFolder}/bin/with-node' node '${checkoutFolder}/deploy/local/src/bin/token.ts'"`,
    `export KEYTRAIL_OPERATOR_TOKEN_FILE='${operatorTokenFile}'`,
    // Exported, so that bin/keytrail asks this store.
    `export KEYTRAIL_TRACE_BACKEND=${state.traces}`,
  ];
  writeFileSync(upEnvironmentFile, `${lines.join('\n')}\n`);
}

export function removeUpState(): void {
  rmSync(upStateFile, { force: true });
  rmSync(upEnvironmentFile, { force: true });
  rmSync(operatorTokenFile, { force: true });
}

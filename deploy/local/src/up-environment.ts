import { rmSync, writeFileSync } from 'node:fs';

const operatorTokenSeconds = 30 * 24 * 60 * 60;

/** Asks the development issuer for an operator's token, and keeps it in a file that its owner alone can read. */
export async function writeOperatorToken(issuerUrl: string, file: string): Promise<void> {
  const response = await fetch(`${issuerUrl}/token`, {
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
  rmSync(file, { force: true });
  writeFileSync(file, `${token}\n`, { mode: 0o600 });
}

function variable(service: string): string {
  return service.toUpperCase().replaceAll('-', '_');
}

/** What `. .local/up.env` sets: variables for the examples of the README; exported are those that bin/keytrail reads. */
export function upEnvironment({
  services,
  issuer,
  traces,
  operatorTokenFile,
  tokenCommand,
  databaseUrls = {},
}: {
  readonly services: readonly { readonly service: string; readonly grpcTarget: string; readonly webUrl: string }[];
  /** Base URLs. */
  readonly issuer: string;
  readonly traces: string;
  readonly operatorTokenFile: string;
  /** Prints a token for the user and the device that it is given; without it the doctor skips REPRODUCTION. */
  readonly tokenCommand?: string;
  /** By service, with their passwords: for migrate, and for the doctor of a service that is down. */
  readonly databaseUrls?: Readonly<Record<string, string>>;
}): string {
  const lines = [
    ...services.flatMap(({ service, grpcTarget, webUrl }) => {
      const name = variable(service);
      return [`${name}=${webUrl}`, `${name}_GRPC=${grpcTarget}`, `export KEYTRAIL_${name}_TARGET=${grpcTarget}`];
    }),
    `ISSUER=${issuer}`,
    `TRACES=${traces}`,
    ...(tokenCommand === undefined ? [] : [`export KEYTRAIL_TOKEN_COMMAND="${tokenCommand}"`]),
    `export KEYTRAIL_OPERATOR_TOKEN_FILE='${operatorTokenFile}'`,
    `export KEYTRAIL_TRACE_BACKEND=${traces}`,
    `export KEYTRAIL_PROCESS_ADVICE='its log is in .local/up; make down, then make up starts all anew'`,
    ...Object.entries(databaseUrls).map(
      ([service, url]) => `export KEYTRAIL_DATABASE_URL_${variable(service)}='${url.replaceAll("'", '%27')}'`,
    ),
  ];
  return `${lines.join('\n')}\n`;
}

import { NotAvailable, type ServerHandle, type ServerKind } from './server.ts';
import { isOlder } from './version.ts';

export interface EnvironmentServer {
  readonly kind: ServerKind;
  readonly url: string;
  readonly oldest: string;
  /** Connects once and returns the server's version; throws when the server does not suit. */
  readonly readVersion: (url: string) => Promise<string>;
  readonly defaultPort: number;
}

/** A handle of a server that somebody else runs: it is checked, and never stopped. */
export async function environmentServer({
  kind,
  url,
  oldest,
  readVersion,
  defaultPort,
}: EnvironmentServer): Promise<ServerHandle> {
  const variable = `KEYTRAIL_${kind.toUpperCase()}_URL`;
  let version: string;
  try {
    version = await readVersion(url);
  } catch (error) {
    throw new Error(`the server of ${variable} cannot be used: ${(error as Error).message}`, { cause: error });
  }
  if (isOlder(version, oldest))
    throw new Error(`the server of ${variable} is ${kind} ${version}; ${oldest} or newer is needed`);
  const stop = async () => {};
  return {
    kind,
    url,
    version,
    origin: 'environment',
    port: Number(new URL(url.includes('://') ? url : `${kind}://${url}`).port) || defaultPort,
    stop,
    [Symbol.asyncDispose]: stop,
    async kill() {
      throw new NotAvailable(`the server of ${variable} is not ours to kill; ask for one with { own: true }`);
    },
  };
}

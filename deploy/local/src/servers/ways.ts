import {
  NotAvailable,
  type Origin,
  origins,
  type ServerHandle,
  type ServerKind,
  type ServerOptions,
  ServerUnavailable,
} from './server.ts';

export interface Ways {
  readonly kind: ServerKind;
  /** What to tell somebody whose machine offers none of the ways. */
  readonly advice: string;
  /** Given the URL of `KEYTRAIL_<KIND>_URL`. */
  environment(url: string): Promise<ServerHandle>;
  path(): Promise<ServerHandle>;
  toolchain(): Promise<ServerHandle>;
  docker(): Promise<ServerHandle>;
}

/** The first way that is available. A server that is there but does not start is an error, not a reason to go on. */
export async function firstAvailable(ways: Ways, options: ServerOptions): Promise<ServerHandle> {
  const prefix = `KEYTRAIL_${ways.kind.toUpperCase()}`;
  const url = options.own === true ? undefined : process.env[`${prefix}_URL`] || undefined;
  const only = options.from ?? readOrigin(`${prefix}_FROM`);
  const attempts: Record<Origin, () => Promise<ServerHandle>> = {
    environment: async () => {
      if (url === undefined)
        throw new NotAvailable(`${prefix}_URL is not set${options.own === true ? ' for servers of our own' : ''}`);
      return ways.environment(url);
    },
    path: () => ways.path(),
    toolchain: () => ways.toolchain(),
    docker: () => ways.docker(),
  };
  const tried: string[] = [];
  for (const origin of only === undefined ? origins : [only]) {
    try {
      return await attempts[origin]();
    } catch (error) {
      if (!(error instanceof NotAvailable)) throw error;
      tried.push(`  ${origin}: ${error.message.replaceAll('\n', '\n    ')}`);
    }
  }
  throw new ServerUnavailable(`no ${ways.kind} server to be had. Tried:\n${tried.join('\n')}\n${ways.advice}`);
}

function readOrigin(variable: string): Origin | undefined {
  const value = process.env[variable];
  if (value === undefined || value === '') return undefined;
  const origin = origins.find((candidate) => candidate === value);
  if (origin === undefined)
    throw new Error(`${variable} must be one of ${origins.join(', ')}, not ${JSON.stringify(value)}`);
  return origin;
}

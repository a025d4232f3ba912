import { readFileSync } from 'node:fs';
import { type Client, createClient } from '@connectrpc/connect';
import { SessionOperatorService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import { UsageError } from './exit-codes.ts';

export type Operator = Client<typeof SessionOperatorService>;

export interface ConnectionOptions {
  /** gRPC target of the service session. */
  readonly session?: string;
  readonly tokenFile?: string;
  /** In milliseconds. */
  readonly timeout: number;
}

export type Environment = Readonly<Record<string, string | undefined>>;

/** Runs one command over one connection. Throws UsageError without a target or a token. */
export async function withOperator<T>(
  options: ConnectionOptions,
  environment: Environment,
  work: (operator: Operator) => Promise<T>,
): Promise<T> {
  const target = options.session || environment.KEYTRAIL_SESSION_TARGET;
  if (!target) throw new UsageError('no service to ask: give --session <host:port> or KEYTRAIL_SESSION_TARGET');
  const token = readToken(options, environment);
  const transport = createGrpcTransport({
    target,
    authorization: () => `Bearer ${token}`,
    defaultTimeoutMs: options.timeout,
    peer: 'session',
  });
  try {
    return await work(createClient(SessionOperatorService, transport));
  } finally {
    transport.close();
  }
}

/** Never from an argument: those can be read by every process of the machine, and stay in histories. */
function readToken({ tokenFile }: ConnectionOptions, environment: Environment): string {
  const token = tokenFile === undefined ? environment.KEYTRAIL_OPERATOR_TOKEN : readTokenFile(tokenFile);
  const trimmed = token?.trim() ?? '';
  if (trimmed === '') throw new UsageError('no token: give --token-file <file> or KEYTRAIL_OPERATOR_TOKEN');
  if (!/^[\x21-\x7e]+$/.test(trimmed)) throw new UsageError('the token has characters that no token has');
  return trimmed;
}

function readTokenFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(`the token file cannot be read: ${(error as NodeJS.ErrnoException).code ?? 'unknown'}`);
  }
}

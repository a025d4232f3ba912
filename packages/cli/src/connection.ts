import { readFileSync } from 'node:fs';
import type { DescService } from '@bufbuild/protobuf';
import { type Client, createClient } from '@connectrpc/connect';
import { createGrpcTransport, type GrpcTransport } from '@keytrail/rpc';
import { UsageError } from './exit-codes.ts';
import { noteCallee } from './failure.ts';
import { parseTarget, targetForms } from './target.ts';

export const serviceNames = ['identity-keys', 'session', 'conversation', 'presence'] as const;
export type ServiceName = (typeof serviceNames)[number];

export interface ConnectionOptions {
  /** gRPC targets of the services. */
  readonly identityKeys?: string;
  readonly session?: string;
  readonly conversation?: string;
  readonly presence?: string;
  readonly tokenFile?: string;
  /** In milliseconds. */
  readonly timeout: number;
}

export type Environment = Readonly<Record<string, string | undefined>>;

const optionOf = {
  'identity-keys': 'identityKeys',
  session: 'session',
  conversation: 'conversation',
  presence: 'presence',
} as const satisfies Record<ServiceName, keyof ConnectionOptions>;

/** The environment variable that names the target of a service. */
export function targetVariable(service: ServiceName): string {
  return `KEYTRAIL_${service.toUpperCase().replace('-', '_')}_TARGET`;
}

/** The gRPC target of a service, as it was given; undefined when none was. Throws UsageError for what is no target. */
export function targetOf(
  service: ServiceName,
  options: ConnectionOptions,
  environment: Environment,
): string | undefined {
  const fromOption = options[optionOf[service]];
  const target = fromOption || environment[targetVariable(service)] || undefined;
  if (target !== undefined && !parseTarget(target))
    throw new UsageError(
      `${fromOption ? `--${service}` : targetVariable(service)} is not a target: ${target}; ${targetForms}`,
    );
  return target;
}

/** Clients of the services, each connected when it is first asked for. */
export interface Connections {
  /** A client over a service's target, or over one address of it. Throws UsageError without a target or a token. */
  client<S extends DescService>(descriptor: S, service: ServiceName, address?: string): Client<S>;
  close(): void;
}

export function openConnections(options: ConnectionOptions, environment: Environment): Connections {
  const transports = new Map<string, GrpcTransport>();
  let token: string | undefined;
  return {
    client(descriptor, service, address) {
      const target = address ?? targetOf(service, options, environment);
      if (!target)
        throw new UsageError(`no service to ask: give --${service} <host:port> or ${targetVariable(service)}`);
      const saidBy = options[optionOf[service]] ? `--${service}` : targetVariable(service);
      token ??= readToken(options, environment);
      let transport = transports.get(`${service} ${target}`);
      if (!transport) {
        transport = createGrpcTransport({
          target,
          authorization: () => `Bearer ${token}`,
          defaultTimeoutMs: options.timeout,
          peer: service,
          mapError: (error) => noteCallee(error, { service, target, saidBy }),
        });
        transports.set(`${service} ${target}`, transport);
      }
      return createClient(descriptor, transport);
    },
    close() {
      for (const transport of transports.values()) transport.close();
    },
  };
}

/** Where a token may come from, for messages. */
export const tokenSources =
  'KEYTRAIL_OPERATOR_TOKEN, --token-file or KEYTRAIL_OPERATOR_TOKEN_FILE (`make up` writes one)';

/** Never from an argument: those can be read by every process of the machine, and stay in histories. */
function readToken({ tokenFile }: ConnectionOptions, environment: Environment): string {
  const { KEYTRAIL_OPERATOR_TOKEN: inEnvironment, KEYTRAIL_OPERATOR_TOKEN_FILE: fileInEnvironment } = environment;
  const token = tokenFile
    ? readTokenFile('--token-file', tokenFile)
    : inEnvironment || !fileInEnvironment
      ? inEnvironment
      : readTokenFile('KEYTRAIL_OPERATOR_TOKEN_FILE', fileInEnvironment);
  const trimmed = token?.trim() ?? '';
  if (trimmed === '') throw new UsageError(`no token: give ${tokenSources}`);
  if (!/^[\x21-\x7e]+$/.test(trimmed)) throw new UsageError('the token has characters that no token has');
  return trimmed;
}

function readTokenFile(saidBy: string, path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    const { code = 'unknown' } = error as NodeJS.ErrnoException;
    const away = code === 'ENOENT' ? '; is it up? `make up` writes one, `make down` takes it away' : '';
    throw new UsageError(`${saidBy}: the token file ${path} cannot be read: ${code}${away}`);
  }
}

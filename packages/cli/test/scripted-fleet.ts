import type { DescService, MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs, timestampNow } from '@bufbuild/protobuf/wkt';
import { AuthenticationError } from '@keytrail/auth';
import {
  type CheckResultSchema,
  type CheckStatus,
  type DescribeProcessResponseSchema,
  DiagnosticsService,
} from '@keytrail/contracts';
import type { CheckCode, Status } from '@keytrail/diagnosis';
import { type Rpc, serverSettings, startServer, unary } from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, type Telemetry, telemetrySettings } from '@keytrail/telemetry';
import { type ServiceName, targetVariable } from '../src/connection.ts';
import type { Place } from '../src/doctor/finding.ts';
import { run } from '../src/program.ts';

type Result = Omit<MessageInitShape<typeof CheckResultSchema>, 'code' | '$typeName'>;

/** What a process has to say. */
export interface Says {
  /** Of itself, besides what every sound process says. */
  readonly described?: Omit<MessageInitShape<typeof DescribeProcessResponseSchema>, '$typeName'>;
  /** By code; what is not there its build does not have. `silence`: it does not answer. */
  readonly checks?: Partial<Record<CheckCode, CheckStatus | Result | 'silence'>>;
  /** Whether it takes the token; it does by default. */
  readonly takesToken?: boolean;
}

export interface ScriptedProcess {
  readonly service: ServiceName;
  readonly target: string;
  /** The checks that it was asked for, in order. */
  readonly asked: { readonly code: string; readonly subjects: readonly string[] }[];
}

export interface Told {
  readonly ended: number;
  readonly exitCode: number;
  readonly err: string;
  of(code: CheckCode): { readonly status: Status; readonly summary: string; readonly places: readonly Place[] };
}

/**
 * Processes that answer over gRPC as a test has them answer, and the command that asks them: a fleet in states that real services of one build are
 * never in.
 */
export interface ScriptedFleet {
  start(service: ServiceName, says: Says): Promise<ScriptedProcess>;
  /** Asks these processes, each service by all of its own. */
  doctor(
    processes: readonly ScriptedProcess[],
    args: readonly string[],
    environment?: Readonly<Record<string, string>>,
  ): Promise<Told>;
  /** Serves these methods of an operators’ service; returns its target. */
  serve(service: ServiceName, descriptor: DescService, rpcs: readonly Rpc[], takesToken?: boolean): Promise<string>;
  /** The command with a token that is taken. */
  keytrail(args: readonly string[], environment?: Readonly<Record<string, string>>): Promise<Ran>;
  stop(): Promise<void>;
}

export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

const token = 'a.token';
const never = new Promise<never>(() => {});

export function scriptFleet(): ScriptedFleet {
  const telemetry: Telemetry = startTelemetry({
    service: 'session',
    config: readSettings(telemetrySettings, { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_TELEMETRY: 'off' }),
    logTo: { write() {} },
  });
  const stopping: (() => Promise<void>)[] = [];

  async function serve(service: ServiceName, descriptor: DescService, rpcs: readonly Rpc[], takesToken = true) {
    const server = await startServer({
      service,
      services: [descriptor],
      telemetry,
      config: { ...readSettings(serverSettings, {}), drainMs: 100 },
      authenticator: {
        authenticate(authorization) {
          if (!takesToken || authorization !== `Bearer ${token}`)
            throw new AuthenticationError('signature', 'the signature does not verify');
          return { kind: 'operator', subject: 'olga', scopes: new Set() };
        },
      },
      rpcs,
    });
    stopping.push(() => server.stop());
    return `127.0.0.1:${server.grpcPort}`;
  }

  async function keytrail(args: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<Ran> {
    let [out, err] = ['', ''];
    const code = await run(['--timeout', '5s', ...args], {
      environment: { KEYTRAIL_OPERATOR_TOKEN: token, ...environment },
      out(text) {
        out += text;
      },
      say(text) {
        err += text;
      },
    });
    return { code, out, err };
  }

  return {
    serve,
    keytrail,
    async start(service, { described = {}, checks = {}, takesToken }) {
      const asked: ScriptedProcess['asked'] = [];
      const rpcs = [
        unary(DiagnosticsService.method.describeProcess, {
          allow: ['operator'],
          handle: async () => ({
            ready: true,
            now: timestampNow(),
            ...described,
            process: {
              service,
              writerBuild: '1.0.0+now',
              sourcesDigest: 'sources',
              contractDigest: 'contract',
              startedAt: timestampFromMs(1_000),
              ...described.process,
            },
          }),
        }),
        unary(DiagnosticsService.method.runChecks, {
          allow: ['operator'],
          async handle({ codes, subjects }) {
            const [code = ''] = codes;
            asked.push({ code, subjects });
            const says = checks[code as CheckCode];
            if (says === 'silence') return never;
            if (says === undefined) return { results: [] };
            const result = typeof says === 'number' ? { status: says } : says;
            return { results: [{ summary: `${service} says so`, ...result, code }] };
          },
        }),
      ];
      return { service, target: await serve(service, DiagnosticsService, rpcs, takesToken), asked };
    },
    async doctor(processes, args, environment) {
      const targets = [...Map.groupBy(processes, ({ service }) => service)].map(([service, some]) => [
        targetVariable(service),
        `ipv4:${some.map(({ target }) => target).join(',')}`,
      ]);
      const { code, out, err } = await keytrail(['doctor', '-o', 'json', ...args], {
        ...Object.fromEntries(targets),
        ...environment,
      });
      const { exitCode, checks } = out ? JSON.parse(out) : { exitCode: code, checks: [] };
      const of = (wanted: CheckCode) => checks.find((each: { code: string }) => each.code === wanted);
      return { ended: code, exitCode, err, of };
    },
    async stop() {
      await Promise.all(stopping.map((stop) => stop()));
      await telemetry.shutdown();
    },
  };
}

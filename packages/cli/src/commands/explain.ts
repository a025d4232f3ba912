import { toJson } from '@bufbuild/protobuf';
import { ExplainKeyResponseSchema, SessionOperatorService } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import {
  BackendRefused,
  BackendUnreachable,
  dialects,
  MalformedTrace,
  printable,
  TraceNotFound,
} from '@keytrail/traces';
import { type Command, Option } from 'commander';
import { parseDevice, parseDuration, parseTraceId, parseUuid } from '../arguments.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import { explainUser } from '../explain-user.ts';
import { canRead, exitCodeOf, explanationText } from '../explanation-text.ts';
import { describeFailure } from '../failure.ts';
import type { RunCommand, Session } from '../terminal.ts';
import { type AskedKey, askedByTrace, NothingToExplain } from '../trace/asked-by-trace.ts';
import { whatToTry } from '../trace/not-there.ts';
import { openSource, type SourceOptions, type TraceSource } from '../trace/source.ts';

interface ExplainOptions extends SourceOptions {
  readonly conversation?: string;
  readonly session?: string;
  readonly device?: { readonly userId: string; readonly deviceId: string };
  readonly user?: string;
  readonly trace?: string;
  readonly latestMiss?: boolean;
  /** In milliseconds. */
  readonly wait: number;
  /** In milliseconds. */
  readonly within: number;
}

const afterHelp = `
Either --conversation with --user (each device, revoked ones too) or --device, with --session or, without it, for
the current one (with --user: the ten newest); or --trace alone with
the trace id out of a refusal: conversation, session and device are read from the trace, where they stand as pseudonyms that the service resolves.
Of several misses in one trace the first is explained; --conversation and --session choose another.
Ends with 0 when it could be explained, whatever the explanation is; with 4 when a service could not be asked, so that what rests on it is not said,
or when a device or a session could not be looked at, whose line says ?;
with 1 when nothing is known of the user or of the device.`;

export function addExplain(program: Command, run: RunCommand): void {
  program
    .command('explain')
    .description(
      'says why a device can or cannot read a session: findings, most likely cause first, and all that happened',
    )
    .option('--conversation <id>', 'the conversation', parseUuid)
    .option('--session <id>', 'the session; without it that of the current epoch')
    .option('--user <id>', 'the reader, with every device: needs the target of identity-keys, too')
    .option('--device <user/device>', 'the reader', parseDevice)
    .addOption(
      new Option('--within <duration>', 'with --user: after so long no further session is looked at')
        .argParser(parseDuration)
        .default(45_000, '45s'),
    )
    .option('--trace <id>', 'trace id of a refusal, or a traceparent', parseTraceId)
    .option('--latest-miss', 'the newest miss of the local store, in place of --trace')
    .option('--backend <url>', 'with --trace: local store, Grafana Tempo or Jaeger (KEYTRAIL_TRACE_BACKEND)')
    .addOption(new Option('--dialect <name>', 'what the backend speaks; found out when not given').choices(dialects))
    .option('--headers-file <file>', 'file with headers for the backend (or KEYTRAIL_TRACE_HEADERS)')
    .addOption(
      new Option(
        '--wait <duration>',
        'with --trace: longest time that spans are waited for, as they are sent in batches',
      )
        .argParser(parseDuration)
        .default(10_000, '10s'),
    )
    .option('--file <file>', 'with --trace: read it from a file; - for stdin')
    .addHelpText('after', afterHelp)
    .action((options: ExplainOptions) =>
      run((session) =>
        (options.user === undefined ? explain(options, session) : explainDevices(options, session)).catch((error) =>
          endedBy(error, options, session),
        ),
      ),
    );
}

/** The exit code of what kept an explanation away. Throws what is for every command alike. */
function endedBy(error: unknown, options: ExplainOptions, { output }: Session): number {
  if (error instanceof BackendUnreachable) {
    output.say(`keytrail: nothing answered: ${printable(error.message)}`);
    return exitCodes.unreachable;
  }
  if (error instanceof TraceNotFound) {
    output.say(`keytrail: ${whatToTry(error.traceId)}`);
    return exitCodes.refused;
  }
  // They may hold what a backend answered.
  if (error instanceof BackendRefused || error instanceof MalformedTrace || error instanceof NothingToExplain) {
    output.say(`keytrail: ${printable(error.message)}`);
    return exitCodes.refused;
  }
  if (readRefusal(error).reason === 'EXPLANATION_INCOMPLETE') {
    output.say(`keytrail: ${describeFailure(error).text}`);
    if (options.conversation !== undefined && options.session === undefined)
      output.say(
        `with --session <id> the rest is told; keytrail sessions ${options.conversation} lists what session has stored`,
      );
    return exitCodes.incomplete;
  }
  throw error;
}

async function explain(options: ExplainOptions, session: Session): Promise<number> {
  const { output, connections } = session;
  const isTraced = options.trace !== undefined || options.latestMiss === true;
  const { asked, more } = isTraced ? await findInTrace(options, session) : { asked: askedByIds(options), more: 0 };
  const explanation = await connections.client(SessionOperatorService, 'session').explainKey(asked);
  if (output.json)
    output.out(JSON.stringify(toJson(ExplainKeyResponseSchema, explanation, { alwaysEmitImplicit: true })));
  else output.out(explanationText(explanation, asked.sessionId));
  const [first] = explanation.findings;
  output.say(canRead(explanation) ? 'the device can read it' : `the device cannot read it: ${first?.code ?? ''}`);
  if (more > 0)
    output.say(
      `${more} more ${more === 1 ? 'miss' : 'misses'} in this trace, not explained here: --conversation and --session choose one`,
    );
  const exitCode = exitCodeOf([explanation], output);
  const { userId, deviceId } = explanation.device ?? {};
  if (first?.evidence.device_registered !== 'false') return exitCode;
  output.say(
    `keytrail: nothing is known of ${userId}/${deviceId}: is the id right, or was the user erased? keytrail devices ${userId}`,
  );
  return exitCodes.refused;
}

function explainDevices(
  { conversation, session, user = '', within, ...others }: ExplainOptions,
  { connections, output }: Session,
) {
  if (conversation === undefined || others.device !== undefined || others.trace !== undefined || others.latestMiss)
    throw new UsageError('give --user with --conversation, and neither --device nor --trace');
  const asked = { conversationId: conversation, sessionId: session ?? '', userId: user, within };
  return explainUser(asked, connections, output);
}

function askedByIds({ conversation, session, device }: ExplainOptions): AskedKey {
  if (conversation === undefined || device === undefined)
    throw new UsageError('give --conversation with --user or --device, or else --trace or --latest-miss');
  return { conversationId: conversation, sessionId: session ?? '', ...device };
}

async function findInTrace(options: ExplainOptions, { environment, options: global, output }: Session) {
  if (options.trace !== undefined && options.latestMiss)
    throw new UsageError('give --trace or --latest-miss, not both');
  const source = await openSource(options, environment, global.timeout);
  const traceId = options.trace ?? (await latestMiss(source));
  if (options.latestMiss) output.say(printable(`trace ${traceId}`));
  return askedByTrace(traceId, options, source, options.wait, () =>
    output.say(`no span of the trace is there yet: looking for up to ${options.wait / 1_000} s (--wait)`),
  );
}

async function latestMiss(source: TraceSource): Promise<string> {
  const [newest] = await source.list({ limit: 1, misses: true });
  if (newest === undefined) throw new NothingToExplain(`${source.name} has no trace with a miss`);
  return newest.id;
}

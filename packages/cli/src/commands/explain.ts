import { toJson } from '@bufbuild/protobuf';
import {
  type ExplainKeyResponse,
  ExplainKeyResponseSchema,
  IdentityKeysOperatorService,
  SessionOperatorService,
} from '@keytrail/contracts';
import { attr } from '@keytrail/telemetry';
import {
  awaitTrace,
  BackendRefused,
  BackendUnreachable,
  dialects,
  MalformedTrace,
  TraceNotFound,
  type TraceSpan,
} from '@keytrail/traces';
import { type Command, Option } from 'commander';
import { parseDevice, parseDuration, parseTraceId } from '../arguments.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import { explanationsTable, explanationText } from '../explanation-text.ts';
import type { RunCommand, Session } from '../terminal.ts';
import { openSource, type SourceOptions } from '../trace/source.ts';

interface ExplainOptions extends SourceOptions {
  readonly conversation?: string;
  readonly session?: string;
  readonly device?: { readonly userId: string; readonly deviceId: string };
  readonly user?: string;
  readonly trace?: string;
  /** In milliseconds. */
  readonly wait: number;
}

const afterHelp = `
Either --conversation with --user (each device that is not revoked) or --device, with --session or for the current one; or --trace alone with
the trace id out of a refusal: conversation, session and device are read from the trace, where they stand as pseudonyms that the service resolves.
Ends with 0 when it could be explained, whatever the explanation is.`;

export function addExplain(program: Command, run: RunCommand): void {
  program
    .command('explain')
    .description(
      'says why a device can or cannot read a session: findings, most likely cause first, and all that happened',
    )
    .option('--conversation <id>', 'the conversation')
    .option('--session <id>', 'the session; without it that of the current epoch')
    .option('--user <id>', 'the reader, with every device: needs the target of identity-keys, too')
    .option('--device <user/device>', 'the reader', parseDevice)
    .option('--trace <id>', 'trace id of a refusal, or a traceparent', parseTraceId)
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
      run((session) => (options.user === undefined ? explain(options, session) : explainUser(options, session))),
    );
}

async function explain(options: ExplainOptions, session: Session): Promise<number> {
  const { output, connections } = session;
  let asked: Asked;
  try {
    asked = options.trace === undefined ? askedByIds(options) : await askedByTrace(options.trace, options, session);
  } catch (error) {
    if (error instanceof BackendUnreachable) {
      output.say(`keytrail: nothing answered: ${error.message}`);
      return exitCodes.unreachable;
    }
    if (error instanceof BackendRefused || error instanceof MalformedTrace || error instanceof NothingToExplain) {
      output.say(`keytrail: ${error.message}`);
      return exitCodes.refused;
    }
    throw error;
  }
  const explanation = await connections.client(SessionOperatorService, 'session').explainKey(asked);
  if (output.json)
    output.out(JSON.stringify(toJson(ExplainKeyResponseSchema, explanation, { alwaysEmitImplicit: true })));
  else output.out(explanationText(explanation));
  const [first] = explanation.findings;
  output.say(explanation.readable ? 'the device can read it' : `the device cannot read it: ${first?.code ?? ''}`);
  return exitCodes.ok;
}

/** Each device of a user, one line each; then, in full, those that cannot read. */
async function explainUser(options: ExplainOptions, { connections, output }: Session): Promise<number> {
  const { conversation, session, user, device, trace } = options;
  if (conversation === undefined || device !== undefined || trace !== undefined)
    throw new UsageError('give --user with --conversation, and neither --device nor --trace');
  const found = await connections
    .client(IdentityKeysOperatorService, 'identity-keys')
    .findDevices({ userId: user ?? '' });
  const active = found.devices.flatMap((seen) => (seen.revokedAt || !seen.device ? [] : [seen.device]));
  const explanations: ExplainKeyResponse[] = [];
  for (const { userId, deviceId } of active) {
    const asked = { conversationId: conversation, sessionId: session ?? '', userId, deviceId };
    explanations.push(await connections.client(SessionOperatorService, 'session').explainKey(asked));
  }
  const blind = explanations.filter(({ readable }) => !readable);
  if (output.json) {
    const shown = explanations.map((each) => toJson(ExplainKeyResponseSchema, each, { alwaysEmitImplicit: true }));
    output.out(JSON.stringify({ explanations: shown }));
  } else if (explanations.length > 0)
    output.out([explanationsTable(explanations), ...blind.map(explanationText)].join('\n\n'));
  const devices = `${active.length} device${active.length === 1 ? '' : 's'}`;
  output.say(active.length === 0 ? `${user} has no device` : `${blind.length} of ${devices} of ${user} cannot read it`);
  return exitCodes.ok;
}

interface Asked {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userId?: string;
  readonly deviceId?: string;
  readonly userPseudonym?: string;
  readonly devicePseudonym?: string;
}

class NothingToExplain extends Error {}

function askedByIds({ conversation, session, device }: ExplainOptions): Asked {
  if (conversation === undefined || device === undefined)
    throw new UsageError('give --conversation with --user or --device, or else --trace');
  return { conversationId: conversation, sessionId: session ?? '', ...device };
}

/** What is given beside the trace goes before what it says. */
async function askedByTrace(
  traceId: string,
  options: ExplainOptions,
  { environment, options: global }: Session,
): Promise<Asked> {
  const source = await openSource(options, environment, global.timeout);
  const ids = (spans: readonly TraceSpan[]): Asked => ({
    conversationId: options.conversation ?? told(spans, attr.conversationId),
    sessionId: options.session ?? told(spans, attr.sessionId),
    ...(options.device ?? {
      userPseudonym: told(spans, attr.user),
      devicePseudonym: told(spans, attr.device),
    }),
  });
  const { spans } = await awaitTrace(() => source.read(traceId), traceId, {
    timeoutMs: source.grows ? options.wait : 0,
    pollMs: 250,
    until: (tree) => tree.spans.some(isMiss) && missingOf(ids(tree.spans)) === undefined,
  }).catch((error: unknown) => {
    throw error instanceof TraceNotFound
      ? new NothingToExplain(`${source.name} has no span of trace ${traceId}`)
      : error;
  });
  const asked = ids(spans);
  const missing = missingOf(asked);
  if (missing) throw new NothingToExplain(`trace ${traceId} names no ${missing}: give --${missing}`);
  return asked;
}

function missingOf({ conversationId, userId, userPseudonym, devicePseudonym }: Asked): string | undefined {
  if (conversationId === '') return 'conversation';
  return userId || (userPseudonym && devicePseudonym) ? undefined : 'device';
}

const isMiss = ({ attributes }: TraceSpan) => attributes[attr.miss] === true;

/** Of the span that missed, else of the first that says it: later hops are about those who help. */
function told(spans: readonly TraceSpan[], name: string): string {
  const says = (span: TraceSpan) => typeof span.attributes[name] === 'string' && span.attributes[name] !== '';
  const inTime = spans.filter(says).sort((a, b) => a.startMs - b.startMs);
  const span = inTime.find(isMiss) ?? inTime[0];
  return String(span?.attributes[name] ?? '');
}

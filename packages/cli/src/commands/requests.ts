import { create, toJson } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import {
  FindKeyRequestsResponseSchema,
  type KeyRequestState,
  type KeyRequestView,
  KeyRequestViewSchema,
  SessionOperatorService,
} from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc';
import type { Command } from 'commander';
import { parseCount, parseDuration, parseNote, parseStates, parseUuid, stateNames } from '../arguments.ts';
import { requestDetails, requestsTable } from '../rendering.ts';
import type { Output, RunCommand, Session } from '../terminal.ts';

type Operator = Client<typeof SessionOperatorService>;

export function addRequests(program: Command, run: RunCommand): void {
  const operator = ({ connections }: Session) => connections.client(SessionOperatorService, 'session');
  const requests = program
    .command('requests')
    .description('key requests of devices; without a command the list')
    .helpCommand(false);
  requests
    .command('list', { isDefault: true })
    .description('lists key requests, oldest first; without --state those that are open')
    .option(
      '--state <states>',
      `of ${stateNames.join(', ').toLowerCase()}: some, separated by commas, or any`,
      parseStates,
    )
    .option('--conversation <id>', 'of the sessions of one conversation', parseUuid)
    .option('--user <id>', 'of the devices of one user')
    .option('--device <id>', 'of one device of --user')
    .option('--older-than <duration>', 'that were made longer ago, as 90s, 5m, 2h or 1d', parseDuration)
    .option('--limit <count>', 'at most so many', parseCount, 100)
    .allowExcessArguments()
    .action((options: ListOptions, list: Command) => {
      // As the list is the default, a mistyped command comes here.
      const [word] = list.args;
      if (word !== undefined) requests.error(`error: unknown command '${word}'`);
      return run((session) => listRequests(operator(session), options, session.output));
    });
  requests
    .command('show')
    .description('shows one key request with its offers')
    .argument('<id>', 'of the key request', parseUuid)
    .action((id: string) => run((session) => showRequest(operator(session), id, session.output)));
  requests
    .command('nudge')
    .description('has an open key request looked at now')
    .argument('<id>', 'of the key request', parseUuid)
    .action((id: string) => run((session) => nudgeRequest(operator(session), id, session.output)));
  requests
    .command('cancel')
    .description('cancels an open key request; its requester is told, and may ask again')
    .argument('<id>', 'of the key request', parseUuid)
    .requiredOption('--note <text>', 'why, for the audit log', parseNote)
    .action((id: string, options: { note: string }) =>
      run((session) => cancelRequest(operator(session), id, options, session.output)),
    );
  requests
    .command('replay')
    .description('opens a key request anew that ended without a key: all its holders are asked again')
    .argument('<id>', 'of the key request', parseUuid)
    .action((id: string) => run((session) => replayRequest(operator(session), id, session.output)));
}

interface ListOptions {
  readonly state?: KeyRequestState[];
  readonly conversation?: string;
  readonly user?: string;
  readonly device?: string;
  /** In milliseconds. */
  readonly olderThan?: number;
  readonly limit: number;
}

const pageSize = 200;
/** Scripts find a list also where it is empty, and a count of 0. */
const everyField = { alwaysEmitImplicit: true };

async function listRequests(operator: Operator, options: ListOptions, output: Output): Promise<void> {
  const found: KeyRequestView[] = [];
  let token = '';
  do {
    const page = await operator.findKeyRequests({
      states: options.state ?? [],
      conversationId: options.conversation ?? '',
      userId: options.user ?? '',
      deviceId: options.device ?? '',
      olderThanMs: BigInt(options.olderThan ?? 0),
      page: { size: Math.min(pageSize, options.limit - found.length), token },
    });
    found.push(...page.keyRequests);
    token = page.nextToken;
  } while (token !== '' && found.length < options.limit);
  if (output.json) {
    const response = create(FindKeyRequestsResponseSchema, { keyRequests: found, nextToken: token });
    output.out(JSON.stringify(toJson(FindKeyRequestsResponseSchema, response, everyField)));
  } else if (found.length > 0) output.out(requestsTable(found, new Date()));
  const more = token === '' ? '' : ', and there are more (--limit)';
  output.say(`${found.length} key request${found.length === 1 ? '' : 's'}, oldest first${more}`);
}

async function showRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  let traceId = '';
  const onTrailer = (trailer: Headers) => {
    traceId = trailer.get('keytrail-trace-id') ?? '';
  };
  const { keyRequests } = await operator.findKeyRequests({ keyRequestId }, { onTrailer });
  const [view] = keyRequests;
  // An empty list is no refusal: it is told as nudge and the others are told it, with the trace of the call.
  if (!view)
    throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such key request', {
      metadata: { field: 'key_request_id', trace_id: traceId },
    });
  print(view, output);
}

async function nudgeRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  const { keyRequest } = await operator.nudgeKeyRequest({ keyRequestId });
  print(keyRequest, output);
  output.say('it is looked at now');
}

async function cancelRequest(
  operator: Operator,
  keyRequestId: string,
  { note }: { readonly note: string },
  output: Output,
): Promise<void> {
  const { keyRequest } = await operator.endKeyRequest({ keyRequestId, note });
  print(keyRequest, output);
  const because = keyRequest?.keyRequest?.endedBecause ?? '';
  output.say(
    because === 'cancelled_by_operator' ? 'it is cancelled, and its requester is told' : `it had ended: ${because}`,
  );
}

async function replayRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  const { keyRequest } = await operator.replayKeyRequest({ keyRequestId });
  print(keyRequest, output);
  const opened = keyRequest?.keyRequest?.keyRequestId ?? '';
  output.say(opened === keyRequestId ? 'nothing to replay: it is open' : `${opened} is open in its place`);
}

function print(view: KeyRequestView | undefined, output: Output): void {
  if (!view) throw new Error('the service answered without a key request');
  output.out(output.json ? JSON.stringify(toJson(KeyRequestViewSchema, view, everyField)) : requestDetails(view));
}

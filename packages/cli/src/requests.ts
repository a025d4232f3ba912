import { create, toJson } from '@bufbuild/protobuf';
import {
  FindKeyRequestsResponseSchema,
  type KeyRequestState,
  type KeyRequestView,
  KeyRequestViewSchema,
} from '@keytrail/contracts';
import { readRefusal, refuse } from '@keytrail/rpc';
import type { Operator } from './connection.ts';
import { requestDetails, requestsTable } from './rendering.ts';

/** Where a command writes: data goes to `out`, words to `say`. */
export interface Output {
  readonly json: boolean;
  out(text: string): void;
  say(text: string): void;
}

export interface ListOptions {
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

export async function listRequests(operator: Operator, options: ListOptions, output: Output): Promise<void> {
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

export async function showRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  const { keyRequests } = await operator.findKeyRequests({ keyRequestId });
  const [view] = keyRequests;
  if (!view) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such key request');
  print(view, output);
}

export async function nudgeRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  const { keyRequest } = await operator.nudgeKeyRequest({ keyRequestId });
  print(keyRequest, output);
  output.say('it is looked at now');
}

export async function cancelRequest(
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

export async function replayRequest(operator: Operator, keyRequestId: string, output: Output): Promise<void> {
  const { keyRequest } = await operator.replayKeyRequest({ keyRequestId });
  print(keyRequest, output);
  const opened = keyRequest?.keyRequest?.keyRequestId ?? '';
  output.say(opened === keyRequestId ? 'it is open' : `${opened} is open in its place`);
}

function print(view: KeyRequestView | undefined, output: Output): void {
  if (!view) throw new Error('the service answered without a key request');
  output.out(output.json ? JSON.stringify(toJson(KeyRequestViewSchema, view, everyField)) : requestDetails(view));
}

/** A failed call in words, and whether anything answered at all. */
export function describeFailure(error: unknown): { readonly answered: boolean; readonly text: string } {
  const { code, reason, message, metadata, traceId } = readRefusal(error);
  const unavailable = 14;
  const answered = reason !== 'DEADLINE_EXCEEDED' && !(reason === '' && code === unavailable);
  const facts = Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
  const told = `${reason || 'failed'}: ${message}${facts.length > 0 ? ` (${facts.join(', ')})` : ''}`;
  return { answered, text: traceId ? `${told}\ntrace id ${traceId}` : told };
}

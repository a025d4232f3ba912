import { toJson } from '@bufbuild/protobuf';
import {
  ConversationOperatorService,
  type DescribeConversationResponse,
  DescribeConversationResponseSchema,
} from '@keytrail/contracts';
import type { Command } from 'commander';
import { parseCount, parseUuid } from '../arguments.ts';
import { exitCodes } from '../exit-codes.ts';
import { table, time } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface ConversationOptions {
  readonly session?: string;
  readonly user?: string;
  readonly epochs: number;
}

export function addConversation(program: Command, run: RunCommand): void {
  program
    .command('conversation')
    .description('shows a conversation: who was a member from when to when, its epochs, and what is due')
    .argument('<id>', 'of the conversation', parseUuid)
    .option('--session <id>', 'says what became of this session, too')
    .option('--user <id>', 'memberships of one user alone')
    .option('--epochs <count>', 'newest epochs to show, 200 at most', parseCount, 20)
    .addHelpText(
      'after',
      '\nEnds with 4 when epochs of it are gone, with 1 when nothing is known of the session of --session.',
    )
    .action((id: string, options: ConversationOptions) => run((session) => showConversation(id, options, session)));
}

async function showConversation(
  conversationId: string,
  { session = '', user = '', epochs }: ConversationOptions,
  { connections, output }: Session,
): Promise<number> {
  const seen = await connections
    .client(ConversationOperatorService, 'conversation')
    .describeConversation({ conversationId, sessionId: session, userId: user, epochsMax: epochs });
  if (output.json)
    output.out(JSON.stringify(toJson(DescribeConversationResponseSchema, seen, { alwaysEmitImplicit: true })));
  else output.out(conversationText(seen));
  const sessionUnknown = session !== '' && !seen.askedSession;
  if (sessionUnknown) output.say(`--session: nothing is known of the session ${session}`);
  if (seen.type === '') {
    output.say('nobody can see this conversation: no session of it was ever committed');
    return exitCodes.ok;
  }
  if (seen.epochGaps.length === 0 && seen.currentEpoch > 0n && seen.askedSession?.standing !== 'lost')
    return sessionUnknown ? exitCodes.refused : exitCodes.ok;
  output.say(
    `it is not whole: epochs ${seen.epochGaps.join(', ') || 'of it'} are gone, and messages under them cannot be placed`,
  );
  return exitCodes.incomplete;
}

export function conversationText(seen: DescribeConversationResponse): string {
  const facts: [string, string][] = [
    ['conversation', seen.conversationId],
    ['type', seen.type || '-'],
    [
      'epoch',
      seen.currentEpoch > 0n
        ? `${seen.currentEpoch}, session ${seen.currentSessionId}`
        : `NO row; session ${seen.currentSessionId || '-'}`,
    ],
    ['roster version', String(seen.rosterVersion)],
    ['history', seen.historyPolicy || '-'],
    [
      'rotation due',
      seen.rotationDueReason && !seen.closedAt
        ? `${seen.rotationDueReason} ${seen.rotationDueSince ? `since ${time(seen.rotationDueSince)}` : 'since a time that is not known'}, by ${seen.rotationDueWriterBuild || '-'}, trace ${seen.rotationDueTraceId || '-'}`
        : '-',
    ],
    ['messages', String(seen.messages)],
    ['created', `${time(seen.createdAt)} by ${seen.writerBuild || '-'}, trace ${seen.traceId || '-'}`],
    ['closed', time(seen.closedAt)],
  ];
  const { askedSession: asked } = seen;
  if (asked)
    facts.push([
      'asked session',
      `${asked.sessionId}: ${asked.standing}${asked.epoch > 0n ? `, epoch ${asked.epoch}` : ''}, ${time(asked.decidedAt ?? asked.beganAt)}, trace ${asked.traceId || '-'}`,
    ]);
  const members = seen.memberships.map((one) => [
    one.userId,
    one.userPseudonym,
    one.role,
    `${one.joinedEpoch}–${one.leftEpoch > 0n || one.leftAt ? one.leftEpoch : ''}`,
    time(one.joinedAt),
    time(one.leftAt),
    one.traceId || '-',
  ]);
  const epochs = seen.epochs.map((one) => [
    String(one.epoch),
    one.sessionId,
    String(one.rosterVersion),
    time(one.committedAt),
    `${one.initiatorUserId}/${one.initiatorDeviceId}`,
    one.writerBuild,
    one.traceId || '-',
  ]);
  return [
    table(facts),
    table([['MEMBER', 'IN TRACES', 'ROLE', 'EPOCHS', 'JOINED', 'LEFT', 'TRACE'], ...members]) +
      (seen.membershipsMore ? '\n… and more (--user)' : ''),
    table([['EPOCH', 'SESSION', 'ROSTER', 'COMMITTED', 'INITIATOR', 'BUILD', 'TRACE'], ...epochs]) +
      (seen.epochsMore ? '\n… and more (--epochs)' : ''),
  ].join('\n\n');
}

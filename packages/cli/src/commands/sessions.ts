import { create, toJson } from '@bufbuild/protobuf';
import { FindSessionsResponseSchema, SessionOperatorService, type SessionView } from '@keytrail/contracts';
import type { Command } from 'commander';
import { expectSessions, judgeAbsence } from '../absent-sessions.ts';
import { parseCount, parseUuid } from '../arguments.ts';
import { exitCodes } from '../exit-codes.ts';
import { device, table, time } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface SessionsOptions {
  readonly session?: string;
  readonly limit: number;
}

const pageSize = 200;

export function addSessions(program: Command, run: RunCommand): void {
  program
    .command('sessions')
    .description('shows the sessions of a conversation, newest epoch first: what is there of each, never a key')
    .argument('<conversation>', 'its id', parseUuid)
    .option('--session <id>', 'one of them')
    .option('--limit <count>', 'at most so many', parseCount, 100)
    .addHelpText(
      'after',
      `
Ends with 4 when a session is not whole: keys or envelopes of it are missing.
Conversation is asked which there should be, if it has a target: 4 when one of them is not stored, 1 when neither knows any.`,
    )
    .action((conversation: string, options: SessionsOptions) =>
      run((session) => showSessions(conversation, options, session)),
    );
}

async function showSessions(
  conversationId: string,
  { session: sessionId = '', limit }: SessionsOptions,
  session: Session,
): Promise<number> {
  const { connections, output } = session;
  const operator = connections.client(SessionOperatorService, 'session');
  const asked = { conversationId, sessionId };
  const expected = await expectSessions(asked, session);
  const sessions: SessionView[] = [];
  let token = '';
  do {
    const size = Math.min(pageSize, limit - sessions.length);
    const page = await operator.findSessions({ ...asked, page: { size, token } });
    sessions.push(...page.sessions);
    token = page.nextToken;
  } while (token !== '' && sessions.length < limit);
  if (output.json)
    output.out(
      JSON.stringify(
        toJson(FindSessionsResponseSchema, create(FindSessionsResponseSchema, { sessions, nextToken: token }), {
          alwaysEmitImplicit: true,
        }),
      ),
    );
  else if (sessions.length > 0) output.out(sessionsTable(sessions));
  const takenBack = sessions.filter(({ discardedAt }) => discardedAt).length;
  const stored = sessions.length - takenBack;
  const damaged = sessions.filter(({ damages }) => damages.length > 0);
  const more = token === '' ? '' : ', and there are more (--limit)';
  const also = takenBack === 0 ? '' : `; ${takenBack} more ${takenBack === 1 ? 'was' : 'were'} taken back`;
  output.say(`${stored} session${stored === 1 ? '' : 's'}, newest epoch first${also}${more}`);
  if (damaged.length > 0)
    output.say(
      `${damaged.length} of them ${damaged.length === 1 ? 'is' : 'are'} not whole: nobody, or not everybody, can read under them. keytrail explain says who, and what to do`,
    );
  const exitCode = judgeAbsence(asked, { sessions, isMore: token !== '' }, expected, session);
  return damaged.length > 0 ? exitCodes.incomplete : exitCode;
}

export function sessionsTable(sessions: readonly SessionView[]): string {
  const heading = [
    '',
    'EPOCH',
    'SESSION',
    'ENVELOPES',
    'EPHEMERAL',
    'IDENTITY',
    'HEADER',
    'DELIVERED',
    'WITHHELD',
    'OPEN',
    'INITIATOR',
    'CREATED',
    'BUILD',
    'TRACE',
    'DAMAGE',
  ];
  const rows = sessions.map((seen) => {
    if (seen.discardedAt)
      return [
        '',
        '-',
        seen.sessionId,
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        '-',
        `taken back ${time(seen.discardedAt)}`,
      ];
    return [
      seen.damages.length > 0 ? '!' : '',
      String(seen.epoch),
      seen.sessionId,
      `${seen.envelopesPresent}/${seen.envelopesExpected}${seen.envelopesErased > 0 ? ` (${seen.envelopesErased} erased)` : ''}`,
      presence(seen.ephemeralKeyPresent),
      presence(seen.identityKeyPresent),
      presence(seen.headerPresent),
      String(seen.envelopesDelivered),
      String(seen.withheld),
      String(seen.requestsOpen),
      device(seen.initiator),
      time(seen.createdAt),
      seen.writerBuild || '-',
      seen.traceId || '-',
      [...(seen.imported ? ['imported'] : []), ...seen.damages].join('; ') || '-',
    ];
  });
  return table([heading, ...rows]);
}

const presence = (there: boolean) => (there ? 'yes' : 'NO');

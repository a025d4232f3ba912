import { create, toJson } from '@bufbuild/protobuf';
import {
  type DeadLetter,
  DiagnosticsService,
  ListDeadLettersResponseSchema,
  ReplayDeadLetterResponseSchema,
} from '@keytrail/contracts';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { parseCount } from '../arguments.ts';
import { type ServiceName, serviceNames } from '../connection.ts';
import { exitCodes } from '../exit-codes.ts';
import { age, table } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface ListOptions {
  readonly of: ServiceName;
  readonly consumer?: string;
  readonly limit: number;
}

const pageSize = 200;
const everyField = { alwaysEmitImplicit: true };

export function addDeadLetters(program: Command, run: RunCommand): void {
  const ofService = () =>
    new Option('--of <service>', 'whose dead letters').choices(serviceNames).makeOptionMandatory();
  const letters = program
    .command('dead-letters')
    .description('events that a service could not handle and gave up')
    .helpCommand(false);
  letters
    .command('list')
    .description('lists them, oldest first, without what is in them')
    .addOption(ofService())
    .option('--consumer <name>', 'of one consumer')
    .option('--limit <count>', 'at most so many', parseCount, 100)
    .action((options: ListOptions) => run((session) => listLetters(options, session)));
  letters
    .command('replay')
    .description('has its consumer handle one once more; ends with 1 when it could not')
    .argument('<id>', 'its number', parseId)
    .addOption(ofService())
    .action((...given: unknown[]) => run((session) => replayLetter(given, session)));
}

function parseId(text: string): bigint {
  if (!/^[1-9]\d{0,17}$/.test(text)) throw new InvalidArgumentError('must be the number of a dead letter');
  return BigInt(text);
}

async function listLetters({ of, consumer = '', limit }: ListOptions, { connections, output }: Session): Promise<void> {
  const diagnostics = connections.client(DiagnosticsService, of);
  const deadLetters: DeadLetter[] = [];
  let token = '';
  do {
    const size = Math.min(pageSize, limit - deadLetters.length);
    const page = await diagnostics.listDeadLetters({ consumer, page: { size, token } });
    deadLetters.push(...page.deadLetters);
    token = page.nextToken;
  } while (token !== '' && deadLetters.length < limit);
  if (output.json) {
    const response = create(ListDeadLettersResponseSchema, { deadLetters, nextToken: token });
    output.out(JSON.stringify(toJson(ListDeadLettersResponseSchema, response, everyField)));
  } else if (deadLetters.length > 0) output.out(lettersTable(deadLetters, new Date()));
  const more = token === '' ? '' : ', and there are more (--limit)';
  output.say(`${deadLetters.length} dead letter${deadLetters.length === 1 ? '' : 's'} of ${of}, oldest first${more}`);
  if (of === 'presence') output.say('presence has no database and keeps none; its log has “an event is a dead letter”');
}

async function replayLetter(given: readonly unknown[], { connections, output }: Session): Promise<number> {
  const [deadLetterId, { of }] = given as [bigint, { readonly of: ServiceName }];
  const replayed = await connections.client(DiagnosticsService, of).replayDeadLetter({ deadLetterId });
  if (output.json) output.out(JSON.stringify(toJson(ReplayDeadLetterResponseSchema, replayed, everyField)));
  output.say(replayed.handled ? 'it is handled, and gone' : `it could not be handled, and stays: ${replayed.problem}`);
  return replayed.handled ? exitCodes.ok : exitCodes.refused;
}

function lettersTable(letters: readonly DeadLetter[], now: Date): string {
  const heading = ['DEAD LETTER', 'CONSUMER', 'SUBJECT', 'EVENT', 'AGE', 'BYTES', 'TRACE', 'REASON'];
  const rows = letters.map((letter) => [
    String(letter.deadLetterId),
    letter.consumer,
    letter.subject,
    letter.eventId,
    age(letter.givenUpAt, now),
    String(letter.payloadBytes),
    letter.traceId || '-',
    letter.reason,
  ]);
  return table([heading, ...rows]);
}

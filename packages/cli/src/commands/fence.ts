import { create, toJson } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { DiagnosticsService, type GetRestoreFenceResponse, GetRestoreFenceResponseSchema } from '@keytrail/contracts';
import type { Command } from 'commander';
import { parseNote } from '../arguments.ts';
import { targetOf } from '../connection.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import { table } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

/** Those that have a database. */
const services = ['identity-keys', 'session', 'conversation'] as const;
type Service = (typeof services)[number];

const everyField = { alwaysEmitImplicit: true };

export function addFence(program: Command, run: RunCommand): void {
  const fence = program
    .command('fence')
    .description('whether databases went back in time (docs/runbooks/database-restored.md)')
    .helpCommand(false);
  fence
    .command('status')
    .description(
      'looks now, and lists the restores that were noticed; exit code 1 when one is not dealt with or not accepted',
    )
    .action(() => run(showStatus));
  fence
    .command('accept')
    .description('notes that you know of the restores that were dealt with: DATABASE_RESTORED is ok again')
    .requiredOption('--note <text>', 'what happened, kept with the restore', parseNote)
    .action((options: { note: string }) => run((session) => accept(session, options.note)));
}

async function showStatus(session: Session): Promise<number> {
  const { output } = session;
  const asked = await Promise.all(
    asking(session).map(async ({ service, client }) => ({ service, fence: await client.getRestoreFence({}) })),
  );
  if (output.json) {
    const told = asked.map(({ service, fence }) => [
      service,
      toJson(GetRestoreFenceResponseSchema, create(GetRestoreFenceResponseSchema, fence), everyField),
    ]);
    output.out(JSON.stringify(Object.fromEntries(told)));
  } else {
    const heading = ['SERVICE', 'STATE', 'POSITION', 'PLACE', 'OUTSIDE', 'INCARNATION'];
    output.out(table([heading, ...asked.map(({ service, fence }) => fenceRow(service, fence))]));
    for (const { service, fence } of asked)
      for (const { because, noticedAt, handledAt, acceptedAt } of fence.restores) {
        const when = (time: typeof noticedAt) => (time ? timestampDate(time).toISOString() : 'not yet');
        output.out(
          `${service}: ${because}; noticed ${when(noticedAt)}, dealt with ${when(handledAt)}, accepted ${when(acceptedAt)}`,
        );
      }
  }
  const unsettled = asked.some(({ fence }) => !fence.open || fence.restores.some(({ acceptedAt }) => !acceptedAt));
  return unsettled ? exitCodes.refused : exitCodes.ok;
}

async function accept(session: Session, auditNote: string): Promise<void> {
  for (const { service, client } of asking(session)) {
    const { accepted } = await client.acceptRestores({ auditNote });
    if (session.output.json) session.output.out(JSON.stringify({ service, accepted }));
    else session.output.out(`${service}: ${accepted} accepted`);
  }
}

/** The services that a target was given for. */
function asking({ connections, options, environment }: Session) {
  const named = services.filter((service) => targetOf(service, options, environment) !== undefined);
  if (named.length === 0)
    throw new UsageError(`no service to ask: give ${services.map((service) => `--${service} <host:port>`).join(', ')}`);
  return named.map((service) => ({ service, client: connections.client(DiagnosticsService, service) }));
}

function fenceRow(service: Service, { state, position, place, outsideKnown, incarnation }: GetRestoreFenceResponse) {
  return [service, state, String(position), place, outsideKnown ? 'known' : 'away', incarnation];
}

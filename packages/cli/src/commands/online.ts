import { toJson } from '@bufbuild/protobuf';
import {
  type DescribeGatewaysResponse,
  DescribeGatewaysResponseSchema,
  type FindAttachedResponse,
  FindAttachedResponseSchema,
  PresenceOperatorService,
} from '@keytrail/contracts';
import type { Command } from 'commander';
import { parseCount } from '../arguments.ts';
import { exitCodes } from '../exit-codes.ts';
import { device, table, time } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface OnlineOptions {
  readonly limit: number;
}

export function addOnline(program: Command, run: RunCommand): void {
  program
    .command('online [users...]')
    .description('shows who is attached, to which gateway, and which gateways live; all users, or some')
    .option('--limit <count>', 'at most so many devices', parseCount, 1_000)
    .addHelpText(
      'after',
      '\nEnds with 4 when the picture is not whole: entries of gateways that are gone, streams that nobody finds, or no Redis.',
    )
    .action((users: string[], options: OnlineOptions) => run((session) => showOnline(users, options, session)));
}

async function showOnline(
  userIds: readonly string[],
  { limit }: OnlineOptions,
  { connections, output }: Session,
): Promise<number> {
  const operator = connections.client(PresenceOperatorService, 'presence');
  const gateways = await operator.describeGateways({});
  const attached = gateways.storeReachable ? await operator.findAttached({ userIds: [...userIds], limit }) : undefined;
  const { devices = [], more = false } = attached ?? {};
  const found = new Set(devices.map(({ device: of }) => of?.userId));
  // Beyond the limit may be any of them.
  const withoutEntry = attached && !more ? [...new Set(userIds)].filter((userId) => !found.has(userId)) : [];
  if (output.json) {
    const every = { alwaysEmitImplicit: true };
    output.out(
      JSON.stringify({
        ...(attached && { attached: toJson(FindAttachedResponseSchema, attached, every) }),
        gateways: toJson(DescribeGatewaysResponseSchema, gateways, every),
        withoutEntry,
      }),
    );
  } else {
    if (attached && attached.devices.length > 0) output.out(`${devicesTable(attached)}\n`);
    output.out(gatewaysTable(gateways));
  }
  const online = devices.filter((one) => one.online).length;
  if (attached)
    output.say(
      `${online} online of ${devices.length} that have an entry${more ? ', and there are more (--limit)' : ''}`,
    );
  for (const userId of withoutEntry) output.say(`${userId} is offline: no device has an entry`);
  const problems = problemsOf(gateways);
  for (const problem of problems) output.say(problem);
  return problems.length > 0 ? exitCodes.incomplete : exitCodes.ok;
}

export function problemsOf({ gateways, storeReachable }: DescribeGatewaysResponse): string[] {
  if (!storeReachable)
    return ['Redis could not be asked: nobody finds anybody, and only the gateway that answered is told'];
  const ghosts = gateways.filter(({ alive, entries }) => !alive && entries > 0n);
  const lost = gateways.reduce((sum, { streamsWithoutEntry }) => sum + streamsWithoutEntry, 0n);
  return [
    ...(ghosts.length > 0
      ? [
          `entries of ${ghosts.length} gateway${ghosts.length === 1 ? '' : 's'} that ${ghosts.length === 1 ? 'is' : 'are'} gone: their devices are offline until they attach again`,
        ]
      : []),
    ...(lost > 0n
      ? [
          `${lost} stream${lost === 1n ? '' : 's'} of the gateway that answered without an entry: nobody finds ${lost === 1n ? 'its device' : 'their devices'} until it heals`,
        ]
      : []),
  ];
}

function devicesTable({ devices }: FindAttachedResponse): string {
  const heading = ['', 'DEVICE', 'ONLINE', 'ATTACHED', 'GATEWAY', 'CONNECTION', 'USER IN TRACES', 'DEVICE IN TRACES'];
  const rows = devices.map((seen) => [
    seen.online ? '' : '!',
    device(seen.device),
    seen.online ? 'yes' : 'NO',
    time(seen.attachedAt),
    seen.gatewayId,
    seen.connectionId,
    seen.userPseudonym,
    seen.devicePseudonym,
  ]);
  return table([heading, ...rows]);
}

function gatewaysTable({ gateways }: DescribeGatewaysResponse): string {
  const heading = ['', 'GATEWAY', 'ALIVE', 'LEASE LEFT', 'ENTRIES', 'STREAMS', 'WITHOUT ENTRY', 'LAST LOSS'];
  const rows = gateways.map((seen) => [
    (!seen.alive && seen.entries > 0n) || seen.streamsWithoutEntry > 0n ? '!' : '',
    seen.isOwn ? `${seen.gatewayId} (answered)` : seen.gatewayId,
    seen.alive ? 'yes' : 'NO',
    seen.alive ? `${seen.leaseLeftMs}ms` : '-',
    String(seen.entries),
    seen.isOwn ? String(seen.streams) : '-',
    seen.isOwn ? String(seen.streamsWithoutEntry) : '-',
    time(seen.lastLossAt),
  ]);
  return table([heading, ...rows]);
}

import { toJson } from '@bufbuild/protobuf';
import { type FindDevicesResponse, FindDevicesResponseSchema, IdentityKeysOperatorService } from '@keytrail/contracts';
import type { Command } from 'commander';
import { exitCodes, UsageError } from '../exit-codes.ts';
import { table, time } from '../rendering.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface DevicesOptions {
  readonly pseudonym?: string;
}

export function addDevices(program: Command, run: RunCommand): void {
  program
    .command('devices [user]')
    .description('shows all devices that a user ever had, and which of their keys are there, never a key')
    .option('--pseudonym <pseudonym>', 'the user by the pseudonym that traces and logs show')
    .addHelpText(
      'after',
      `
Ends with 4 when keys of an active device, or the root key of its user, are missing, and with 1 when nothing is known of the user.`,
    )
    .action((user: string | undefined, options: DevicesOptions) =>
      run((session) => showDevices(user, options, session)),
    );
}

async function showDevices(
  userId: string | undefined,
  { pseudonym }: DevicesOptions,
  { connections, output }: Session,
): Promise<number> {
  if ((userId === undefined) === (pseudonym === undefined))
    throw new UsageError(
      userId === undefined ? 'whose devices: give a user, or --pseudonym' : 'give a user or --pseudonym, not both',
    );
  const found = await connections
    .client(IdentityKeysOperatorService, 'identity-keys')
    .findDevices({ userId: userId ?? '', userPseudonym: pseudonym ?? '' });
  if (output.json) output.out(JSON.stringify(toJson(FindDevicesResponseSchema, found, { alwaysEmitImplicit: true })));
  else if (found.devices.length > 0) output.out(devicesTable(found));
  const { devices, deviceListVersion, erasedAt } = found;
  const erased = erasedAt ? `, who was erased at ${time(erasedAt)}` : '';
  output.say(
    deviceListVersion === 0n && devices.length === 0
      ? erasedAt
        ? `${found.userId} was erased at ${time(erasedAt)}: nothing else is left`
        : `nothing is known of ${found.userId}`
      : `${devices.length} device${devices.length === 1 ? '' : 's'} of ${found.userId} (${found.userPseudonym} in traces), list version ${deviceListVersion}${erased}`,
  );
  const damaged = devices.filter(({ keysMissing }) => keysMissing.length > 0).length;
  if (deviceListVersion === 0n && devices.length === 0 && !erasedAt) return exitCodes.refused;
  const rootless = deviceListVersion > 0n && !found.rootKeyPresent;
  if (damaged > 0) output.say(`${damaged} of them ${damaged === 1 ? 'lacks' : 'lack'} keys: nobody can seal to them`);
  if (rootless) output.say("the user's root key is missing: nobody can verify these devices");
  return damaged > 0 || rootless ? exitCodes.incomplete : exitCodes.ok;
}

export function devicesTable({ devices }: FindDevicesResponse): string {
  const heading = [
    '',
    'DEVICE',
    'PSEUDONYM',
    'STATE',
    'SINCE',
    'REGISTERED',
    'KEYS',
    'PREKEYS',
    'KEM',
    'CLAIMED',
    'ROTATED',
    'BUILD',
    'TRACE',
  ];
  const rows = devices.map((seen) => [
    seen.keysMissing.length > 0 ? '!' : '',
    seen.device?.deviceId ?? '-',
    seen.devicePseudonym,
    seen.revokedAt ? `revoked ${time(seen.revokedAt)}` : 'active',
    `version ${seen.deviceListVersion}`,
    time(seen.registeredAt),
    seen.keysMissing.length > 0 ? `NO ${seen.keysMissing.join(', ')}` : 'all',
    String(seen.oneTimePrekeys),
    String(seen.oneTimeKemPrekeys),
    String(seen.prekeysClaimed),
    time(seen.signedPrekeyRotatedAt),
    seen.writerBuild || '-',
    seen.traceId || '-',
  ]);
  return table([heading, ...rows]);
}

import { toJson } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type DeviceView,
  type ExplainKeyResponse,
  ExplainKeyResponseSchema,
  type FindDevicesResponse,
  IdentityKeysOperatorService,
  SessionOperatorService,
} from '@keytrail/contracts';
import type { Connections } from './connection.ts';
import { exitCodes } from './exit-codes.ts';
import { exitCodeOf, explanationsTable, explanationText } from './explanation-text.ts';
import type { Output } from './terminal.ts';

interface AskedUser {
  readonly conversationId: string;
  /** Empty for that of the current epoch. */
  readonly sessionId: string;
  readonly userId: string;
}

/** Each device of a user, one line each; then, in full, those that cannot read and are not revoked. */
export async function explainUser(
  { conversationId, sessionId, userId }: AskedUser,
  connections: Connections,
  output: Output,
): Promise<number> {
  const found = await connections.client(IdentityKeysOperatorService, 'identity-keys').findDevices({ userId });
  const explained: { readonly explanation: ExplainKeyResponse; readonly revoked: boolean }[] = [];
  for (const { device: seen, revokedAt } of found.devices) {
    if (!seen) continue;
    const asked = { conversationId, sessionId, userId: seen.userId, deviceId: seen.deviceId };
    const explanation = await connections.client(SessionOperatorService, 'session').explainKey(asked);
    explained.push({ explanation, revoked: revokedAt !== undefined });
  }
  const explanations = explained.map(({ explanation }) => explanation);
  const blind = explained.filter(({ explanation, revoked }) => !explanation.readable && !revoked);
  const known = isKnown(found);
  if (output.json) {
    const shown = explanations.map((each) => toJson(ExplainKeyResponseSchema, each, { alwaysEmitImplicit: true }));
    const erasedAt = found.erasedAt && { erasedAt: timestampDate(found.erasedAt).toISOString() };
    output.out(JSON.stringify({ userId, known, ...erasedAt, explanations: shown }));
  } else if (explanations.length > 0)
    output.out(
      [explanationsTable(explanations), ...blind.map(({ explanation }) => explanationText(explanation))].join('\n\n'),
    );
  output.say(verdictOnUser(userId, found, blind.length));
  return known ? exitCodeOf(explanations, output) : exitCodes.refused;
}

function isKnown({ deviceListVersion, erasedAt, devices }: FindDevicesResponse): boolean {
  return deviceListVersion > 0n || erasedAt !== undefined || devices.length > 0;
}

function verdictOnUser(user: string, found: FindDevicesResponse, blind: number): string {
  if (!isKnown(found))
    return `keytrail: nothing is known of ${user}: no device of such a user was ever registered; is the id right?`;
  const counted = (devices: readonly DeviceView[]) => `${devices.length} device${devices.length === 1 ? '' : 's'}`;
  const revoked = found.devices.filter(({ revokedAt }) => revokedAt !== undefined);
  const active = found.devices.filter(({ revokedAt }) => revokedAt === undefined);
  const also = revoked.length > 0 ? `; ${revoked.length} more revoked` : '';
  if (active.length > 0) return `${blind} of ${counted(active)} of ${user} cannot read it${also}`;
  if (found.erasedAt) return `${user} was erased at ${timestampDate(found.erasedAt).toISOString()}`;
  return `${user} has no device that is not revoked${revoked.length > 0 ? `: ${counted(revoked)} revoked` : ''}`;
}

import { toJson } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type DeviceView,
  type ExplainKeyResponse,
  ExplainKeyResponseSchema,
  type FindDevicesResponse,
  IdentityKeysOperatorService,
} from '@keytrail/contracts';
import type { Connections } from './connection.ts';
import { exitCodes } from './exit-codes.ts';
import { canRead, exitCodeOf, explanationsTable, explanationText, type Looked } from './explanation-text.ts';
import { type AskedSession, lookAtDevices } from './look-at-devices.ts';
import type { Output } from './terminal.ts';

interface AskedUser extends AskedSession {
  readonly userId: string;
  /** In milliseconds: no explanation is begun later. */
  readonly within: number;
}

/**
 * Each device of a user and each of the newest sessions, one line each; then, in full, the newest that each device cannot read, but for revoked
 * ones. What cannot be read is often an older message, and the key of the current epoch says nothing of that. What failed, or came too late, takes
 * nothing from the others.
 */
export async function explainUser(asked: AskedUser, connections: Connections, output: Output): Promise<number> {
  const { conversationId, userId } = asked;
  const until = performance.now() + asked.within;
  const found = await connections.client(IdentityKeysOperatorService, 'identity-keys').findDevices({ userId });
  const { looked, sessions, isMore, isGoneTold } = await lookAtDevices(found.devices, asked, {
    connections,
    output,
    until,
  });
  const explained = looked.filter((each) => each.explanation !== undefined);
  const missing = looked.filter(({ explanation }) => explanation === undefined);
  const explanations = explained.flatMap(({ explanation }) => explanation ?? []);
  const unread = explained.filter(({ explanation, revoked }) => explanation && !canRead(explanation) && !revoked);
  const blind = unread.filter((each, at) => unread.findIndex(({ deviceId }) => deviceId === each.deviceId) === at);
  const known = isKnown(found);
  if (output.json) {
    const shown = explanations.map((each) => toJson(ExplainKeyResponseSchema, each, { alwaysEmitImplicit: true }));
    const erasedAt = found.erasedAt && { erasedAt: timestampDate(found.erasedAt).toISOString() };
    const notLookedAt = missing.map(({ deviceId, session, failure }) => ({
      deviceId,
      sessionId: session.sessionId,
      epoch: String(session.epoch),
      because: failure ? failure.text : 'TIME_IS_UP',
    }));
    output.out(JSON.stringify({ userId, known, ...erasedAt, explanations: shown, notLookedAt }));
  } else if (looked.length > 0)
    output.out(
      [
        explanationsTable(looked),
        ...blind.flatMap(({ explanation, session }) =>
          explanation ? explanationText(explanation, session.sessionId) : [],
        ),
      ].join('\n\n'),
    );
  output.say(verdictOnUser(userId, found, blind.length, sessions));
  if (unread.length > blind.length)
    output.say('told in full is the newest session that each device cannot read; --session <id> tells another one');
  if (isMore)
    output.say(
      `only the ${sessions} newest sessions were looked at: keytrail sessions ${conversationId} lists the others`,
    );
  if (!isGoneTold)
    output.say(
      `which sessions there should be was not found out: one whose rows are gone is not among these. keytrail conversation ${conversationId} lists them`,
    );
  const lost = epochsLost(explanations);
  if (lost !== '')
    output.say(`EPOCH_LOST: conversation has no row of ${lost}: see keytrail conversation ${conversationId}`);
  if (missing.length > 0) output.say(whatIsMissing(missing, looked.length));
  if (!known) return exitCodes.refused;
  const exitCode = exitCodeOf(explanations, output);
  return missing.length > 0 || !isGoneTold ? exitCodes.incomplete : exitCode;
}

function whatIsMissing(missing: readonly Looked[], all: number): string {
  const failed = missing.flatMap(({ failure }) => failure ?? []);
  const late = missing.length - failed.length;
  const [example] = failed;
  const parts = [
    ...(example ? [`${failed.length} failed, as ${example.text.split('\n').join(', ')}`] : []),
    ...(late > 0 ? [`for ${late} there was no time (--within)`] : []),
  ];
  return `${missing.length} of ${all} lines are not known: ${parts.join('; ')}`;
}

function epochsLost(explanations: readonly ExplainKeyResponse[]): string {
  const [lost] = explanations.flatMap(({ findings }) => findings.filter(({ code }) => code === 'EPOCH_LOST'));
  if (!lost) return '';
  const { epochs_without_a_row: epochs = 'unknown' } = lost.evidence;
  return epochs === 'unknown' ? 'an epoch' : `epoch ${epochs}`;
}

function isKnown({ deviceListVersion, erasedAt, devices }: FindDevicesResponse): boolean {
  return deviceListVersion > 0n || erasedAt !== undefined || devices.length > 0;
}

function verdictOnUser(user: string, found: FindDevicesResponse, blind: number, sessions: number): string {
  if (!isKnown(found))
    return `keytrail: nothing is known of ${user}: no device of such a user was ever registered; is the id right?`;
  const counted = (devices: readonly DeviceView[]) => `${devices.length} device${devices.length === 1 ? '' : 's'}`;
  const revoked = found.devices.filter(({ revokedAt }) => revokedAt !== undefined);
  const active = found.devices.filter(({ revokedAt }) => revokedAt === undefined);
  const also = revoked.length > 0 ? `; ${revoked.length} more revoked` : '';
  if (active.length > 0)
    return `${blind} of ${counted(active)} of ${user} cannot read ${sessions > 1 ? `all of the ${sessions} newest sessions` : 'it'}${also}`;
  if (found.erasedAt) return `${user} was erased at ${timestampDate(found.erasedAt).toISOString()}`;
  return `${user} has no device that is not revoked${revoked.length > 0 ? `: ${counted(revoked)} revoked` : ''}`;
}

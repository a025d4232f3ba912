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

/** How many sessions are looked at when none is named. */
const newest = 10;

interface AskedUser {
  readonly conversationId: string;
  /** Empty for that of the current epoch and those before it. */
  readonly sessionId: string;
  readonly userId: string;
}

/**
 * Each device of a user and each of the newest sessions, one line each; then, in full, the newest that each device cannot read, but for revoked
 * ones. What cannot be read is often an older message, and the key of the current epoch says nothing of that.
 */
export async function explainUser(
  { conversationId, sessionId, userId }: AskedUser,
  connections: Connections,
  output: Output,
): Promise<number> {
  const found = await connections.client(IdentityKeysOperatorService, 'identity-keys').findDevices({ userId });
  const client = connections.client(SessionOperatorService, 'session');
  const explained: Explained[] = [];
  let sessions: readonly string[] | undefined;
  let isMore = false;
  for (const { device: seen, revokedAt } of found.devices) {
    if (!seen) continue;
    const { userId: user, deviceId } = seen;
    const ask = async (session: string) => {
      const explanation = await client.explainKey({ conversationId, sessionId: session, userId: user, deviceId });
      explained.push({ explanation, revoked: revokedAt !== undefined });
      return explanation;
    };
    const first = await ask(sessionId);
    if (sessionId !== '') continue;
    if (sessions === undefined) ({ sessions, isMore } = await olderSessions(conversationId, first, connections));
    for (const session of sessions) await ask(session);
  }
  const explanations = explained.map(({ explanation }) => explanation);
  const looked = 1 + (sessions?.length ?? 0);
  const unread = explained.filter(({ explanation, revoked }) => !explanation.readable && !revoked);
  const blind = unread.filter(
    ({ explanation }, at) => unread.findIndex((each) => isSame(each.explanation, explanation)) === at,
  );
  const known = isKnown(found);
  if (output.json) {
    const shown = explanations.map((each) => toJson(ExplainKeyResponseSchema, each, { alwaysEmitImplicit: true }));
    const erasedAt = found.erasedAt && { erasedAt: timestampDate(found.erasedAt).toISOString() };
    output.out(JSON.stringify({ userId, known, ...erasedAt, explanations: shown }));
  } else if (explanations.length > 0)
    output.out(
      [explanationsTable(explanations), ...blind.map(({ explanation }) => explanationText(explanation))].join('\n\n'),
    );
  output.say(verdictOnUser(userId, found, blind.length, looked));
  if (unread.length > blind.length)
    output.say('told in full is the newest session that each device cannot read; --session <id> tells another one');
  if (isMore)
    output.say(
      `only the ${looked} newest sessions were looked at: keytrail sessions ${conversationId} lists the others`,
    );
  return known ? exitCodeOf(explanations, output) : exitCodes.refused;
}

interface Explained {
  readonly explanation: ExplainKeyResponse;
  readonly revoked: boolean;
}

function isSame(one: ExplainKeyResponse, other: ExplainKeyResponse): boolean {
  return one.device?.userId === other.device?.userId && one.device?.deviceId === other.device?.deviceId;
}

/** The newest sessions but the one that `current` explains. */
async function olderSessions(
  conversationId: string,
  current: ExplainKeyResponse,
  connections: Connections,
): Promise<{ sessions: readonly string[]; isMore: boolean }> {
  const { sessions, nextToken } = await connections
    .client(SessionOperatorService, 'session')
    .findSessions({ conversationId, page: { size: newest } });
  const seen = current.session?.sessionId || current.currentSessionId;
  const others = sessions.map((session) => session.sessionId).filter((session) => session !== seen);
  return { sessions: others.slice(0, newest - 1), isMore: nextToken !== '' || others.length >= newest };
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

import type { PresenceService } from '@keytrail/contracts';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Peer } from '@keytrail/rpc';
import { attr, type Logger, SpanKind, withSpan } from '@keytrail/telemetry';
import { announceRotationAsked } from '../announcements.ts';
import type { NamedDevice } from '../domain/completeness.ts';
import { type AskingPolicy, deviceKey, nextAskingStep } from '../domain/rotation-asking.ts';
import type { Parts } from '../parts.ts';
import { findConversation, readRoster } from '../store/conversations.ts';
import { revokedDevicesAmong } from '../store/revoked-devices.ts';
import {
  askDevice,
  claimDueRotations,
  type DueRotation,
  readAsking,
  saveRotationLook,
  stopLooking,
} from '../store/rotations.ts';

const looksAtOnce = 16;
/** How long a claimed look is left to whoever claimed it, and how soon one is taken again when presence could not be asked. */
const claimLeaseMs = 10_000;
const postponedMs = 1_000;

export type AskingParts = Pick<Parts, 'db'> & {
  readonly presence: Pick<Peer<typeof PresenceService>, 'listOnline'>;
  readonly log: Logger;
  readonly policy: AskingPolicy & {
    /** How long who made a rotation due has to make it, before anybody is asked. */
    readonly graceMs: number;
  };
};

/**
 * Asks for every rotation that is due, one device at a time, until its epoch moves. Events only make it sooner: with all of them lost, this alone
 * brings each one to a device. Replicas share the work, as a claimed look is not due for the others.
 */
export function askForRotations(parts: AskingParts, everyMs: number): Rounds {
  return startRounds({
    what: 'asking for rotations',
    everyMs,
    log: parts.log,
    async round() {
      const due = await claimDueRotations(parts.db, looksAtOnce, claimLeaseMs, parts.policy.graceMs);
      const looks = await Promise.allSettled(due.map((rotation) => look(parts, rotation)));
      for (const { status, reason } of looks as readonly PromiseRejectedResult[])
        if (status === 'rejected') parts.log.error({ err: reason }, 'a rotation that is due could not be looked at');
      return due.length === looksAtOnce;
    },
  });
}

function look(parts: AskingParts, due: DueRotation): Promise<void> {
  const { conversationId, epoch } = due;
  const attributes = { [attr.conversationId]: conversationId, [attr.epoch]: Number(epoch) };
  return withSpan('ask for a rotation', { kind: SpanKind.INTERNAL, attributes }, () => takeStep(parts, due));
}

async function takeStep({ db, presence, log, policy }: AskingParts, due: DueRotation): Promise<void> {
  const { conversationId, waits } = due;
  const [current, members, asking] = await Promise.all([
    findConversation(db, conversationId),
    readRoster(db, conversationId),
    readAsking(db, due),
  ]);
  if (current && members.length === 0) return stopLooking(db, due);
  const { now } = asking;
  const userIds = members.map(({ userId }) => userId);
  const candidates = await onlineDevices({ db, presence, log }, userIds);
  const step = candidates && nextAskingStep({ ...asking, candidates, waits }, policy);

  await db.transaction(async (tx) => {
    if (!step) {
      await saveRotationLook(tx, due, { at: new Date(now.getTime() + postponedMs), waits });
      return;
    }
    const at = step.kind === 'leave' ? step.at : step.until;
    // The row is gone once the epoch moved: of a session that is the wrong one by now nobody is told.
    const saved = await saveRotationLook(tx, due, { at, waits: step.kind === 'wait' ? waits + 1 : 0 });
    if (!saved || step.kind !== 'ask' || !current) return;
    await askDevice(tx, conversationId, step.device, now, step.until);
    await announceRotationAsked(tx, current, step.device);
    tx.afterCommit(() =>
      log.info(
        { conversationId, epoch: String(due.epoch), asked: asking.asks.length, online: candidates.length },
        'a device was asked for a rotation',
      ),
    );
  });
}

/** Those of the users' devices that are online and not revoked; undefined when presence could not be asked. */
async function onlineDevices(
  { db, presence, log }: Pick<AskingParts, 'db' | 'presence' | 'log'>,
  userIds: string[],
): Promise<NamedDevice[] | undefined> {
  let online: NamedDevice[];
  try {
    const { devices } = await presence.listOnline({ userIds });
    online = devices.flatMap(({ device }) => (device ? [{ userId: device.userId, deviceId: device.deviceId }] : []));
  } catch (err) {
    log.warn({ err, peer: 'presence' }, 'a peer could not be asked');
    return undefined;
  }
  const revoked = new Set((await revokedDevicesAmong(db, online)).map(deviceKey));
  return online.filter((device) => !revoked.has(deviceKey(device)));
}

import { causeFindings, mayRead } from './cause-findings.ts';
import { damageFindings } from './damage-findings.ts';
import { sameDevice } from './device.ts';
import { type KeyFinding, ranked } from './findings.ts';
import type { DeviceRecord, KeyFacts } from './key-facts.ts';
import { recoveryFindings } from './recovery-findings.ts';

/**
 * Everything that is so, what explains the miss first. Total: never empty, each code at most once, nothing that a peer would have had to say when it
 * could not be asked. READABLE stands alone at the top where the device can read.
 */
export function explainKey(facts: KeyFacts): KeyFinding[] {
  const found = [
    ...damageFindings(facts, mayRead(facts)),
    ...causeFindings(facts),
    ...recoveryFindings(facts),
    ...worthKnowing(facts),
  ];
  const isRead = facts.readable && !found.some(({ explainsMiss }) => explainsMiss);
  return ranked(isRead ? [...found, readable(facts)] : found);
}

function readable({ envelopes, session }: KeyFacts): KeyFinding {
  const newest = envelopes.at(-1);
  return {
    code: 'READABLE',
    summary: newest?.openedAt
      ? 'The key is there, and the device has opened it.'
      : 'The key is there. The device has not said that it opened it.',
    evidence: {
      attempt: String(newest?.attempt ?? 0),
      ...(newest && { sealed_by: `${newest.sealer.userId}/${newest.sealer.deviceId}` }),
      ...(newest && { written_at: newest.writtenAt.toISOString() }),
      opened_at: newest?.openedAt?.toISOString() ?? 'not told',
      ...(session && { writer_build: session.writerBuild }),
    },
    remedy: newest?.openedAt
      ? 'Nothing on the server. A message that stays closed is one of another session, or the client lost its key: it reads the session again.'
      : 'Nothing on the server: GetInitialSession answers with the key. Has the client asked since, and of this session?',
    explainsMiss: false,
  };
}

function worthKnowing(facts: KeyFacts): KeyFinding[] {
  return [incompleteDevices(facts), exhaustedPrekeys(facts), mixedFleet(facts), rotationDue(facts)].filter(
    (finding) => finding !== undefined,
  );
}

function incompleteDevices({ devices, reader }: KeyFacts): KeyFinding | undefined {
  if (!devices.known) return undefined;
  const incomplete = devices.value.filter(({ keysMissing }) => keysMissing.length > 0);
  if (incomplete.length === 0) return undefined;
  const role = (device: DeviceRecord) => (sameDevice(device, reader) ? 'reader' : 'initiator');
  return {
    code: 'DEVICE_INCOMPLETE',
    summary: `Of the full key set of ${incomplete.map(role).join(' and ')} keys are missing.`,
    evidence: Object.fromEntries(
      incomplete.map((device) => [
        role(device),
        `${device.userId}/${device.deviceId} lacks ${device.keysMissing.join(', ')}`,
      ]),
    ),
    remedy:
      'Nobody can seal to such a device: have it registered anew. The database refuses such rows: since when is the constraint gone (keytrail doctor --only IDENTITY_KEYS,CONSTRAINTS)?',
    explainsMiss: false,
  };
}

function exhaustedPrekeys({ devices, reader }: KeyFacts): KeyFinding | undefined {
  const device = devices.known ? devices.value.find((each) => sameDevice(each, reader)) : undefined;
  if (device === undefined || device.revokedAt !== undefined) return undefined;
  if (device.oneTimePrekeys > 0 && device.oneTimeKemPrekeys > 0) return undefined;
  return {
    code: 'PREKEYS_EXHAUSTED',
    summary: 'The device has no one-time prekeys left: it is sealed to with its last-resort key.',
    evidence: {
      one_time_prekeys: String(device.oneTimePrekeys),
      one_time_kem_prekeys: String(device.oneTimeKemPrekeys),
    },
    remedy:
      'It refills when it attaches. When it does attach and stays at 0, look at what its uploads are refused with.',
    explainsMiss: false,
  };
}

/** A build that wrote before another one and after it ran beside it, or came back. */
function mixedFleet({ writers, runningBuild }: KeyFacts): KeyFinding | undefined {
  const mixed = writers.filter((one) =>
    writers.some((other) => other !== one && one.firstAt <= other.lastAt && other.firstAt <= one.lastAt),
  );
  if (mixed.length === 0) return undefined;
  return {
    code: 'FLEET_MIXED',
    summary: `Sessions of this conversation were written by ${mixed.length} builds by turns: the fleet was mixed, or rolled back.`,
    evidence: {
      builds: mixed.map(({ build }) => build).join(', '),
      running_build: runningBuild,
      first_at: new Date(Math.min(...mixed.map(({ firstAt }) => firstAt.getTime()))).toISOString(),
      last_at: new Date(Math.max(...mixed.map(({ lastAt }) => lastAt.getTime()))).toISOString(),
    },
    remedy: 'See which processes run which build, and bring them to one: keytrail doctor --only FLEET_MIXED.',
    explainsMiss: false,
  };
}

function rotationDue({ conversation }: KeyFacts): KeyFinding | undefined {
  const record = conversation.known ? conversation.value : undefined;
  if (!record || record.rotationDueReason === '') return undefined;
  return {
    code: 'ROTATION_DUE',
    summary: `The conversation is due for a rotation: ${record.rotationDueReason}.`,
    evidence: {
      because: record.rotationDueReason,
      ...(record.rotationDueSince && { since: record.rotationDueSince.toISOString() }),
      current_epoch: String(record.currentEpoch),
    },
    remedy:
      'A member that is online makes it. When it stays due: is any of them online, and does it run an application with autoRotate?',
    explainsMiss: false,
  };
}

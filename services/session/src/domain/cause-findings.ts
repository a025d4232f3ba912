import { MissCause, missCauseName } from '@keytrail/contracts';
import { rowsAreGone } from './damage-findings.ts';
import { sameDevice } from './device.ts';
import type { Explanation } from './explain-miss.ts';
import type { FindingCode, KeyFinding } from './findings.ts';
import type { KeyFacts } from './key-facts.ts';

type CauseCode = Extract<FindingCode, keyof typeof MissCause>;

/** In the words of an operator: what is so, and what to do. */
const words: Readonly<Record<Exclude<CauseCode, 'UNSPECIFIED'>, readonly [summary: string, remedy: string]>> = {
  NOT_FOUND_OR_NOT_PERMITTED: [
    'The device is told what every stranger is told.',
    'Nothing, unless the user should be a member: then have an admin add the user.',
  ],
  SESSION_UNKNOWN: [
    'The conversation has no such session, or it is not stored.',
    'Have the client read the conversation anew: it asks for a session that is none of its epochs.',
  ],
  NOT_A_MEMBER_AT_EPOCH: [
    'The user was not a member at the epoch of this session.',
    'Nothing: the user has no right to this key. As a member again, the user gets the keys of epochs to come.',
  ],
  HISTORY_NOT_SHARED: [
    'The user joined after the epoch of this session, and the conversation does not share its history.',
    'Nothing: that is the policy of the conversation. Messages after the next rotation can be read.',
  ],
  DEVICE_UNKNOWN: [
    'The device has not been registered.',
    'Is its id right (keytrail devices <user>)? Then have the client register the device.',
  ],
  DEVICE_REVOKED: ['The device has been revoked.', 'Nothing for this device: its user registers a new one.'],
  KEY_WITHHELD: [
    'The initiator withheld the key from this device.',
    'Look at the reason: a device that is not certified, or not trusted, must be approved by its user. Then the device requests the key.',
  ],
  DEVICE_ADDED_AFTER_SESSION: [
    'The device was registered after the session was made, so nobody sealed it the key.',
    'The device requests the key, and a device that has it seals it again. See below what became of that.',
  ],
  ENVELOPE_MISSING: [
    'The session is there, the device was in its roster, and its envelope is not there.',
    'The device requests the key, and a device that has it seals it again. Then find out who took the envelope away.',
  ],
  INITIATOR_EPHEMERAL_MISSING: [
    'The row of the session had no ephemeral key of its initiator when it was read.',
    'The device requests the key, and a device that has it seals it again.',
  ],
  INITIATOR_IDENTITY_MISSING: [
    'The row of the session had no identity key of its initiator when it was read.',
    'The device requests the key, and a device that has it seals it again.',
  ],
};

/** The causes with which no damage of rows matters: the reader has no right to the key. */
const withoutRight: ReadonlySet<MissCause> = new Set([
  MissCause.NOT_FOUND_OR_NOT_PERMITTED,
  MissCause.NOT_A_MEMBER_AT_EPOCH,
  MissCause.HISTORY_NOT_SHARED,
  MissCause.DEVICE_UNKNOWN,
  MissCause.DEVICE_REVOKED,
]);

export function mayRead({ miss }: Pick<KeyFacts, 'miss'>): boolean {
  return miss === undefined || miss.kind === 'incomplete' || !withoutRight.has(miss.cause);
}

/** What GetInitialSession says, and what it says only to operators: who is unknown, and what became of a session that is none. */
export function causeFindings(facts: KeyFacts): KeyFinding[] {
  const { miss } = facts;
  if (miss === undefined) return [];
  if (miss.kind === 'incomplete')
    return [
      {
        code: 'EXPLANATION_INCOMPLETE',
        summary: `Whether this is all cannot be said: ${miss.peer} could not be asked.`,
        evidence: { peer: miss.peer },
        remedy: `See to it that ${miss.peer} answers (keytrail doctor --only SERVICES_REACHABLE), then ask again.`,
        explainsMiss: false,
      },
      ...decidedCause(facts),
    ];
  const behind = behindTheCause(facts, miss.cause);
  const isBehind =
    behind.some(({ explainsMiss }) => explainsMiss) || (miss.cause === MissCause.SESSION_UNKNOWN && rowsAreGone(facts));
  const told = toldCause(facts, miss.cause, { ...miss.evidence, recovery: recoveryName(miss.recovery) });
  if (!told) return behind;
  return [...behind, isBehind ? asTold(told) : told];
}

/** The cause that stands whatever the silent peer would have said. */
function decidedCause(facts: KeyFacts): KeyFinding[] {
  if (!facts.decided) return [];
  const { cause, evidence } = facts.decided;
  const told = toldCause(facts, cause, { ...evidence, recovery: 'unknown' });
  return told ? [told] : [];
}

/** What clients are told, where the reason of it stands by itself. */
function asTold(told: KeyFinding): KeyFinding {
  return {
    ...told,
    summary: `${told.code} is what the device is told: why, stands above.`,
    remedy: 'Nothing besides.',
    explainsMiss: false,
  };
}

function toldCause(
  { session }: KeyFacts,
  cause: MissCause,
  evidence: Readonly<Record<string, string>>,
): KeyFinding | undefined {
  const code = missCauseName(cause);
  const [summary, remedy] = words[code];
  // The row itself says so, with who wrote it.
  if (cause === MissCause.INITIATOR_EPHEMERAL_MISSING && session?.hasEphemeralKey === false) return undefined;
  if (cause === MissCause.INITIATOR_IDENTITY_MISSING && session?.hasIdentityKey === false) return undefined;
  const { conversation_id: _conversation, session_id: _session, ...told } = evidence;
  return { code, summary, evidence: told, remedy, explainsMiss: true };
}

function recoveryName(recovery: Explanation['recovery']): string {
  return (
    ['UNSPECIFIED', 'REQUESTABLE', 'PENDING_NO_HOLDER_ONLINE', 'PENDING_OFFERED', 'NO_HOLDER_EXISTS', 'NOT_PERMITTED'][
      recovery
    ] ?? ''
  );
}

function behindTheCause(facts: KeyFacts, cause: MissCause): KeyFinding[] {
  if (!facts.conversation.known) return [];
  if (cause !== MissCause.SESSION_UNKNOWN && cause !== MissCause.NOT_FOUND_OR_NOT_PERMITTED) return [];
  const record = facts.conversation.value;
  const standing = record?.standing?.standing;
  const found: KeyFinding[] = [];
  if (standing === 'aborted' || (facts.discardedAt && standing !== 'committed' && standing !== 'lost'))
    found.push({
      code: 'CANDIDATE_NEVER_WON',
      summary:
        'This session was a candidate that never became an epoch: another one won, or its creation was given up. No message was ever sealed under it.',
      evidence: {
        ...(record?.standing?.decidedAt && { decided_at: record.standing.decidedAt.toISOString() }),
        ...(facts.discardedAt && { discarded_at: facts.discardedAt.toISOString() }),
        current_session_id: record?.currentSessionId || 'none',
      },
      remedy: 'Have the client read the conversation anew: it holds on to a session that was given up.',
      explainsMiss: !facts.readable,
    });
  else if (standing === 'candidate')
    found.push({
      code: 'CANDIDATE_UNDECIDED',
      summary: 'This session is a candidate: it has not been committed as an epoch, and has not been given up.',
      evidence: {
        ...(record?.standing?.beganAt && { began_at: record.standing.beganAt.toISOString() }),
        begun_by: record?.standing?.writerBuild || 'unknown',
      },
      remedy:
        'Wait: its creation goes on, or the reconciler gives it up. When it stays, keytrail doctor --only CANDIDATES.',
      explainsMiss: !facts.readable,
    });
  if (cause !== MissCause.NOT_FOUND_OR_NOT_PERMITTED) return found;
  if (record === undefined || record.type === '')
    found.push({
      code: 'CONVERSATION_UNKNOWN',
      summary: 'There is no such conversation.',
      evidence: { conversation_id: facts.conversationId, session_rows: facts.session ? '1' : '0' },
      remedy: facts.session
        ? 'There is a session of it: its creation was never committed, or rows of conversation are gone (keytrail doctor --only CONVERSATION_SESSIONS).'
        : 'Check the id: is it of this deployment?',
      explainsMiss: true,
    });
  else if (record.memberships.length === 0) {
    const isNowhere = facts.devices.known && !facts.devices.value.some((device) => sameDevice(device, facts.reader));
    found.push({
      code: 'NEVER_A_MEMBER',
      summary: isNowhere
        ? 'The user never was a member of the conversation, and has no such device.'
        : 'The user never was a member of the conversation.',
      evidence: {
        user_id: facts.reader.userId,
        current_epoch: String(record.currentEpoch),
        ...(facts.devices.known && { device_registered: String(!isNowhere) }),
      },
      remedy: isNowhere
        ? 'Are the ids right (keytrail devices <user>)? Of a user who was erased nothing is left, either.'
        : 'Nothing, unless the user should be one: then have an admin of the conversation add the user.',
      explainsMiss: true,
    });
  }
  return found;
}

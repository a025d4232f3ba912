import { MissCause } from '@keytrail/contracts';
import type { KeyFinding } from './findings.ts';
import type { KeyFacts, SessionRowFacts } from './key-facts.ts';
import { missingEnvelopes } from './session-damage.ts';

/** Since which a session says what its writer knew. */
const writerSchemaSince = '20261125020000_writer_schema';

/** What the rows themselves say that cannot be as it was meant. `mayRead`: nothing speaks against the reader's right to the key. */
export function damageFindings(facts: KeyFacts, mayRead: boolean): KeyFinding[] {
  const { session } = facts;
  const explains = mayRead && !facts.readable;
  const found: (KeyFinding | undefined)[] = [lostEpoch(facts, explains), conversationWithoutSession(facts, explains)];
  if (session) {
    const written = writtenBy(session);
    found.push(
      oldBuild(facts, session, explains),
      session.hasEphemeralKey
        ? undefined
        : {
            code: 'INITIATOR_EPHEMERAL_MISSING',
            summary: `The row of the session has no ephemeral key of its initiator: what was sealed with it cannot be opened by anybody.`,
            evidence: { column: 'sessions.initiator_ephemeral_key', imported: String(session.imported), ...written },
            remedy: `The device requests the key: the initiator, or another that has it, seals it again with keys of its own. Where none is left (NO_HOLDER_EXISTS), rotate: messages to come get a key. ${whoWroteIt(session)}`,
            explainsMiss: explains,
          },
      session.hasIdentityKey
        ? undefined
        : {
            code: 'INITIATOR_IDENTITY_MISSING',
            summary: `The row of the session has no identity key of its initiator: what was sealed with it cannot be opened by anybody.`,
            evidence: { column: 'sessions.initiator_identity_key', imported: String(session.imported), ...written },
            remedy: `The device requests the key: the initiator, or another that has it, seals it again with keys of its own. Where none is left (NO_HOLDER_EXISTS), rotate: messages to come get a key. ${whoWroteIt(session)}`,
            explainsMiss: explains,
          },
      session.hasHeader || session.imported
        ? undefined
        : {
            code: 'SESSION_DAMAGED',
            summary: 'The row of the session has no signed header: no device will believe it.',
            evidence: { column: 'sessions.header', ...written },
            remedy: `Rotate the conversation. ${whoWroteIt(session)}`,
            explainsMiss: explains,
          },
      fewerEnvelopes(facts, session, explains),
    );
  }
  return found.filter((finding) => finding !== undefined);
}

/** Whether conversation has the session as an epoch, and there is no row of it. */
export function rowsAreGone({ conversation, session, sessionId }: KeyFacts): boolean {
  if (session || !conversation.known || conversation.value === undefined) return false;
  const { standing, epochs } = conversation.value;
  return standing?.standing === 'committed' || epochs.some((epoch) => epoch.sessionId === sessionId);
}

function conversationWithoutSession(facts: KeyFacts, explains: boolean): KeyFinding | undefined {
  const record = facts.conversation.known ? facts.conversation.value : undefined;
  if (!record || !rowsAreGone(facts)) return undefined;
  const { standing, epochs } = record;
  const committed = epochs.find(({ sessionId }) => sessionId === facts.sessionId);
  const discarded = facts.discardedAt && { discarded_at: facts.discardedAt.toISOString() };
  return {
    code: 'CONVERSATION_WITHOUT_SESSION',
    summary:
      'The conversation has this session as one of its epochs, and there are no rows of it: its keys are gone for everybody.',
    evidence: {
      epoch: String(committed?.epoch ?? 0n),
      ...(committed?.committedAt && { committed_at: committed.committedAt.toISOString() }),
      committed_by: committed?.writerBuild || standing?.writerBuild || 'unknown',
      committed_in_trace: committed?.traceId || standing?.traceId || 'unknown',
      session_rows: '0',
      ...discarded,
    },
    remedy:
      'Rotate the conversation: messages to come get a key. Find out who deleted the rows, or whether the database of session was restored: keytrail doctor.',
    explainsMiss: explains,
  };
}

function lostEpoch(facts: KeyFacts, explains: boolean): KeyFinding | undefined {
  const record = facts.conversation.known ? facts.conversation.value : undefined;
  if (!record || record.type === '') return undefined;
  const lost = record.standing?.standing === 'lost';
  if (!lost && record.epochGaps.length === 0 && record.currentEpoch > 0n) return undefined;
  return {
    code: 'EPOCH_LOST',
    summary: lost
      ? 'The session was committed, and the epoch that it was committed as has no row any more.'
      : 'The conversation has epochs without a row.',
    evidence: {
      current_epoch: String(record.currentEpoch),
      epochs_without_a_row: record.epochGaps.join(', ') || 'unknown',
    },
    remedy:
      'Rows of conversation were deleted by hand, or its database was restored: keytrail doctor. A rotation gives messages to come a key.',
    explainsMiss: explains && lost,
  };
}

function oldBuild(facts: KeyFacts, session: SessionRowFacts, explains: boolean): KeyFinding | undefined {
  if (session.imported) return undefined;
  const databaseThen = facts.migrations.filter(({ appliedAt }) => appliedAt <= session.createdAt).at(-1)?.name;
  if (databaseThen === undefined || databaseThen < writerSchemaSince) return undefined;
  if (session.writerSchema !== undefined && session.writerSchema >= databaseThen) return undefined;
  const lacksForAll = [
    ...(session.hasEphemeralKey ? [] : ['ephemeral key']),
    ...(session.hasIdentityKey ? [] : ['identity key']),
    ...(session.hasHeader ? [] : ['header']),
  ];
  const lacksEnvelopes = missingEnvelopes(session) > 0;
  const lacks = [...lacksForAll, ...(lacksEnvelopes ? ['envelopes'] : [])];
  const matters = lacksForAll.length > 0 || (lacksEnvelopes && ownEnvelope(facts) === 'missing');
  return {
    code: 'WRITTEN_BY_OLD_BUILD',
    summary: `The session was written by ${session.writerBuild}, a build that is older than its database was then${
      lacks.length > 0 ? `; it left out: ${lacks.join(', ')}` : ''
    }.`,
    evidence: {
      ...writtenBy(session),
      writer_knew: session.writerSchema ?? `none since ${writerSchemaSince}`,
      database_had: databaseThen,
      running_build: facts.runningBuild,
      ...(lacks.length > 0 && { left_out: lacks.join(', ') }),
    },
    remedy: `Find the process of session that runs ${session.writerBuild} and replace it: keytrail doctor --only FLEET_MIXED. Then rotate the conversations that it wrote in.`,
    explainsMiss: explains && matters,
  };
}

function fewerEnvelopes(facts: KeyFacts, session: SessionRowFacts, explains: boolean): KeyFinding | undefined {
  const missing = missingEnvelopes(session);
  if (missing === 0) return undefined;
  const own = ownEnvelope(facts);
  return {
    code: 'ENVELOPES_FEWER_THAN_EXPECTED',
    summary: `The session was stored with ${session.envelopesExpected} envelopes, and ${missing} of them are not there.`,
    evidence: {
      envelopes_expected: String(session.envelopesExpected),
      envelopes_present: String(session.envelopesPresent),
      envelopes_erased: String(session.envelopesErased),
      envelope_of_this_device: own,
      ...writtenBy(session),
    },
    remedy:
      'Any other holder can seal the key again: have the device request it. Find out who deleted rows: the database refuses that unless a trigger is gone (keytrail doctor --only CONSTRAINTS).',
    explainsMiss: explains && own === 'missing',
  };
}

/** The causes with which nobody ever sealed to the device in the first write. */
const neverSealed: ReadonlySet<MissCause> = new Set([
  MissCause.KEY_WITHHELD,
  MissCause.DEVICE_ADDED_AFTER_SESSION,
  MissCause.NOT_A_MEMBER_AT_EPOCH,
  MissCause.HISTORY_NOT_SHARED,
  MissCause.DEVICE_UNKNOWN,
]);

/** Envelopes of others that are gone say nothing about a device that should not have had one. */
function ownEnvelope({ envelopes, miss }: KeyFacts): 'present' | 'missing' | 'not expected' | 'unknown' {
  if (envelopes.length > 0) return 'present';
  if (miss?.kind !== 'miss') return 'unknown';
  if (miss.cause === MissCause.ENVELOPE_MISSING) return 'missing';
  return neverSealed.has(miss.cause) ? 'not expected' : 'unknown';
}

function writtenBy({ writerBuild, createdAt, traceId }: SessionRowFacts): Record<string, string> {
  return {
    writer_build: writerBuild,
    written_at: createdAt.toISOString(),
    ...(traceId && { written_in_trace: traceId }),
  };
}

function whoWroteIt({ imported }: SessionRowFacts): string {
  return imported
    ? 'The row was imported like this.'
    : 'The database refuses such rows: find out since when its constraint is gone (keytrail doctor --only CONSTRAINTS).';
}

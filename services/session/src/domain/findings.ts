import { helpUrl, type MissCauseName } from '@keytrail/contracts';

/**
 * What explain can find. Among findings that explain the miss, and among those that do not, the earlier stands first: damage before what follows
 * from it, a cause before what keeps its cure away. Each has a page: docs/findings/<code>.md, and causes of misses their page of docs/reasons.
 */
export const findingCatalogue = [
  'READABLE',
  // Rows that are not as they were written, or were written wrongly.
  'CONVERSATION_WITHOUT_SESSION',
  'EPOCH_LOST',
  'WRITTEN_BY_OLD_BUILD',
  'INITIATOR_EPHEMERAL_MISSING',
  'INITIATOR_IDENTITY_MISSING',
  'SESSION_DAMAGED',
  'ENVELOPES_FEWER_THAN_EXPECTED',
  // No such session, or no right to it.
  'CANDIDATE_NEVER_WON',
  'CANDIDATE_UNDECIDED',
  'CONVERSATION_UNKNOWN',
  'NEVER_A_MEMBER',
  'NOT_FOUND_OR_NOT_PERMITTED',
  'SESSION_UNKNOWN',
  'NOT_A_MEMBER_AT_EPOCH',
  'HISTORY_NOT_SHARED',
  'DEVICE_UNKNOWN',
  'DEVICE_REVOKED',
  // A key that has to come yet, and what keeps it.
  'PRESENCE_LOST',
  'KEY_REJECTED',
  'KEY_WITHHELD',
  'DEVICE_ADDED_AFTER_SESSION',
  'ENVELOPE_MISSING',
  'EXPLANATION_INCOMPLETE',
  'NO_HOLDER_EXISTS',
  'HOLDERS_DECLINE',
  'REQUEST_EXPIRED',
  'REQUEST_GIVEN_UP',
  'NEVER_REQUESTED',
  'NO_HOLDER_ONLINE',
  'HOLDERS_SILENT',
  'REQUEST_OFFERED',
  'REQUEST_WAITING',
  // What is worth knowing besides.
  'DEVICE_INCOMPLETE',
  'PREKEYS_EXHAUSTED',
  'FLEET_MIXED',
  'ROTATION_DUE',
] as const;

export type FindingCode = (typeof findingCatalogue)[number];

/** One thing that is so. */
export interface KeyFinding {
  readonly code: FindingCode;
  /** One line. */
  readonly summary: string;
  /** Never a key. */
  readonly evidence: Readonly<Record<string, string>>;
  /** What an operator does. */
  readonly remedy: string;
  /** It alone keeps the device from reading. */
  readonly explainsMiss: boolean;
}

type ReasonsPage = Extract<FindingCode, MissCauseName> | 'EXPLANATION_INCOMPLETE';

const inReasons: ReadonlySet<FindingCode> = new Set<ReasonsPage>([
  'INITIATOR_EPHEMERAL_MISSING',
  'INITIATOR_IDENTITY_MISSING',
  'NOT_FOUND_OR_NOT_PERMITTED',
  'SESSION_UNKNOWN',
  'NOT_A_MEMBER_AT_EPOCH',
  'HISTORY_NOT_SHARED',
  'DEVICE_UNKNOWN',
  'DEVICE_REVOKED',
  'KEY_WITHHELD',
  'DEVICE_ADDED_AFTER_SESSION',
  'ENVELOPE_MISSING',
  'EXPLANATION_INCOMPLETE',
]);

/** Below the root of the documentation. */
export function findingPage(code: FindingCode): string {
  if (inReasons.has(code)) return helpUrl(code as ReasonsPage);
  return `docs/findings/${code.toLowerCase().replaceAll('_', '-')}.md`;
}

const rank: ReadonlyMap<FindingCode, number> = new Map(findingCatalogue.map((code, place) => [code, place]));

/** What explains the miss first, then in the order of the catalogue. */
export function ranked(findings: readonly KeyFinding[]): KeyFinding[] {
  const place = ({ code, explainsMiss }: KeyFinding) =>
    (rank.get(code) ?? 0) + (explainsMiss || code === 'READABLE' ? 0 : findingCatalogue.length);
  return [...findings].sort((a, b) => place(a) - place(b));
}

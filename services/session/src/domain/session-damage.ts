/** What is there of a session, as counted in its rows. */
export interface SessionParts {
  readonly epoch: bigint;
  readonly headerPresent: boolean;
  readonly identityKeyPresent: boolean;
  readonly signingKeyPresent: boolean;
  readonly ephemeralKeyPresent: boolean;
  readonly commitmentPresent: boolean;
  readonly envelopesExpected: number;
  readonly envelopesPresent: number;
  readonly envelopesErased: number;
  readonly withholdingsExpected: number;
  readonly withholdingsPresent: number;
  readonly withholdingsErased: number;
}

/** Envelopes of the first write that are neither there nor erased with their users. */
export function missingEnvelopes({
  envelopesExpected,
  envelopesPresent,
  envelopesErased,
}: Pick<SessionParts, 'envelopesExpected' | 'envelopesPresent' | 'envelopesErased'>): number {
  return Math.max(0, envelopesExpected - envelopesPresent - envelopesErased);
}

/** What is missing of a session, in words; nothing of a whole one. Rows that were imported may lack keys, and nobody can open what they stand for. */
export function damagesOf(parts: SessionParts): string[] {
  const missing = missingEnvelopes(parts);
  const withholdings = parts.withholdingsExpected - parts.withholdingsPresent - parts.withholdingsErased;
  const found: readonly (readonly [boolean, string])[] = [
    [!parts.ephemeralKeyPresent, 'ephemeral key missing'],
    [!parts.identityKeyPresent, 'identity key of the initiator missing'],
    [!parts.signingKeyPresent, 'signing key of the initiator missing'],
    [!parts.headerPresent, 'header missing'],
    [!parts.commitmentPresent, 'key commitment missing'],
    [missing > 0, `${missing} of ${parts.envelopesExpected} envelopes missing`],
    [withholdings > 0, `${withholdings} of ${parts.withholdingsExpected} withholdings missing`],
    [parts.epoch === 0n, 'epoch missing'],
  ];
  return found.flatMap(([damaged, words]) => (damaged ? [words] : []));
}

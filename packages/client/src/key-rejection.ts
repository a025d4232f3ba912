import { KeyRejectionReason } from '@keytrail/contracts';
import type { EnvelopeProblem } from '@keytrail/crypto';

/** What is told of an envelope that is wrong. One whose prekey is gone is not: it is asked for again. */
export function rejectionReason(problem: EnvelopeProblem): KeyRejectionReason {
  switch (problem) {
    case 'commitment':
      return KeyRejectionReason.COMMITMENT;
    case 'certificate':
    case 'sealer':
      return KeyRejectionReason.CERTIFICATE;
    case 'signature':
    case 'malformed':
    case 'recipient':
      return KeyRejectionReason.SIGNATURE;
    case 'prekey-unknown':
    case 'low-order':
    case 'decrypt':
      return KeyRejectionReason.CANNOT_OPEN;
  }
}

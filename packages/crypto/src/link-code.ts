import { type Primitives, type ScryptCost, suite } from './primitives.ts';
import type { LinkRequest } from './root-key.ts';
import { transcript } from './transcript.ts';

/** 64 MiB, and about half a second of JavaScript. */
export const linkCodeCost: ScryptCost = { N: 2 ** 16, r: 8, p: 1 };

/** Everything of a link request: whoever changes any of it gets another code. */
export function linkRequestTranscript(request: LinkRequest): Uint8Array {
  const { userId, deviceId, identityKey, signingKey, kemPrekey, linkSecret } = request;
  const { keyId, publicKey, signature } = kemPrekey;
  return transcript(
    'keytrail/v1/link-request',
    suite,
    userId,
    deviceId,
    identityKey,
    signingKey,
    keyId,
    publicKey,
    signature,
    linkSecret,
  );
}

/** Names user and device, so that a table of requests by their codes serves against one of them only. */
export function linkCodeSalt({ userId, deviceId }: Pick<LinkRequest, 'userId' | 'deviceId'>): Uint8Array {
  return transcript('keytrail/v1/link-code', userId, deviceId);
}

/**
 * The code that a new device shows beside its link request, and that the approving device computes from the request as it came: 12 digits in 3
 * groups. Gives way to the event loop while it works.
 */
export async function linkCode(primitives: Primitives, request: LinkRequest): Promise<string> {
  const hash = await primitives.scrypt(linkRequestTranscript(request), linkCodeSalt(request), linkCodeCost, 8);
  const digits = String(new DataView(hash.buffer, hash.byteOffset, 8).getBigUint64(0) % 10n ** 12n).padStart(12, '0');
  return digits.replace(/^(\d{4})(\d{4})(\d{4})$/, '$1 $2 $3');
}

/** Whether what somebody read or typed is this code, whatever stands between the digits. */
export function sameLinkCode(code: string, typed: string): boolean {
  const digits = (text: string) => text.replaceAll(/[\s.-]/g, '');
  return /^\d{12}$/.test(digits(typed)) && digits(code) === digits(typed);
}

import { createRemoteJWKSet, errors, type JWTPayload, jwtVerify } from 'jose';
import { AuthenticationError, type DeviceCaller, KeySetUnavailableError, type OperatorCaller } from './caller.ts';
import type { AuthConfig } from './config.ts';

export const operatorScope = 'keytrail:operator';

/** The patterns of keytrail.common.v1.DeviceRef. */
const userPattern = /^[A-Za-z0-9._:@-]{1,128}$/;
const devicePattern = /^[A-Za-z0-9._:@-]{1,64}$/;

export interface VerifiedToken {
  readonly caller: DeviceCaller | OperatorCaller;
  /** In ms since the epoch. */
  readonly expiresAt: number;
}

/** Verifies bearer tokens: EdDSA or ES256 by the issuer's JWKS, `iss`, `aud`, `exp`, then the claims `sub`, `device` and `scope`. */
export function createTokenVerifier(
  config: Pick<AuthConfig, 'jwksUrl' | 'tokenIssuer' | 'tokenAudience' | 'jwksCooldownMs'>,
): (token: string) => Promise<VerifiedToken> {
  const keys = createRemoteJWKSet(new URL(config.jwksUrl), { cooldownDuration: config.jwksCooldownMs });
  const options = {
    algorithms: ['EdDSA', 'ES256'],
    issuer: config.tokenIssuer,
    audience: config.tokenAudience,
    requiredClaims: ['exp', 'sub'],
  };
  return async (token) => {
    let payload: JWTPayload;
    try {
      ({ payload } = await jwtVerify(token, keys, options));
    } catch (error) {
      throw explain(error);
    }
    const expiresAt = (payload.exp as number) * 1000;
    return { caller: callerOf(payload, expiresAt), expiresAt };
  };
}

function callerOf(payload: JWTPayload, expiresAtMs: number): DeviceCaller | OperatorCaller {
  const { sub, device, scope } = payload;
  const scopes: ReadonlySet<string> = new Set(typeof scope === 'string' ? scope.split(' ').filter(Boolean) : []);
  if (typeof sub !== 'string' || !userPattern.test(sub)) throw badClaim('sub');
  if (scopes.has(operatorScope)) return { kind: 'operator', subject: sub, scopes };
  if (typeof device !== 'string' || !devicePattern.test(device)) throw badClaim('device');
  return { kind: 'device', userId: sub, deviceId: device, expiresAtMs, scopes };
}

function badClaim(claim: string): AuthenticationError {
  return new AuthenticationError('claims', `the claim ${claim} is missing or malformed`);
}

function explain(error: unknown): Error {
  const refused = (problem: AuthenticationError['problem'], message: string) =>
    new AuthenticationError(problem, message, { cause: error });
  if (error instanceof errors.JWTExpired) return refused('expired', 'the token has expired');
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.claim === 'iss') return refused('issuer', 'the token is of another issuer');
    if (error.claim === 'aud') return refused('audience', 'the token is for another audience');
    return refused('claims', `the claim ${error.claim} is missing or not valid`);
  }
  if (error instanceof errors.JOSEAlgNotAllowed || error instanceof errors.JOSENotSupported)
    return refused('algorithm', 'tokens are signed with EdDSA or ES256');
  if (error instanceof errors.JWSSignatureVerificationFailed || error instanceof errors.JWKSNoMatchingKey)
    return refused('signature', "the signature does not verify under the issuer's keys");
  if (error instanceof errors.JWKSMultipleMatchingKeys)
    return refused('signature', 'the token does not name the key that signed it');
  if (error instanceof errors.JWSInvalid || error instanceof errors.JWTInvalid)
    return refused('malformed', 'the token is not a signed JWT');
  return new KeySetUnavailableError({ cause: error });
}

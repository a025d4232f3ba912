import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import { AuthenticationError, type Caller, type Wire } from './caller.ts';
import type { AuthConfig } from './config.ts';
import { createServiceVerifier, serviceScheme } from './service-identity.ts';
import { createTokenVerifier, type VerifiedToken } from './token-verifier.ts';

const bearerScheme = 'Bearer ';
const longestToken = 8192;

export interface Authenticator {
  /**
   * Tells who calls. Answers at once for a token that was verified before and has not expired.
   * Throws (or rejects with) AuthenticationError, or KeySetUnavailableError when the issuer's keys cannot be had.
   */
  authenticate(authorization: string | undefined, wire: Wire): Caller | Promise<Caller>;
}

export function createAuthenticator(
  config: Pick<
    AuthConfig,
    'jwksUrl' | 'tokenIssuer' | 'tokenAudience' | 'serviceCredential' | 'tokenCacheSize' | 'jwksCooldownMs'
  >,
): Authenticator {
  const verify = createTokenVerifier(config);
  const verifyService = createServiceVerifier(config.serviceCredential);
  const verified = new LRUCache<string, VerifiedToken>({ max: Math.max(1, config.tokenCacheSize) });

  async function verifyAndRemember(token: string, key: string): Promise<Caller> {
    const result = await verify(token);
    verified.set(key, result);
    return result.caller;
  }

  return {
    authenticate(authorization, wire) {
      if (authorization === undefined || authorization === '')
        throw new AuthenticationError('missing', 'the call carries no bearer token');
      if (hasScheme(authorization, bearerScheme)) {
        const token = authorization.slice(bearerScheme.length).trim();
        if (token.length > longestToken) throw new AuthenticationError('malformed', 'the token is too long');
        // Tokens themselves are not kept in memory longer than a call.
        const key = hash('sha256', token, 'base64');
        const known = verified.get(key);
        if (known !== undefined) {
          if (known.expiresAt > Date.now()) return known.caller;
          verified.delete(key);
          throw new AuthenticationError('expired', 'the token has expired');
        }
        return verifyAndRemember(token, key);
      }
      if (hasScheme(authorization, serviceScheme)) {
        if (wire === 'web')
          throw new AuthenticationError('credential', 'service credentials are not accepted on this port');
        return verifyService(authorization);
      }
      throw new AuthenticationError('malformed', 'authorization is neither a bearer token nor a service credential');
    },
  };
}

function hasScheme(authorization: string, scheme: string): boolean {
  return (
    authorization.startsWith(scheme) || authorization.slice(0, scheme.length).toLowerCase() === scheme.toLowerCase()
  );
}

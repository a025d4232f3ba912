import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type CryptoKey, exportJWK, exportSPKI, generateKeyPair, SignJWT } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  AuthenticationError,
  type AuthenticationProblem,
  type Authenticator,
  createAuthenticator,
  createServiceIdentity,
  KeySetUnavailableError,
} from '../src/index.ts';
import { type Issuer, startIssuer } from '../src/issuer.ts';

const serviceCredential = 'a-credential-of-at-least-32-characters';
let issuer: Issuer;

beforeAll(async () => {
  issuer = await startIssuer({ environment: 'development' });
});
afterAll(() => issuer.stop());

function authenticatorFor(from: { jwksUrl: string; issuer: string; audience: string }): Authenticator {
  return createAuthenticator({
    jwksUrl: from.jwksUrl,
    tokenIssuer: from.issuer,
    tokenAudience: from.audience,
    serviceCredential,
    tokenCacheSize: 100,
    jwksCooldownMs: 0,
  });
}

async function problemOf(work: () => unknown): Promise<AuthenticationProblem> {
  try {
    await work();
  } catch (error) {
    if (error instanceof AuthenticationError) return error.problem;
    throw error;
  }
  throw new Error('was let in');
}

describe('a bearer token', () => {
  test('names the device of a user', async () => {
    const token = await issuer.token({ userId: 'alice', deviceId: 'phone', scopes: ['a', 'b'] });
    const { exp } = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString());
    expect(await authenticatorFor(issuer).authenticate(`Bearer ${token}`, 'grpc')).toEqual({
      kind: 'device',
      userId: 'alice',
      deviceId: 'phone',
      expiresAtMs: exp * 1000,
      scopes: new Set(['a', 'b']),
    });
  });

  test('with the operator scope names an operator', async () => {
    const token = await issuer.token({ userId: 'olga', deviceId: 'desk', scopes: ['keytrail:operator'] });
    expect(await authenticatorFor(issuer).authenticate(`bearer ${token}`, 'web')).toMatchObject({
      kind: 'operator',
      subject: 'olga',
    });
  });

  test('that was verified before is known at once, and until it expires', async () => {
    const authenticator = authenticatorFor(issuer);
    const token = await issuer.token({ userId: 'alice', deviceId: 'phone' });
    const first = authenticator.authenticate(`Bearer ${token}`, 'grpc');
    expect(first).toBeInstanceOf(Promise);
    const caller = await first;
    expect(authenticator.authenticate(`Bearer ${token}`, 'grpc')).toBe(caller);
    const now = Date.now;
    try {
      Date.now = () => now() + 2 * 3600 * 1000;
      expect(await problemOf(() => authenticator.authenticate(`Bearer ${token}`, 'grpc'))).toBe('expired');
    } finally {
      Date.now = now;
    }
  });

  test('of a key that is new to the key set is accepted after one more fetch', async () => {
    const rotating = await startIssuer({ environment: 'development' });
    try {
      const authenticator = authenticatorFor(rotating);
      const old = await rotating.token({ userId: 'alice', deviceId: 'phone' });
      await authenticator.authenticate(`Bearer ${old}`, 'grpc');
      await rotating.rotateKey();
      const fresh = await rotating.token({ userId: 'alice', deviceId: 'laptop' });
      expect(await authenticator.authenticate(`Bearer ${fresh}`, 'grpc')).toMatchObject({ deviceId: 'laptop' });
    } finally {
      await rotating.stop();
    }
  });

  test('cannot be judged when the key set cannot be had', async () => {
    const gone = await startIssuer({ environment: 'development' });
    const token = await gone.token({ userId: 'alice', deviceId: 'phone' });
    await gone.stop();
    await expect(async () => authenticatorFor(gone).authenticate(`Bearer ${token}`, 'grpc')).rejects.toBeInstanceOf(
      KeySetUnavailableError,
    );
  });
});

describe('a token is refused', () => {
  const iss = 'https://issuer.example';
  const aud = 'keytrail';
  let keys: { ed: CryptoKey; es: CryptoKey; edPublicPem: string };
  let authenticator: Authenticator;
  let stop: () => void;

  beforeAll(async () => {
    const ed = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const es = await generateKeyPair('ES256', { extractable: true });
    const set = {
      keys: [
        { ...(await exportJWK(ed.publicKey)), kid: 'ed' },
        { ...(await exportJWK(es.publicKey)), kid: 'es' },
      ],
    };
    const server = createServer((_request, response) => response.end(JSON.stringify(set)));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    stop = () => server.close();
    const jwksUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks`;
    keys = { ed: ed.privateKey, es: es.privateKey, edPublicPem: await exportSPKI(ed.publicKey) };
    authenticator = authenticatorFor({ jwksUrl, issuer: iss, audience: aud });
  });
  afterAll(() => stop());

  function claims(changes: Record<string, unknown> = {}): SignJWT {
    const now = Math.floor(Date.now() / 1000);
    return new SignJWT({ sub: 'alice', device: 'phone', iss, aud, exp: now + 60, ...changes });
  }
  const signed = (changes?: Record<string, unknown>) =>
    claims(changes).setProtectedHeader({ alg: 'EdDSA', kid: 'ed' }).sign(keys.ed);
  const problem = async (token: string) => problemOf(() => authenticator.authenticate(`Bearer ${token}`, 'web'));

  test('not when ES256 or EdDSA signed it', async () => {
    const es = await claims().setProtectedHeader({ alg: 'ES256', kid: 'es' }).sign(keys.es);
    expect(await authenticator.authenticate(`Bearer ${es}`, 'web')).toMatchObject({ userId: 'alice' });
    expect(await authenticator.authenticate(`Bearer ${await signed()}`, 'web')).toMatchObject({ userId: 'alice' });
  });

  test('without a signature (alg none)', async () => {
    const [, payload] = (await signed()).split('.');
    const header = Buffer.from(JSON.stringify({ alg: 'none' })).toString('base64url');
    expect(await problem(`${header}.${payload}.`)).toBe('algorithm');
  });

  test('signed by HMAC with the public key as its secret', async () => {
    const forged = await claims()
      .setProtectedHeader({ alg: 'HS256', kid: 'ed' })
      .sign(new TextEncoder().encode(keys.edPublicPem));
    expect(await problem(forged)).toBe('algorithm');
  });

  test('signed by a stranger, under a known or an unknown key id', async () => {
    const stranger = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
    for (const kid of ['ed', 'other'])
      expect(await problem(await claims().setProtectedHeader({ alg: 'EdDSA', kid }).sign(stranger.privateKey))).toBe(
        'signature',
      );
  });

  test.each<[string, Record<string, unknown>, AuthenticationProblem]>([
    ['that has expired', { exp: 1 }, 'expired'],
    ['that never expires', { exp: undefined }, 'claims'],
    ['that is not valid yet', { nbf: Math.floor(Date.now() / 1000) + 600 }, 'claims'],
    ['of another issuer', { iss: 'https://other.example' }, 'issuer'],
    ['for another audience', { aud: 'other' }, 'audience'],
    ['without a device', { device: undefined }, 'claims'],
    ['with a malformed device', { device: 'a b' }, 'claims'],
    ['whose device is no text', { device: 7 }, 'claims'],
    ['without a user', { sub: undefined }, 'claims'],
    ['with a malformed user', { sub: 'a/b' }, 'claims'],
    ['with a user that is too long', { sub: 'a'.repeat(129) }, 'claims'],
  ])('%s', async (_what, changes, expected) => {
    expect(await problem(await signed(changes))).toBe(expected);
  });

  test('that is none, or absent, or too long', async () => {
    expect(await problem('not-a-token')).toBe('malformed');
    expect(await problem('a.b.c')).toBe('malformed');
    expect(await problem('a'.repeat(9000))).toBe('malformed');
    expect(await problemOf(() => authenticator.authenticate('Basic YTpi', 'web'))).toBe('malformed');
    expect(await problemOf(() => authenticator.authenticate(undefined, 'web'))).toBe('missing');
  });
});

describe('a service', () => {
  test('is known by its identity on the gRPC wire, and refused on the web wire', async () => {
    const authenticator = authenticatorFor(issuer);
    const header = createServiceIdentity({ serviceCredential }, 'conversation').header();
    expect(authenticator.authenticate(header, 'grpc')).toEqual({ kind: 'service', service: 'conversation' });
    expect(await problemOf(() => authenticator.authenticate(header, 'web'))).toBe('credential');
  });

  test('is refused with another credential, an unknown name, or when none is configured', async () => {
    const authenticator = authenticatorFor(issuer);
    const wrong = createServiceIdentity({ serviceCredential: `${serviceCredential}x` }, 'session').header();
    expect(await problemOf(() => authenticator.authenticate(wrong, 'grpc'))).toBe('credential');
    const stranger = `Keytrail-Service stranger ${serviceCredential}`;
    expect(await problemOf(() => authenticator.authenticate(stranger, 'grpc'))).toBe('credential');
    expect(await problemOf(() => authenticator.authenticate('Keytrail-Service session', 'grpc'))).toBe('credential');
    const without = createAuthenticator({
      jwksUrl: issuer.jwksUrl,
      tokenIssuer: issuer.issuer,
      tokenAudience: issuer.audience,
      serviceCredential: undefined,
      tokenCacheSize: 1,
      jwksCooldownMs: 0,
    });
    expect(await problemOf(() => without.authenticate('Keytrail-Service session ', 'grpc'))).toBe('credential');
  });
});

describe('the development issuer', () => {
  test.each(['production', '', 'test'])('refuses to run in the environment "%s"', async (environment) => {
    await expect(startIssuer({ environment })).rejects.toThrow('KEYTRAIL_ENVIRONMENT=development');
  });

  test('gives tokens over HTTP, and says what a bad request lacks', async () => {
    const ask = (body: string) => fetch(`${issuer.url}/token`, { method: 'POST', body });
    const { token } = (await (await ask('{"user":"bob","device":"tab"}')).json()) as { token: string };
    expect(await authenticatorFor(issuer).authenticate(`Bearer ${token}`, 'grpc')).toMatchObject({ userId: 'bob' });
    for (const body of ['{"user":"bob"}', 'nonsense']) expect((await ask(body)).status).toBe(400);
  });
});

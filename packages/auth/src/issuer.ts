import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';

export interface IssuerOptions {
  readonly environment: string;
  /** 0 for any free port. */
  readonly port?: number;
  readonly host?: string;
  /** Claim `iss`; by default the url of the issuer. */
  readonly issuer?: string;
  readonly audience?: string;
}

export interface TokenRequest {
  readonly userId: string;
  readonly deviceId: string;
  readonly scopes?: readonly string[];
  /** By default 3600. */
  readonly ttlSeconds?: number;
}

export interface Issuer {
  readonly url: string;
  readonly jwksUrl: string;
  readonly issuer: string;
  readonly audience: string;
  token(request: TokenRequest): Promise<string>;
  /** Signs with a new key from now on; tokens of the old one stay valid. */
  rotateKey(): Promise<void>;
  stop(): Promise<void>;
}

/**
 * A token issuer for development: EdDSA, keys in memory. `POST /token` with `{"user", "device", "scope"?, "ttlSeconds"?}` answers
 * `{"token"}` to anybody, which is why it refuses to run outside development. Keys are at `/.well-known/jwks.json`.
 */
export async function startIssuer(options: IssuerOptions): Promise<Issuer> {
  if (options.environment !== 'development')
    throw new Error(
      'the development issuer gives tokens to anybody: it runs only with KEYTRAIL_ENVIRONMENT=development',
    );
  const host = options.host ?? '127.0.0.1';
  const audience = options.audience ?? 'keytrail';
  const keys = [await createKey()];

  const server = createServer((request, response) => {
    respond(request, response).catch((error: unknown) => {
      if (!response.headersSent)
        sendJson(response, 400, { error: error instanceof Error ? error.message : 'bad request' });
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port ?? 0, host, resolve);
  });
  const url = `http://${host}:${(server.address() as AddressInfo).port}`;
  const issuer = options.issuer ?? url;

  async function token({ userId, deviceId, scopes = [], ttlSeconds = 3600 }: TokenRequest): Promise<string> {
    const key = keys[keys.length - 1] as SigningKey;
    const claims = { device: deviceId, ...(scopes.length > 0 ? { scope: scopes.join(' ') } : {}) };
    return await new SignJWT(claims)
      .setProtectedHeader({ alg: 'EdDSA', kid: key.kid, typ: 'JWT' })
      .setSubject(userId)
      .setIssuer(issuer)
      .setAudience(audience)
      .setIssuedAt()
      .setExpirationTime(Math.floor(Date.now() / 1000) + ttlSeconds)
      .sign(key.privateKey);
  }

  async function respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.setHeader('access-control-allow-origin', '*');
    response.setHeader('access-control-allow-headers', 'content-type');
    if (request.method === 'OPTIONS') {
      response.writeHead(204).end();
    } else if (request.method === 'GET' && request.url === '/.well-known/jwks.json') {
      sendJson(response, 200, { keys: keys.map((key) => key.jwk) });
    } else if (request.method === 'POST' && request.url === '/token') {
      const asked = JSON.parse(await readText(request)) as Record<string, unknown>;
      if (typeof asked.user !== 'string' || typeof asked.device !== 'string')
        throw new Error('give user and device, both texts');
      sendJson(response, 200, {
        token: await token({
          userId: asked.user,
          deviceId: asked.device,
          ...(typeof asked.scope === 'string' ? { scopes: asked.scope.split(' ') } : {}),
          ...(typeof asked.ttlSeconds === 'number' ? { ttlSeconds: asked.ttlSeconds } : {}),
        }),
      });
    } else {
      sendJson(response, 404, { error: 'there is POST /token and GET /.well-known/jwks.json' });
    }
  }

  return {
    url,
    jwksUrl: `${url}/.well-known/jwks.json`,
    issuer,
    audience,
    token,
    rotateKey: async () => {
      keys.push(await createKey());
    },
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

type SigningKey = Awaited<ReturnType<typeof createKey>>;

async function createKey() {
  const { publicKey, privateKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
  const kid = crypto.randomUUID();
  return { kid, privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg: 'EdDSA', use: 'sig' } };
}

async function readText(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request.setEncoding('utf8')) {
    text += chunk;
    if (text.length > 16_384) throw new Error('the request is too long');
  }
  return text;
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

import { Metadata, Server, ServerCredentials } from '@grpc/grpc-js';
import { createServiceIdentity } from '@keytrail/auth';
import { PresenceService } from '@keytrail/contracts';
import { contractDigest } from '@keytrail/contracts/digest';
import { DatabaseUnfit } from '@keytrail/telemetry';
import { afterEach, expect, test } from 'vitest';
import { connectPeer, peerBuildsSeen, readRefusal } from '../src/index.ts';
import { clientsOf, startTestService } from './test-service.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function startClients(gate?: { closed: Error | undefined }) {
  const service = await startTestService(gate ? { gate } : {});
  closers.push(() => service.stop());
  const { wires, close } = clientsOf(service, 'Bearer alice');
  closers.push(close);
  return { service, wires };
}

test('while the database does not fit the build, every wire refuses calls with the reason and what is missing, and answers again afterwards', async () => {
  const metadata = { unknown: '20990101000000_later', floor: '20990101000000_later' };
  const gate: { closed: Error | undefined } = { closed: new DatabaseUnfit('BUILD_BEHIND', 'too old', metadata) };
  const { service, wires } = await startClients(gate);
  for (const { wire, client } of wires) {
    const refused = await client.listOnline({ userIds: ['bob'] }).then(
      () => new Error('was answered'),
      (error: unknown) => error,
    );
    const { reason, metadata: told, retryAfterMs, message } = readRefusal(refused);
    expect({ wire, reason, told, retryAfterMs, message }).toEqual({
      wire,
      reason: 'BUILD_BEHIND',
      told: metadata,
      retryAfterMs: 1000,
      message: 'too old',
    });
  }
  expect(service.calls).toEqual([]);
  expect((await fetch(`http://127.0.0.1:${service.server.webPort}/healthz`)).status).toBe(200);
  gate.closed = undefined;
  for (const { client } of wires) await client.listOnline({ userIds: ['bob'] });
  expect(service.calls).toHaveLength(wires.length);
});

test('every answer and every refusal names the build and its contracts, on both wires', async () => {
  const { wires } = await startClients();
  for (const { wire, client } of wires) {
    const seen: Record<string, string | null> = {};
    const note = (headers: Headers) => {
      for (const name of ['keytrail-build', 'keytrail-contract']) if (headers.has(name)) seen[name] = headers.get(name);
    };
    await client.listOnline({ userIds: ['bob'] }, { onHeader: note, onTrailer: note });
    const refused = await client.listOnline({ userIds: ['conflict'] }).catch((error: { metadata: Headers }) => error);
    const same = {
      'keytrail-build': expect.stringMatching(/^\d+\.\d+\.\d+\+[0-9a-f]{12}$/),
      'keytrail-contract': contractDigest(),
    };
    expect({ wire, ...seen }).toEqual({ wire, ...same });
    expect((refused as { metadata: Headers }).metadata.get('keytrail-contract'), wire).toBe(contractDigest());
  }
});

/** A peer of another release: what it says of itself is all that matters here. */
async function startOtherRelease(trailers: Record<string, string>): Promise<string> {
  const { listOnline } = PresenceService.method;
  const path = `/${PresenceService.typeName}/${listOnline.name}`;
  const raw = (bytes: Buffer) => bytes;
  const server = new Server();
  server.addService(
    {
      [listOnline.name]: {
        path,
        requestStream: false,
        responseStream: false,
        requestSerialize: raw,
        requestDeserialize: raw,
        responseSerialize: raw,
        responseDeserialize: raw,
      },
    },
    {
      [listOnline.name]: (_call: unknown, respond: (error: null, answer: Buffer, trailers: Metadata) => void) => {
        const metadata = new Metadata();
        for (const [name, value] of Object.entries(trailers)) metadata.set(name, value);
        respond(null, Buffer.alloc(0), metadata);
      },
    },
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  closers.push(() => server.forceShutdown());
  return `127.0.0.1:${port}`;
}

test('a process notes which builds its peers run, and says once that one has other contracts', async () => {
  const { service } = await startClients();
  const identity = createServiceIdentity({ serviceCredential: 'a-credential-of-services' }, 'session');
  const call = async (target: string) => {
    const peer = connectPeer(PresenceService, { target, identity, peer: 'presence', timeoutMs: 5_000 });
    closers.push(() => peer.close());
    for (let again = 0; again < 3; again += 1) await peer.listOnline({ userIds: ['bob'] });
  };
  const other = 'f'.repeat(64);
  await call(await startOtherRelease({ 'keytrail-build': '9.0.0+other', 'keytrail-contract': other }));
  await call(await startOtherRelease({ 'keytrail-build': '9.0.0+same', 'keytrail-contract': contractDigest() }));
  await call(await startOtherRelease({ 'keytrail-build': '0.0.1+silent' }));
  const seen = peerBuildsSeen().filter(({ build }) => build.startsWith('9.0.0') || build === '0.0.1+silent');
  expect(seen.map(({ peer, build, contract, otherContract }) => ({ peer, build, contract, otherContract }))).toEqual([
    { peer: 'presence', build: '0.0.1+silent', contract: '', otherContract: undefined },
    { peer: 'presence', build: '9.0.0+same', contract: contractDigest(), otherContract: false },
    { peer: 'presence', build: '9.0.0+other', contract: other, otherContract: true },
  ]);
  const told = service.log.map((line) => JSON.parse(line) as { message: string; peer_build?: string });
  const warnings = told.filter(({ message }) => message === 'a peer has other contracts: this is a mixed fleet');
  expect(warnings.map(({ peer_build }) => peer_build)).toEqual(['9.0.0+other']);
});

import { existsSync, readFileSync } from 'node:fs';
import { createClient, type KeyStore, type KeytrailClient, memoryKeyStore } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';

const file = process.argv[2] ?? '.local/up.env';
if (!existsSync(file)) {
  console.error(
    `There is no ${file}: run \`make up\` first. Usage: bin/with-node node ${process.argv[1]} [.local/up.env]`,
  );
  process.exit(64);
}
const up = Object.fromEntries(
  readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split('=') as [string, string]),
);

/** The SDK of a device over what `make up` started. With its keys in memory alone it is another one when it is run again. */
export function device(user: string, name: string, keyStore: KeyStore = memoryKeyStore()): KeytrailClient {
  const targets = {
    identityKeys: up.IDENTITY_KEYS_GRPC ?? '',
    conversation: up.CONVERSATION_GRPC ?? '',
    session: up.SESSION_GRPC ?? '',
    presence: up.PRESENCE_GRPC ?? '',
  };
  const token = async () => {
    const answer = await fetch(`${up.ISSUER}/token`, { method: 'POST', body: JSON.stringify({ user, device: name }) });
    return ((await answer.json()) as { token: string }).token;
  };
  return createClient({
    user,
    device: name,
    keyStore,
    primitives: nodePrimitives,
    transports: createNodeTransports({ targets, token }),
  });
}

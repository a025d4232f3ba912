import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { type Client, createClient } from '@connectrpc/connect';
import {
  ConversationService,
  type DeviceCertificate,
  IdentityKeysService,
  type KemPrekey,
  PresenceService,
  RegisterDeviceRequestSchema,
  SessionService,
  type SignedPrekey,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createKemPrekey,
  createRootKey,
  createSignedPrekey,
  type KeyPair,
  type NewPrekey,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { createGrpcTransport } from '@keytrail/rpc';

/** Where the services are, and who gives tokens. */
export interface Services {
  readonly identityKeys: string;
  readonly conversation: string;
  readonly session: string;
  readonly presence: string;
  readonly issuer: string;
}

/** A registered device with its private keys and its clients. */
export interface BenchDevice {
  readonly userId: string;
  readonly deviceId: string;
  readonly rootKey: KeyPair;
  readonly identityKey: KeyPair;
  readonly signingKey: KeyPair;
  readonly certificate: DeviceCertificate;
  readonly signedPrekey: NewPrekey<SignedPrekey>;
  readonly lastResortPrekey: NewPrekey<KemPrekey>;
  readonly identityKeys: Client<typeof IdentityKeysService>;
  readonly conversation: Client<typeof ConversationService>;
  readonly session: Client<typeof SessionService>;
  readonly presence: Client<typeof PresenceService>;
}

/** Makes the keys of a device and registers it; it becomes the first of its user when there is no root key yet. */
export async function registerDevice(
  services: Services,
  userId: string,
  deviceId: string,
  rootKey: KeyPair = createRootKey(nodePrimitives),
): Promise<BenchDevice> {
  const token = await tokenOf(services.issuer, userId, deviceId);
  const client = (target: string) => createGrpcTransport({ target, authorization: () => `Bearer ${token}` });
  const identityKey = nodePrimitives.x25519.keyPair();
  const signingKey = nodePrimitives.ed25519.keyPair();
  const signer = { userId, deviceId, signingKey };
  const certificate = certifyDevice(
    nodePrimitives,
    rootKey,
    { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey },
    new Date(),
  );
  const device: BenchDevice = {
    ...signer,
    rootKey,
    identityKey,
    certificate,
    signedPrekey: createSignedPrekey(nodePrimitives, signer, 1),
    lastResortPrekey: createKemPrekey(nodePrimitives, signer, 1, 'kem-last-resort'),
    identityKeys: createClient(IdentityKeysService, client(services.identityKeys)),
    conversation: createClient(ConversationService, client(services.conversation)),
    session: createClient(SessionService, client(services.session)),
    presence: createClient(PresenceService, client(services.presence)),
  };
  await device.identityKeys.registerDevice(
    create(RegisterDeviceRequestSchema, {
      requestId: randomUUID(),
      identityKey: identityKey.publicKey,
      signingKey: signingKey.publicKey,
      certificate,
      signedPrekey: device.signedPrekey.upload,
      lastResortPrekey: device.lastResortPrekey.upload,
    }),
  );
  return device;
}

export async function tokenOf(issuer: string, user: string, device: string): Promise<string> {
  const response = await fetch(`${issuer}/token`, { method: 'POST', body: JSON.stringify({ user, device }) });
  return ((await response.json()) as { token: string }).token;
}

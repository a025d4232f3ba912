import { deviceKey } from './bytes.ts';
import type {
  KeyStore,
  StoredDevice,
  StoredDeviceLog,
  StoredPending,
  StoredPrekey,
  StoredSession,
} from './key-store.ts';

/** A store that forgets when the process ends. */
export function memoryKeyStore(): KeyStore {
  let own: StoredDevice | undefined;
  const prekeys = new Map<string, StoredPrekey>();
  const pins = new Map<string, Uint8Array>();
  const deviceLogs = new Map<string, StoredDeviceLog>();
  const sessions = new Map<string, StoredSession>();
  const epochs = new Map<string, StoredSession>();
  const sealed = new Set<string>();
  const counters = new Map<string, bigint>();
  const pendings = new Map<string, StoredPending>();

  return {
    device: async () => own,
    async saveDevice(device) {
      own = device;
    },
    prekey: async (kind, keyId) => prekeys.get(`${kind} ${keyId}`),
    async savePrekeys(added) {
      for (const prekey of added) prekeys.set(`${prekey.kind} ${prekey.keyId}`, prekey);
    },
    prekeys: async (kind) =>
      [...prekeys.values()].filter((prekey) => prekey.kind === kind).sort((a, b) => a.keyId - b.keyId),
    async keepPrekeysUntil(names, keepUntil) {
      for (const { kind, keyId } of names) {
        const prekey = prekeys.get(`${kind} ${keyId}`);
        if (prekey) prekeys.set(`${kind} ${keyId}`, { ...prekey, keepUntil });
      }
    },
    async removePrekeys(names) {
      for (const { kind, keyId } of names) prekeys.delete(`${kind} ${keyId}`);
    },
    pin: async (userId) => pins.get(userId),
    async pinFirst(userId, rootKey) {
      const pinned = pins.get(userId) ?? rootKey;
      pins.set(userId, pinned);
      return pinned;
    },
    async replacePin(userId, rootKey) {
      pins.set(userId, rootKey);
    },
    deviceLog: async (userId) => deviceLogs.get(userId),
    async saveDeviceLog(log) {
      deviceLogs.set(log.userId, log);
    },
    session: async (conversationId, sessionId) => sessions.get(`${conversationId} ${sessionId}`),
    sessionOfEpoch: async (conversationId, epoch) => epochs.get(`${conversationId} ${epoch}`),
    async saveSession(session, spent) {
      sessions.set(`${session.conversationId} ${session.sessionId}`, session);
      epochs.set(`${session.conversationId} ${session.epoch}`, session);
      for (const { kind, keyId } of spent) prekeys.delete(`${kind} ${keyId}`);
    },
    sealedTo: async (devices) => devices.map((device) => sealed.has(deviceKey(device))),
    async addSealedTo(devices) {
      for (const device of devices) sealed.add(deviceKey(device));
    },
    async reserve(counter, count) {
      const first = counters.get(counter) ?? 0n;
      counters.set(counter, first + BigInt(count));
      return first;
    },
    pending: async (name) => pendings.get(name),
    async savePending(name, pending) {
      pendings.set(name, pending);
    },
    async removePending(name) {
      pendings.delete(name);
    },
  };
}

import type { RosterState } from '@keytrail/crypto';
import { deviceKey } from './bytes.ts';
import { copied } from './copied.ts';
import type {
  KeyStore,
  StoredDevice,
  StoredDeviceLog,
  StoredOutgoing,
  StoredPending,
  StoredPrekey,
  StoredReceived,
  StoredSession,
  StoredUnread,
  StoredWantedKey,
} from './key-store.ts';

/** A store that forgets when the process ends. */
export function memoryKeyStore(): KeyStore {
  let own: StoredDevice | undefined;
  const prekeys = new Copies<StoredPrekey>();
  const pins = new Copies<Uint8Array>();
  const deviceLogs = new Copies<StoredDeviceLog>();
  const rosterLogs = new Copies<RosterState>();
  const sessions = new Copies<StoredSession>();
  const epochs = new Copies<StoredSession>();
  const sealed = new Set<string>();
  const counters = new Map<string, bigint>();
  const pendings = new Copies<StoredPending>();
  const cursors = new Map<string, string>();
  const wanted = new Copies<StoredWantedKey>();
  const outgoing = new Copies<StoredOutgoing>();
  const delivered = new Map<string, bigint>();
  const unread = new Copies<StoredUnread>();
  const received = new Copies<StoredReceived>();
  const receivedName = ({ conversationId, sessionId, sender }: Omit<StoredReceived, 'counters'>) =>
    `${conversationId} ${sessionId} ${deviceKey(sender)}`;
  const unreadName = ({ conversationId, sequence }: StoredUnread) => `${conversationId} ${sequence}`;

  return {
    device: async () => copied(own),
    async saveDevice(device) {
      own = copied(device);
    },
    prekey: async (kind, keyId) => prekeys.get(`${kind} ${keyId}`),
    async savePrekeys(added) {
      for (const prekey of added) prekeys.set(`${prekey.kind} ${prekey.keyId}`, prekey);
    },
    prekeys: async (kind) => prekeys.all((prekey) => prekey.kind === kind).sort((a, b) => a.keyId - b.keyId),
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
      return copied(pinned);
    },
    async replacePin(userId, rootKey) {
      pins.set(userId, rootKey);
    },
    deviceLog: async (userId) => deviceLogs.get(userId),
    async saveDeviceLog(log) {
      deviceLogs.set(log.userId, log);
    },
    rosterLog: async (conversationId) => rosterLogs.get(conversationId),
    async saveRosterLog(state) {
      rosterLogs.set(state.conversationId, state);
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
    cursor: async (name) => cursors.get(name),
    async saveCursor(name, cursor) {
      if (cursor === undefined) cursors.delete(name);
      else cursors.set(name, cursor);
    },
    wantedKeys: async () => wanted.all().sort((a, b) => a.since.getTime() - b.since.getTime()),
    async saveWantedKeys(keys) {
      for (const key of keys) wanted.set(`${key.conversationId} ${key.sessionId}`, key);
    },
    async removeWantedKeys(names) {
      for (const { conversationId, sessionId } of names) wanted.delete(`${conversationId} ${sessionId}`);
    },
    outgoing: async () => outgoing.all().sort((a, b) => compare(a.position, b.position)),
    async saveOutgoing(message) {
      outgoing.set(message.id, message);
    },
    async removeOutgoing(id) {
      outgoing.delete(id);
    },
    unread: async (conversationId) =>
      unread
        .all((each) => conversationId === undefined || each.conversationId === conversationId)
        .sort((a, b) => compare(a.sequence, b.sequence)),
    async saveDelivered(conversationId, sequence, added, of) {
      if (of) received.set(receivedName(of), of);
      delivered.set(conversationId, sequence);
      for (const message of added) unread.set(unreadName(message), message);
    },
    delivered: async (conversationId) => delivered.get(conversationId),
    async removeUnread(messages, of) {
      if (of) received.set(receivedName(of), of);
      for (const message of messages) unread.delete(unreadName(message));
    },
    received: async (conversationId, sessionId, sender) =>
      received.get(receivedName({ conversationId, sessionId, sender })),
  };
}

/** A map whose values are nobody else's. */
class Copies<V> {
  readonly #values = new Map<string, V>();

  get(name: string): V | undefined {
    return copied(this.#values.get(name));
  }

  set(name: string, value: V): void {
    this.#values.set(name, copied(value));
  }

  delete(name: string): void {
    this.#values.delete(name);
  }

  all(filter: (value: V) => boolean = () => true): V[] {
    return copied([...this.#values.values()].filter(filter));
  }
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

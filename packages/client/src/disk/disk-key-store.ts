import { existsSync } from 'node:fs';
import type { RosterState } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { deviceKey } from '../bytes.ts';
import type {
  KeyStore,
  PrekeyName,
  StoredDevice,
  StoredDeviceLog,
  StoredOutgoing,
  StoredPending,
  StoredPrekey,
  StoredReceived,
  StoredSession,
  StoredUnread,
  StoredWantedKey,
} from '../key-store.ts';
import { type StoreSecret, unwrapDataKey, wrapDataKey } from './data-key.ts';
import { KeyStoreDamagedError } from './key-store-errors.ts';
import { RowSeal } from './row-seal.ts';
import { type Rows, SealedRows } from './sealed-rows.ts';
import { createStoreFile, openStoreFile, readingFile, readWrappedKey, writeWrappedKey } from './store-file.ts';

export interface DiskKeyStoreOptions {
  /** Made with mode 0600 when there is none; beside it SQLite keeps its journal. */
  readonly path: string;
  readonly secret: StoreSecret;
}

/** A key store in one encrypted file. */
export interface DiskKeyStore extends KeyStore {
  /** From now on this secret opens the file, and no other. Copies of the file from before are still opened by the old one. */
  changeSecret(secret: StoreSecret): Promise<void>;
  /** What was asked for is done first; then the file is free for others. */
  close(): Promise<void>;
}

/**
 * Opens a key store in a file of its own, for this client alone. Every value is encrypted for its very row, names are keyed hashes, and a sum
 * over all rows tells whether any was changed, exchanged or taken out. That the whole file is an older one of this store cannot be seen in it:
 * that is what the comparison of prekeys with the service (CheckKeys) and the attach counter are for.
 *
 * @throws KeyStoreInUseError, WrongPassphraseError, KeyStoreDamagedError, KeyStoreNewerError.
 */
export async function openDiskKeyStore({ path, secret }: DiskKeyStoreOptions): Promise<DiskKeyStore> {
  if (!existsSync(path)) await make(path, secret);
  const db = openStoreFile(path);
  try {
    const wrapped = readingFile(path, () => readWrappedKey(db));
    if (wrapped === undefined) throw new KeyStoreDamagedError(path, 'malformed');
    const dataKey = await unwrapDataKey(wrapped, secret);
    const rows = readingFile(path, () => new SealedRows(path, db, new RowSeal(dataKey)));
    rows.verify();
    return {
      ...keyStoreOf(rows),
      async changeSecret(next) {
        const rewrapped = await wrapDataKey(dataKey, next);
        await rows.change(() => writeWrappedKey(db, rewrapped));
      },
      async close() {
        rows.close();
      },
    };
  } catch (error) {
    db.close();
    throw error;
  }
}

async function make(path: string, secret: StoreSecret): Promise<void> {
  const dataKey = nodePrimitives.randomBytes(32);
  const wrapped = await wrapDataKey(dataKey, secret);
  try {
    createStoreFile(path, (db) => {
      writeWrappedKey(db, wrapped);
      SealedRows.begin(db, new RowSeal(dataKey));
    });
  } catch (error) {
    // Somebody else made it meanwhile: then it is theirs to use, or to share.
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  }
}

function keyStoreOf(rows: SealedRows): KeyStore {
  const prekeyKind = (kind: PrekeyName['kind']) => `prekey-${kind}`;
  const removePrekeys = (within: Rows, names: readonly PrekeyName[]) => {
    for (const { kind, keyId } of names) within.remove(prekeyKind(kind), String(keyId));
  };
  const savePrekey = (within: Rows, prekey: StoredPrekey) =>
    within.put(prekeyKind(prekey.kind), String(prekey.keyId), prekey, 'listed');
  const receivedName = ({ conversationId, sessionId, sender }: Omit<StoredReceived, 'counters'>) =>
    `${conversationId} ${sessionId} ${deviceKey(sender)}`;
  const unreadName = ({ conversationId, sequence }: StoredUnread) => `${conversationId} ${sequence}`;

  return {
    device: async () => rows.get<StoredDevice>('device', ''),
    saveDevice: (device) => rows.change((within) => within.put('device', '', device)),

    prekey: async (kind, keyId) => rows.get<StoredPrekey>(prekeyKind(kind), String(keyId)),
    savePrekeys: (prekeys) =>
      rows.change((within) => {
        for (const prekey of prekeys) savePrekey(within, prekey);
      }),
    prekeys: async (kind) => rows.list<StoredPrekey>(prekeyKind(kind)).sort((a, b) => a.keyId - b.keyId),
    keepPrekeysUntil: (names, keepUntil) =>
      rows.change((within) => {
        for (const { kind, keyId } of names) {
          const prekey = within.get<StoredPrekey>(prekeyKind(kind), String(keyId));
          if (prekey) savePrekey(within, { ...prekey, keepUntil });
        }
      }),
    removePrekeys: (names) => rows.change((within) => removePrekeys(within, names)),

    pin: async (userId) => rows.get<Uint8Array>('pin', userId),
    pinFirst: (userId, rootKey) =>
      rows.change((within) => {
        const pinned = within.get<Uint8Array>('pin', userId);
        if (pinned === undefined) within.put('pin', userId, rootKey);
        return pinned ?? new Uint8Array(rootKey);
      }),
    replacePin: (userId, rootKey) => rows.change((within) => within.put('pin', userId, rootKey)),

    deviceLog: async (userId) => rows.get<StoredDeviceLog>('device-log', userId),
    saveDeviceLog: (log) => rows.change((within) => within.put('device-log', log.userId, log)),

    rosterLog: async (conversationId) => rows.get<RosterState>('roster-log', conversationId),
    saveRosterLog: (state) => rows.change((within) => within.put('roster-log', state.conversationId, state)),

    session: async (conversationId, sessionId) => rows.get<StoredSession>('session', `${conversationId} ${sessionId}`),
    async sessionOfEpoch(conversationId, epoch) {
      const sessionId = rows.get<string>('epoch', `${conversationId} ${epoch}`);
      return sessionId === undefined ? undefined : rows.get<StoredSession>('session', `${conversationId} ${sessionId}`);
    },
    saveSession: (session, spent) =>
      rows.change((within) => {
        const { conversationId, sessionId, epoch } = session;
        within.put('session', `${conversationId} ${sessionId}`, session);
        within.put('epoch', `${conversationId} ${epoch}`, sessionId);
        removePrekeys(within, spent);
      }),

    sealedTo: async (devices) => devices.map((device) => rows.get('sealed-to', deviceKey(device)) !== undefined),
    addSealedTo: (devices) =>
      rows.change((within) => {
        for (const device of devices) {
          if (within.get('sealed-to', deviceKey(device)) === undefined) within.put('sealed-to', deviceKey(device), 1);
        }
      }),

    reserve: (counter, count) =>
      rows.change((within) => {
        const first = within.get<bigint>('counter', counter) ?? 0n;
        within.put('counter', counter, first + BigInt(count));
        return first;
      }),

    pending: async (name) => rows.get<StoredPending>('pending', name),
    savePending: (name, pending) => rows.change((within) => within.put('pending', name, pending)),
    removePending: (name) => rows.change((within) => within.remove('pending', name)),

    cursor: async (name) => rows.get<string>('cursor', name),
    saveCursor: (name, cursor) =>
      rows.change((within) =>
        cursor === undefined ? within.remove('cursor', name) : within.put('cursor', name, cursor),
      ),

    wantedKeys: async () =>
      rows.list<StoredWantedKey>('wanted-key').sort((a, b) => a.since.getTime() - b.since.getTime()),
    saveWantedKeys: (keys) =>
      rows.change((within) => {
        for (const key of keys) within.put('wanted-key', `${key.conversationId} ${key.sessionId}`, key, 'listed');
      }),
    removeWantedKeys: (names) =>
      rows.change((within) => {
        for (const { conversationId, sessionId } of names)
          within.remove('wanted-key', `${conversationId} ${sessionId}`);
      }),

    outgoing: async () => rows.list<StoredOutgoing>('outgoing').sort((a, b) => compare(a.position, b.position)),
    saveOutgoing: (message) => rows.change((within) => within.put('outgoing', message.id, message, 'listed')),
    removeOutgoing: (id) => rows.change((within) => within.remove('outgoing', id)),

    unread: async (conversationId) =>
      rows
        .list<StoredUnread>('unread')
        .filter((each) => conversationId === undefined || each.conversationId === conversationId)
        .sort((a, b) => compare(a.sequence, b.sequence)),
    saveDelivered: (conversationId, sequence, unread, received) =>
      rows.change((within) => {
        if (received) within.put('received', receivedName(received), received);
        within.put('delivered', conversationId, sequence);
        for (const message of unread) within.put('unread', unreadName(message), message, 'listed');
      }),
    delivered: async (conversationId) => rows.get<bigint>('delivered', conversationId),
    removeUnread: (messages, received) =>
      rows.change((within) => {
        if (received) within.put('received', receivedName(received), received);
        for (const message of messages) within.remove('unread', unreadName(message));
      }),
    received: async (conversationId, sessionId, sender) =>
      rows.get<StoredReceived>('received', receivedName({ conversationId, sessionId, sender })),
  };
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

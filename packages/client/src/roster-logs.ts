import { create } from '@bufbuild/protobuf';
import {
  type Conversation,
  type HistoryPolicy,
  type RosterEntry,
  RosterEntrySchema,
  type SignedRosterChange,
} from '@keytrail/contracts';
import {
  emptyRoster,
  foldRoster,
  type Primitives,
  type Ref,
  RosterError,
  type RosterState,
  rosterEntryHash,
  rosterHash,
  verifyRosterChange,
} from '@keytrail/crypto';
import { equalBytes } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { DeviceLogs } from './device-logs.ts';
import type { Directory } from './directory.ts';
import type { Emitter } from './emitter.ts';
import { type RosterLogProblem, RosterRefusedError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { Turns } from './flights.ts';
import type { KeyStore } from './key-store.ts';
import type { RootKeys } from './root-keys.ts';
import type { Operation } from './tracing.ts';

/**
 * What is made of a roster that a conversation from before signed rosters begins with, and that nobody signed: `refuse` it, or believe it the
 * `first-use`, and nothing unsigned afterwards.
 */
export type UnsignedRosters = 'refuse' | 'first-use';

export interface RosterLogParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly rootKeys: RootKeys;
  readonly logs: DeviceLogs;
  readonly directory: Directory;
  readonly events: Emitter<ClientEvents>;
  readonly unsignedRosters: UnsignedRosters;
}

/** What a session header, or one that is about to be made, says of its roster. */
export interface RosterClaim {
  readonly conversationId: string;
  readonly rosterVersion: bigint;
  /** 32 bytes. */
  readonly rosterHash: Uint8Array;
  readonly historyPolicy: HistoryPolicy;
}

const rememberedAtMost = 1_000;
/** A changed conversation is looked at again while others change it faster than this device reads. */
const looksAtMost = 5;

/** The rosters of conversations, as far as members signed them. */
export class RosterLogs {
  readonly #parts: RosterLogParts;
  readonly #turns = new Turns();
  readonly #states = new Map<string, RosterState>();

  constructor(parts: RosterLogParts) {
    this.#parts = parts;
  }

  async remembered(conversationId: string): Promise<RosterState> {
    const known = this.#states.get(conversationId);
    if (known !== undefined) return known;
    const stored = await this.#parts.store.rosterLog(conversationId);
    return this.#states.get(conversationId) ?? this.#keep(stored ?? emptyRoster(conversationId));
  }

  /**
   * Believes a roster at a version when it is the one that the log comes to, of which it fetches what is new.
   *
   * @throws RosterRefusedError, DeviceListRefusedError, RefusalError.
   */
  async confirm(operation: Operation, claim: RosterClaim): Promise<void> {
    const state = await this.#upTo(operation, claim.conversationId, claim.rosterVersion);
    const first = state.versions[0]?.version ?? 0n;
    // What was before an unsigned base, nobody can tell.
    if (state.isBased && claim.rosterVersion < first) return;
    const then = state.versions[Number(claim.rosterVersion - first)];
    const same =
      then !== undefined &&
      then.version === claim.rosterVersion &&
      then.historyPolicy === claim.historyPolicy &&
      equalBytes(then.rosterHash, claim.rosterHash);
    if (!same) this.#refuse(state, claim.rosterVersion, 'roster');
  }

  /**
   * A conversation as the server tells it now, once its roster is what the log comes to; asked for again while it is overtaken.
   *
   * @throws RosterRefusedError, DeviceListRefusedError, RefusalError.
   */
  async believed(
    operation: Operation,
    conversationId: string,
    get: () => Promise<Conversation>,
  ): Promise<Conversation> {
    for (let looks = 1; ; looks += 1) {
      const before = await this.remembered(conversationId);
      const told = await get();
      if (told.rosterVersion < before.version || looks > looksAtMost) {
        this.#refuse(before, told.rosterVersion, 'rolled-back');
      }
      const state = await this.#upTo(operation, conversationId, told.rosterVersion);
      if (state.version > told.rosterVersion) continue;
      if (!equalBytes(state.head, told.rosterHead)) this.#refuse(state, told.rosterVersion, 'fork');
      const { historyPolicy } = state;
      if (historyPolicy !== told.historyPolicy || !equalBytes(rosterHash(told.members), rosterHash(state.members))) {
        this.#refuse(state, told.rosterVersion, 'roster');
      }
      return told;
    }
  }

  /** A roster that this device itself made, and the server has accepted. @throws RosterRefusedError. */
  began(conversationId: string, signedChange: SignedRosterChange, head: Uint8Array): Promise<void> {
    return this.#turns.take(conversationId, async () => {
      const before = await this.remembered(conversationId);
      if (before.version > 0n) return;
      const entry = create(RosterEntrySchema, { rosterVersion: 1n, signedChange });
      entry.hash = rosterEntryHash({ conversationId, previousHash: before.head }, entry);
      const state = foldRoster(before, entry);
      if (!equalBytes(state.head, head)) this.#refuse(state, 1n, 'fork');
      await this.#save(state);
    });
  }

  async #upTo(operation: Operation, conversationId: string, version: bigint): Promise<RosterState> {
    const known = await this.remembered(conversationId);
    if (known.version >= version) return known;
    return this.#turns.take(conversationId, async () => {
      let state = await this.remembered(conversationId);
      for (let more = true; more && state.version < version; ) {
        const { calls } = this.#parts;
        const request = { conversationId, afterVersion: state.version };
        const page = await calls.call(operation, (options) => calls.conversation.listRosterChanges(request, options));
        if (page.entries.length === 0) break;
        state = await this.#follow(operation, state, page.entries);
        more = page.more;
      }
      if (state.version < version) this.#refuse(state, version, 'version');
      await this.#save(state);
      return state;
    });
  }

  async #follow(operation: Operation, from: RosterState, entries: readonly RosterEntry[]): Promise<RosterState> {
    const { primitives, unsignedRosters } = this.#parts;
    let state = from;
    const signed: { version: bigint; author: Ref; change: SignedRosterChange }[] = [];
    try {
      for (const entry of entries) {
        if (entry.base.length > 0 && unsignedRosters === 'refuse') this.#refuse(from, entry.rosterVersion, 'unsigned');
        if (entry.signedChange !== undefined) {
          const { author } = verifyRosterChange(primitives, entry.signedChange);
          signed.push({ version: entry.rosterVersion, author, change: entry.signedChange });
        }
        state = foldRoster(state, entry);
      }
    } catch (error) {
      if (!(error instanceof RosterError)) throw error;
      return this.#refuse(from, state.version + 1n, error.problem, error);
    }
    // A log only grows: what it says of an author's keys already, it says for good.
    const unknown = new Set<string>();
    for (const { author, change } of signed) {
      const seen = (await this.#parts.logs.remembered(author.userId)).version > 0n;
      if (!seen || !(await this.#isAuthorsKey(author, change))) unknown.add(author.userId);
    }
    await this.#parts.directory.current(operation, [...unknown]);
    for (const { version, author, change } of signed) {
      if (!(await this.#isAuthorsKey(author, change))) this.#refuse(from, version, 'certificate');
    }
    return state;
  }

  /**
   * Whether an author's keys are those that the user's log has, revoked ones included, under a root key that is the pinned one or came before it.
   * Of a user of whom nothing is told any more, the pinned root key decides; without one, it is a first contact.
   */
  async #isAuthorsKey(
    { userId, deviceId }: Ref,
    { authorCertificate, authorIdentityKey, authorSigningKey }: SignedRosterChange,
  ): Promise<boolean> {
    const { logs, rootKeys } = this.#parts;
    const [log, pinned] = [await logs.remembered(userId), await rootKeys.pinned(userId)];
    const rootKey = authorCertificate?.rootKey ?? new Uint8Array();
    if (log.version === 0n) return pinned === undefined || equalBytes(pinned, rootKey);
    const device = log.devices.find((each) => each.deviceId === deviceId);
    const known =
      device !== undefined &&
      equalBytes(device.identityKey, authorIdentityKey) &&
      equalBytes(device.signingKey, authorSigningKey);
    const place = (key: Uint8Array) => log.rootKeys.findIndex((each) => equalBytes(each.rootKey, key));
    if (!known || pinned === undefined || place(rootKey) < 0) return false;
    return equalBytes(pinned, rootKey) || place(rootKey) < place(pinned);
  }

  async #save(state: RosterState): Promise<void> {
    await this.#parts.store.saveRosterLog(state);
    this.#keep(state);
  }

  #keep(state: RosterState): RosterState {
    if (this.#states.size >= rememberedAtMost) this.#states.clear();
    this.#states.set(state.conversationId, state);
    return state;
  }

  #refuse(state: RosterState, version: bigint, problem: RosterLogProblem, cause?: unknown): never {
    const { conversationId } = state;
    this.#parts.events.emit('rosterRefused', { conversationId, problem, version, remembered: state.version });
    throw new RosterRefusedError(conversationId, problem, cause);
  }
}

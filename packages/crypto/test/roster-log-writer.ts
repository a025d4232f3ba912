import { create } from '@bufbuild/protobuf';
import { HistoryPolicy, MemberRole, type RosterEntry, RosterEntrySchema } from '@keytrail/contracts';
import {
  type Primitives,
  type RosterAuthor,
  type RosterMember,
  type RosterPermissions,
  rosterEntryHash,
  signRosterChange,
  type UnsignedRosterChange,
} from '@keytrail/crypto';

export const adminsOnly: RosterPermissions = {
  addMembers: MemberRole.ADMIN,
  removeMembers: MemberRole.ADMIN,
  changePolicy: MemberRole.ADMIN,
};
const madeAt = new Date('2026-01-02T03:04:05.678Z');

type Content = Omit<UnsignedRosterChange, 'conversationId' | 'rosterVersion' | 'previousHash' | 'madeAt'>;

/** Writes a roster's log as a service does, believing what it is told. */
export class RosterLogWriter {
  readonly conversationId: string;
  readonly entries: RosterEntry[] = [];
  readonly #primitives: Primitives;

  constructor(primitives: Primitives, conversationId: string) {
    this.#primitives = primitives;
    this.conversationId = conversationId;
  }

  get version(): bigint {
    return this.entries.at(-1)?.rosterVersion ?? 0n;
  }

  get head(): Uint8Array {
    return this.entries.at(-1)?.hash ?? new Uint8Array();
  }

  created(by: RosterAuthor, members: readonly RosterMember[], content: Content = {}): void {
    this.signed(by, {
      added: members,
      permissions: adminsOnly,
      historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
      ...content,
    });
  }

  signed(by: RosterAuthor, content: Content): void {
    const place = { conversationId: this.conversationId, previousHash: this.head, rosterVersion: this.version + 1n };
    const signedChange = signRosterChange(this.#primitives, by, { ...place, madeAt, ...content });
    this.write({ signedChange });
  }

  erased(erasedUserId: string): void {
    this.write({ erasedUserId });
  }

  write(content: Partial<Pick<RosterEntry, 'signedChange' | 'erasedUserId' | 'base' | 'rosterVersion'>>): void {
    const entry = create(RosterEntrySchema, { rosterVersion: this.version + 1n, ...content });
    entry.hash = rosterEntryHash({ conversationId: this.conversationId, previousHash: this.head }, entry);
    this.entries.push(entry);
  }
}

import { clone, create } from '@bufbuild/protobuf';
import { HistoryPolicy, MemberRole, type RosterEntry, RosterEntrySchema } from '@keytrail/contracts';
import {
  createRootKey,
  emptyRoster,
  foldRoster,
  RosterError,
  type RosterState,
  rosterBaseText,
  rosterEntryHash,
  rosterHash,
  verifyRosterChange,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { makeDevice } from './people.ts';
import { adminsOnly, RosterLogWriter } from './roster-log-writer.ts';

const { ADMIN, MEMBER } = MemberRole;
const conversationId = 'dcecda26-50cb-843d-a8cd-44a2076c490d';
const names = ['alice', 'bob', 'carol', 'dave', 'erin', 'frank'] as const;
const authors = new Map(names.map((name) => [name as string, makeDevice(primitives, name, 'phone').sealer]));

function authorOf(name: string) {
  const author = authors.get(name);
  if (!author) throw new Error(`nobody is called ${name}`);
  return author;
}

function read(entries: readonly RosterEntry[], from: RosterState = emptyRoster(conversationId)): RosterState {
  return entries.reduce((state, entry) => {
    if (entry.signedChange) verifyRosterChange(primitives, entry.signedChange);
    return foldRoster(state, entry);
  }, from);
}

function problemOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof RosterError) return error.problem;
    throw error;
  }
  return 'none';
}

/** A log of alice (ADMIN), bob and carol. */
function group(permissions = adminsOnly): RosterLogWriter {
  const log = new RosterLogWriter(primitives, conversationId);
  const members = [
    { userId: 'alice', role: ADMIN },
    { userId: 'bob', role: MEMBER },
    { userId: 'carol', role: MEMBER },
  ];
  log.created(authorOf('alice'), members, { permissions });
  return log;
}

const rolesOf = ({ members }: RosterState) => Object.fromEntries(members.map(({ userId, role }) => [userId, role]));

describe('a roster that is read from its log', () => {
  it('is the one that its creator signed, and then what its members made of it', () => {
    const log = group();
    log.signed(authorOf('alice'), { added: [{ userId: 'dave', role: MEMBER }] });
    log.signed(authorOf('alice'), { removed: ['bob'] });
    log.signed(authorOf('alice'), { roles: [{ userId: 'carol', role: ADMIN }] });
    log.signed(authorOf('carol'), { historyPolicy: HistoryPolicy.SHARED });
    const state = read(log.entries);
    expect(rolesOf(state)).toEqual({ alice: ADMIN, carol: ADMIN, dave: MEMBER });
    expect({ version: state.version, head: state.head }).toEqual({ version: 5n, head: log.head });
    expect(state.versions.map(({ historyPolicy }) => historyPolicy)).toEqual([1, 1, 1, 1, 2]);
    expect(state.versions.at(-1)?.rosterHash).toEqual(rosterHash(state.members));
  });

  it('has the first of the rest as its admin when the last one leaves or is erased, and nobody when all have gone', () => {
    const log = group();
    log.signed(authorOf('alice'), { removed: ['alice'] });
    expect(rolesOf(read(log.entries))).toEqual({ bob: ADMIN, carol: MEMBER });
    log.erased('bob');
    expect(rolesOf(read(log.entries))).toEqual({ carol: ADMIN });
    log.signed(authorOf('carol'), { removed: ['carol'] });
    expect(rolesOf(read(log.entries))).toEqual({});
  });

  it('may begin with what nobody signed where the conversation is older than the log, and nowhere else', () => {
    const members = [
      { userId: 'alice', role: ADMIN },
      { userId: 'bob', role: MEMBER },
    ];
    const base = rosterBaseText({ members, permissions: adminsOnly, historyPolicy: HistoryPolicy.SHARED });
    const log = new RosterLogWriter(primitives, conversationId);
    log.write({ base, rosterVersion: 7n });
    log.signed(authorOf('alice'), { removed: ['bob'] });
    expect(read(log.entries)).toMatchObject({
      version: 8n,
      isBased: true,
      members: [{ userId: 'alice', role: ADMIN }],
    });
    log.write({ base });
    expect(problemOf(() => read(log.entries))).toBe('version');
  });
});

describe('a change that the roster does not allow', () => {
  type Attempt = (log: RosterLogWriter) => void;
  const by = (name: string, content: Parameters<RosterLogWriter['signed']>[1]): Attempt => {
    return (log) => log.signed(authorOf(name), content);
  };
  const everybody = { addMembers: MEMBER, removeMembers: MEMBER, changePolicy: MEMBER };
  it.each<[string, string, typeof adminsOnly, Attempt]>([
    ['of a stranger', 'author', everybody, by('dave', { added: [{ userId: 'dave', role: MEMBER }] })],
    ['a member adds', 'role', adminsOnly, by('bob', { added: [{ userId: 'dave', role: MEMBER }] })],
    ['a member adds an admin', 'role', everybody, by('bob', { added: [{ userId: 'dave', role: ADMIN }] })],
    ['a member removes', 'role', adminsOnly, by('bob', { removed: ['carol'] })],
    ['a member removes an admin', 'role', everybody, by('bob', { removed: ['alice'] })],
    ['a member gives roles', 'role', everybody, by('bob', { roles: [{ userId: 'bob', role: ADMIN }] })],
    ['a member changes the policy', 'role', adminsOnly, by('bob', { permissions: everybody })],
    ['somebody is added twice', 'member', adminsOnly, by('alice', { added: [{ userId: 'bob', role: MEMBER }] })],
    ['a stranger is removed', 'member', adminsOnly, by('alice', { removed: ['dave'] })],
    ['a stranger is erased', 'member', adminsOnly, (log) => log.erased('dave')],
    ['a stranger gets a role', 'member', adminsOnly, by('alice', { roles: [{ userId: 'dave', role: MEMBER }] })],
    ['no admin is left', 'member', adminsOnly, by('alice', { roles: [{ userId: 'alice', role: MEMBER }] })],
    ['of two kinds', 'malformed', adminsOnly, by('alice', { removed: ['bob'], historyPolicy: HistoryPolicy.SHARED })],
    ['of nothing', 'malformed', adminsOnly, by('alice', {})],
    ['an entry of nothing', 'malformed', adminsOnly, (log) => log.write({})],
  ])('is refused: %s', (_, problem, permissions, attempt) => {
    const log = group(permissions);
    attempt(log);
    expect(problemOf(() => read(log.entries))).toBe(problem);
  });

  it('is refused as the first entry: by a member, without permissions, or of an erasure', () => {
    const log = () => new RosterLogWriter(primitives, conversationId);
    const [byMember, unruled, erasure] = [log(), log(), log()];
    byMember.created(authorOf('alice'), [{ userId: 'alice', role: MEMBER }]);
    unruled.created(authorOf('alice'), [{ userId: 'alice', role: ADMIN }], { permissions: undefined });
    erasure.erased('alice');
    expect([byMember, unruled, erasure].map(({ entries }) => problemOf(() => read(entries)))).toEqual([
      'author',
      'malformed',
      'version',
    ]);
  });

  it('is allowed to members where the permissions say so', () => {
    const log = group(everybody);
    log.signed(authorOf('bob'), { added: [{ userId: 'dave', role: MEMBER }] });
    log.signed(authorOf('dave'), { removed: ['carol'] });
    log.signed(authorOf('dave'), { permissions: adminsOnly });
    expect(rolesOf(read(log.entries))).toEqual({ alice: ADMIN, bob: MEMBER, dave: MEMBER });
  });
});

const step = fc.record({
  by: fc.constantFrom(...names),
  what: fc.constantFrom('add', 'remove', 'role', 'erase', 'policy', 'leave'),
  whom: fc.uniqueArray(fc.constantFrom(...names), { minLength: 1, maxLength: 3 }),
  role: fc.constantFrom(ADMIN, MEMBER),
});

/** A log of random attempts, of which those that the roster allows are in it. */
function history(steps: readonly (typeof step extends fc.Arbitrary<infer T> ? T : never)[]): RosterLogWriter {
  const log = group({ ...adminsOnly, addMembers: MEMBER });
  for (const { by, what, whom, role } of steps) {
    const members = whom.map((userId) => ({ userId, role }));
    if (what === 'add') log.signed(authorOf(by), { added: members });
    else if (what === 'remove') log.signed(authorOf(by), { removed: whom });
    else if (what === 'leave') log.signed(authorOf(by), { removed: [by] });
    else if (what === 'role') log.signed(authorOf(by), { roles: members });
    else if (what === 'erase') log.erased(by);
    else log.signed(authorOf(by), { historyPolicy: role === ADMIN ? 1 : 2 });
    if (problemOf(() => read(log.entries)) !== 'none') log.entries.pop();
  }
  return log;
}

const histories = fc.array(step, { minLength: 1, maxLength: 8 }).map(history);

describe('any history', () => {
  it('has an admin as long as it has members, and comes to the same roster in any parts', () => {
    fc.assert(
      fc.property(histories, fc.nat(), ({ entries }, cut) => {
        const state = read(entries);
        expect(state.members.length === 0 || state.members.some(({ role }) => role === ADMIN)).toBe(true);
        const at = cut % entries.length;
        expect(read(entries.slice(at), read(entries.slice(0, at)))).toEqual(state);
      }),
      { numRuns: 40 },
    );
  });

  it('is refused when any byte of a change, a signature, a hash or an erased name is another one', () => {
    fc.assert(
      fc.property(
        histories,
        fc.nat(),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        ({ entries }, which, where, mask) => {
          const tampered = entries.map((entry) => clone(RosterEntrySchema, entry));
          const entry = tampered[which % tampered.length] as RosterEntry;
          const { signedChange } = entry;
          const parts = [entry.hash, ...(signedChange ? [signedChange.change, signedChange.signature] : [])];
          const bytes = parts[where % parts.length] as Uint8Array;
          const at = where % bytes.length;
          bytes[at] = (bytes[at] ?? 0) ^ mask;
          // A server can always compute the hash of what it made up.
          if (bytes !== entry.hash) {
            const previousHash = tampered[(which % tampered.length) - 1]?.hash ?? new Uint8Array();
            entry.hash = rosterEntryHash({ conversationId, previousHash }, entry);
          }
          expect(problemOf(() => read(tampered))).not.toBe('none');
        },
      ),
      { numRuns: 200 },
    );
  });

  it('is refused when an entry is left out, comes twice or changes its place, also with hashes made anew', () => {
    fc.assert(
      fc.property(histories, fc.nat(), fc.nat(), fc.boolean(), ({ entries }, a, b, again) => {
        const [from, to] = [a % entries.length, b % entries.length];
        const moved = entries.map((entry) => clone(RosterEntrySchema, entry));
        const [taken] = moved.splice(from, 1) as [RosterEntry];
        const dropped = from === to && from < entries.length - 1;
        if (again) moved.splice(to, 0, taken, create(RosterEntrySchema, { ...taken }));
        else if (!dropped) moved.splice(to, 0, taken);
        fc.pre(again || from !== to || dropped);
        fc.pre(moved.some((entry, i) => entry.signedChange && entry.rosterVersion !== BigInt(i + 1)));
        let previousHash = new Uint8Array();
        for (const [i, entry] of moved.entries()) {
          entry.rosterVersion = BigInt(i + 1);
          entry.hash = rosterEntryHash({ conversationId, previousHash }, entry);
          previousHash = new Uint8Array(entry.hash);
        }
        expect(problemOf(() => read(moved))).not.toBe('none');
      }),
      { numRuns: 100 },
    );
  });

  it('is refused under a signature of somebody else than its author', () => {
    const log = group();
    log.signed(authorOf('alice'), { removed: ['bob'] });
    const forged = clone(RosterEntrySchema, log.entries[1] as RosterEntry);
    const other = makeDevice(primitives, 'alice', 'phone', createRootKey(primitives)).sealer;
    if (forged.signedChange) forged.signedChange.authorSigningKey = other.signingKey.publicKey;
    expect(problemOf(() => read([log.entries[0] as RosterEntry, forged]))).toBe('certificate');
  });
});

it('reads a hundred changes among a thousand members', () => {
  const log = new RosterLogWriter(primitives, conversationId);
  const members = Array.from({ length: 999 }, (_, i) => ({ userId: `user-${i + 1000}`, role: MEMBER }));
  log.created(authorOf('alice'), [{ userId: 'alice', role: ADMIN }, ...members]);
  for (let i = 0; i < 50; i += 1) {
    log.signed(authorOf('alice'), { removed: [`user-${1000 + i}`] });
    log.signed(authorOf('alice'), { added: [{ userId: `user-${1000 + i}`, role: MEMBER }] });
  }
  expect(read(log.entries)).toMatchObject({ version: 101n, members: { length: 1000 } });
});

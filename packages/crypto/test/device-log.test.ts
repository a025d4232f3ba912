import { clone, create, type DescMessage, type Message } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  DeviceListSchema,
  type DeviceLogEntry,
  DeviceLogEntrySchema,
  DeviceLogKind,
  RevokedBy,
} from '@keytrail/contracts';
import {
  certifyDevice,
  compareDeviceList,
  createRootKey,
  DeviceLogError,
  type DeviceLogState,
  emptyDeviceLog,
  loggedRootKey,
  rootKeyChangeIn,
  verifyDeviceLog,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DeviceLogWriter, rootKeyChange, signedRevocation, unsignedRevocation } from './device-log-writer.ts';
import { makeDevice, type TestDevice } from './people.ts';

const rootKey = createRootKey(primitives);
const nextRootKey = createRootKey(primitives);
const thirdRootKey = createRootKey(primitives);
const phone = makeDevice(primitives, 'alice', 'phone', rootKey);
const tablet = makeDevice(primitives, 'alice', 'tablet', rootKey);
const watch = makeDevice(primitives, 'alice', 'watch', rootKey);
const laptop = makeDevice(primitives, 'alice', 'laptop', nextRootKey);
const anew = makeDevice(primitives, 'alice', 'anew', thirdRootKey);
const empty = emptyDeviceLog('alice');

function certifiedBy(device: TestDevice, by = nextRootKey) {
  const certificate = certifyDevice(primitives, by, device.keys, new Date('2026-03-04T05:06:07.089Z'));
  return { ...device.keys, certificate };
}

function added(log: DeviceLogWriter, ...devices: TestDevice[]): DeviceLogWriter {
  for (const device of devices) log.added({ ...device.keys, certificate: device.sealer.certificate });
  return log;
}

function changed(log: DeviceLogWriter, previous: { publicKey: Uint8Array }, next = nextRootKey): DeviceLogWriter {
  log.rootKeyChanged(rootKeyChange(primitives, 'alice', { previous, next, deviceListVersion: log.version }));
  return log;
}

/** Everything that can happen to a list: three devices, two revocations, a signed change, a further device, a reset. */
function wholeLog(): DeviceLogWriter {
  const log = added(new DeviceLogWriter('alice'), phone, tablet, watch);
  log.revoked(watch.keys, signedRevocation(primitives, rootKey, watch.keys, 'phone'));
  changed(log, rootKey);
  log.recertified(certifiedBy(phone));
  log.revoked(tablet.keys, unsignedRevocation(RevokedBy.ROOT_KEY_CHANGE));
  added(log, laptop);
  log.revoked(phone.keys, unsignedRevocation(RevokedBy.OPERATOR));
  changed(log, { publicKey: nextRootKey.publicKey }, thirdRootKey);
  log.revoked(laptop.keys, unsignedRevocation(RevokedBy.ROOT_KEY_CHANGE));
  return added(log, anew);
}

const entries = wholeLog().entries;
const whole = verifyDeviceLog(primitives, empty, entries);

function problemOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof DeviceLogError) return error.problem;
    throw error;
  }
  return 'none';
}

const verified = (log: readonly DeviceLogEntry[], from: DeviceLogState = empty) =>
  verifyDeviceLog(primitives, from, log);

describe('a device log', () => {
  it('amounts to the devices that it tells of, and to its root keys', () => {
    expect(whole.version).toBe(12n);
    expect(whole.head).toEqual(entries.at(-1)?.hash);
    expect(
      whole.devices.map(({ deviceId, addedInVersion, revokedInVersion }) => [
        deviceId,
        addedInVersion,
        revokedInVersion,
      ]),
    ).toEqual([
      ['phone', 1n, 9n],
      ['tablet', 2n, 7n],
      ['watch', 3n, 4n],
      ['laptop', 8n, 11n],
      ['anew', 12n, undefined],
    ]);
    expect(loggedRootKey(whole)).toEqual(thirdRootKey.publicKey);
    expect(whole.rootKeys.map(({ sinceVersion, signedByPrevious }) => [sinceVersion, signedByPrevious])).toEqual([
      [1n, true],
      [5n, true],
      [10n, false],
    ]);
  });

  it('comes to the same wherever it is cut', () => {
    for (let at = 0; at <= entries.length; at++) {
      expect(verified(entries.slice(at), verified(entries.slice(0, at)))).toEqual(whole);
    }
  });

  it('says whether the root keys before signed a change', () => {
    const [first, second, third] = [rootKey.publicKey, nextRootKey.publicKey, thirdRootKey.publicKey];
    expect(rootKeyChangeIn(whole, first, second)).toBe('signed');
    expect(rootKeyChangeIn(whole, second, third)).toBe('reset');
    expect(rootKeyChangeIn(whole, first, third)).toBe('reset');
    expect(rootKeyChangeIn(whole, phone.keys.signingKey, second)).toBe('reset');
    expect(rootKeyChangeIn(whole, third, first)).toBe('reset');
    expect(rootKeyChangeIn(whole, first, phone.keys.signingKey)).toBeUndefined();
  });

  it('is refused in any other order, with any entry missing, and with any entry twice', () => {
    const indices = entries.map((_, i) => i);
    fc.assert(
      fc.property(fc.shuffledSubarray(indices, { minLength: 1 }), (order) => {
        fc.pre(order.some((from, to) => from !== to));
        expect(problemOf(() => verified(order.map((i) => entries[i] as DeviceLogEntry)))).toBe('version');
      }),
    );
    fc.assert(
      fc.property(fc.nat(entries.length - 1), fc.nat(entries.length), (what, where) => {
        const inserted = entries.toSpliced(where, 0, entries[what] as DeviceLogEntry);
        expect(problemOf(() => verified(inserted))).toBe('version');
      }),
    );
  });

  it('is refused with any entry of another log in it, also with its place filled in', () => {
    const others = wholeLog().entries;
    fc.assert(
      fc.property(fc.nat(entries.length - 1), fc.nat(entries.length - 1), (what, where) => {
        fc.pre(what !== where);
        const { version, previousHash } = entries[where] as DeviceLogEntry;
        const moved = create(DeviceLogEntrySchema, { ...(others[what] as DeviceLogEntry), version, previousHash });
        expect(problemOf(() => verified(entries.with(where, moved)))).not.toBe('none');
      }),
    );
  });

  it('is refused with any field of any entry changed', () => {
    const places = entries.flatMap((entry, i) => paths(DeviceLogEntrySchema, entry).map((path) => [i, path] as const));
    expect(places.length).toBeGreaterThan(150);
    fc.assert(
      fc.property(fc.constantFrom(...places), fc.nat(511), ([i, path], nth) => {
        const changedEntry = touched(entries[i] as DeviceLogEntry, path, nth);
        expect(
          problemOf(() => verified(entries.with(i, changedEntry))),
          `${i} ${path}`,
        ).not.toBe('none');
      }),
      { numRuns: 600 },
    );
  });

  it('is refused for another user, and on top of another history', () => {
    expect(problemOf(() => verified(entries, emptyDeviceLog('bob')))).toBe('hash');
    const other = verified(added(new DeviceLogWriter('alice'), tablet).entries);
    expect(problemOf(() => verified(entries.slice(1), other))).toBe('chain');
  });
});

describe('a service that writes the log as it likes', () => {
  const one = () => added(new DeviceLogWriter('alice'), phone, tablet);

  it('cannot add a device that the root key does not certify', () => {
    const log = one();
    added(log, makeDevice(primitives, 'alice', 'phantom'));
    expect(problemOf(() => verified(log.entries))).toBe('root-key');
    const forged = one();
    const { keys } = makeDevice(primitives, 'alice', 'phantom');
    forged.added({ ...keys, certificate: { ...phone.sealer.certificate } });
    expect(problemOf(() => verified(forged.entries))).toBe('certificate');
  });

  it('cannot bring a revoked device back, under the same name or with other keys', () => {
    const log = one();
    log.revoked(tablet.keys, unsignedRevocation(RevokedBy.OPERATOR));
    expect(problemOf(() => verified(added(log, tablet).entries))).toBe('device');
    const other = one();
    other.revoked(tablet.keys, unsignedRevocation(RevokedBy.OPERATOR));
    expect(problemOf(() => verified(added(other, makeDevice(primitives, 'alice', 'tablet', rootKey)).entries))).toBe(
      'device',
    );
    const again = one();
    again.revoked(tablet.keys, unsignedRevocation(RevokedBy.OPERATOR));
    again.recertified({ ...tablet.keys, certificate: tablet.sealer.certificate });
    expect(problemOf(() => verified(again.entries))).toBe('device');
  });

  it('cannot give a device other keys', () => {
    const log = one();
    const swapped = makeDevice(primitives, 'alice', 'tablet', rootKey);
    log.recertified({ ...swapped.keys, certificate: swapped.sealer.certificate });
    expect(problemOf(() => verified(log.entries))).toBe('device');
  });

  it("cannot pass a revocation off as the user's, or as that of a change that never was", () => {
    const forged = one();
    const rootless = createRootKey(primitives);
    forged.revoked(tablet.keys, signedRevocation(primitives, rootless, tablet.keys, 'phone'));
    expect(problemOf(() => verified(forged.entries))).toBe('revocation');
    const ofAnother = one();
    ofAnother.revoked(tablet.keys, signedRevocation(primitives, rootKey, phone.keys, 'phone'));
    expect(problemOf(() => verified(ofAnother.entries))).toBe('revocation');
    const unchanged = one();
    unchanged.revoked(tablet.keys, unsignedRevocation(RevokedBy.ROOT_KEY_CHANGE));
    expect(problemOf(() => verified(unchanged.entries))).toBe('revocation');
    const operators = one();
    operators.revoked(tablet.keys, { ...unsignedRevocation(RevokedBy.OPERATOR), revokingDeviceId: 'phone' });
    expect(problemOf(() => verified(operators.entries))).toBe('malformed');
  });

  it('cannot change the root key without the new one, at another moment, or back to a former one', () => {
    const at = (deviceListVersion: bigint, signer = nextRootKey) => {
      const change = rootKeyChange(primitives, 'alice', { previous: rootKey, next: nextRootKey, deviceListVersion });
      const { newSignature } = rootKeyChange(primitives, 'alice', {
        previous: rootKey,
        next: signer,
        deviceListVersion,
      });
      return { ...change, newSignature };
    };
    const problem = (change: ReturnType<typeof at>) => {
      const log = one();
      log.rootKeyChanged(change);
      return problemOf(() => verified(log.entries));
    };
    expect(problem(at(2n))).toBe('none');
    expect(problem(at(1n))).toBe('root-key-change');
    expect(problem(at(2n, thirdRootKey))).toBe('root-key-change');
    expect(problem({ ...at(2n), previousSignature: at(2n).newSignature })).toBe('root-key-change');
    expect(problem({ ...at(2n), previousRootKey: thirdRootKey.publicKey })).toBe('root-key-change');
    const back = changed(one(), rootKey);
    changed(back, nextRootKey, rootKey);
    expect(problemOf(() => verified(back.entries))).toBe('root-key-change');
    const first = new DeviceLogWriter('alice');
    first.rootKeyChanged(
      rootKeyChange(primitives, 'alice', { previous: rootKey, next: nextRootKey, deviceListVersion: 0n }),
    );
    expect(problemOf(() => verified(first.entries))).toBe('root-key-change');
  });

  it('cannot hide anything in parts that an entry of the kind has not', () => {
    const base = one().entries;
    const hidden = [
      { revocation: { $typeName: 'keytrail.identitykeys.v1.DeviceRevocation' as const, ...unsignedRevocation(0) } },
      { recordedAt: { ...timestampFromMs(0), nanos: 1 } },
      { kind: DeviceLogKind.UNSPECIFIED },
    ];
    for (const part of hidden) {
      const entry = create(DeviceLogEntrySchema, { ...(base[1] as DeviceLogEntry), ...part });
      expect(problemOf(() => verified(base.with(1, entry)))).toBe('malformed');
    }
  });
});

describe('a device list', () => {
  const log = added(new DeviceLogWriter('alice'), phone, tablet, watch);
  log.revoked(watch.keys, unsignedRevocation(RevokedBy.OPERATOR));
  const state = verified(log.entries);
  const listed = (device: TestDevice, addedInVersion: bigint) => ({ ...device.listed, addedInVersion });
  const list = create(DeviceListSchema, {
    userId: 'alice',
    version: 4n,
    rootKey: rootKey.publicKey,
    logHead: log.head,
    devices: [listed(phone, 1n), listed(tablet, 2n), { ...listed(watch, 3n), revokedAt: timestampFromMs(0) }],
  });
  const compared = (change: Partial<typeof list>) =>
    problemOf(() => compareDeviceList(state, create(DeviceListSchema, { ...list, ...change })));

  it('is what its log amounts to, with or without revoked devices', () => {
    expect(compared({})).toBe('none');
    expect(compared({ devices: list.devices.slice(0, 2) })).toBe('none');
  });

  it('is refused with another head, as another version, or under another root key', () => {
    expect(compared({ logHead: entries[3]?.hash as Uint8Array })).toBe('fork');
    expect(compared({ logHead: new Uint8Array() })).toBe('fork');
    expect(compared({ version: 3n })).toBe('list');
    expect(compared({ rootKey: nextRootKey.publicKey })).toBe('list');
  });

  it('is refused with a device more, one less, one twice, one brought back, or one with other keys', () => {
    const [first, second, third] = list.devices as [never, never, never];
    expect(compared({ devices: [...list.devices, listed(laptop, 5n)] })).toBe('list');
    expect(compared({ devices: [first] })).toBe('list');
    expect(compared({ devices: [first, first, second, third] })).toBe('list');
    expect(compared({ devices: [first, second, listed(watch, 3n)] })).toBe('list');
    expect(compared({ devices: [first, { ...listed(tablet, 2n), revokedAt: timestampFromMs(0) }, third] })).toBe(
      'list',
    );
    const swapped = makeDevice(primitives, 'alice', 'tablet', rootKey);
    expect(compared({ devices: [first, listed(swapped, 2n), third] })).toBe('list');
    expect(
      compared({ devices: [first, { ...listed(tablet, 2n), certificate: phone.sealer.certificate }, third] }),
    ).toBe('list');
  });
});

/** The path of every field that is set below a message. */
function paths(schema: DescMessage, message: Message): string[] {
  const record = message as unknown as Record<string, unknown>;
  return schema.fields.flatMap((field) => {
    const value = record[field.localName];
    if (field.fieldKind !== 'message') return [field.localName];
    if (value === undefined) return [];
    return paths(field.message, value as Message).map((path) => `${field.localName}.${path}`);
  });
}

function touched(entry: DeviceLogEntry, path: string, nth: number): DeviceLogEntry {
  const copy = clone(DeviceLogEntrySchema, entry);
  const names = path.split('.');
  const last = names.pop() as string;
  const owner = names.reduce<Record<string, unknown>>(
    (at, name) => at[name] as Record<string, unknown>,
    copy as unknown as Record<string, unknown>,
  );
  const value = owner[last];
  if (value instanceof Uint8Array) {
    owner[last] = value.length === 0 ? Uint8Array.of(nth) : flipped(value, nth);
  } else if (typeof value === 'string') owner[last] = `${value}x`;
  else owner[last] = typeof value === 'bigint' ? value + BigInt(1 + nth) : Number(value) + 1 + nth;
  return copy;
}

function flipped(bytes: Uint8Array, nth: number): Uint8Array {
  const bit = nth % (bytes.length * 8);
  return bytes.with(bit >> 3, (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))) as Uint8Array;
}

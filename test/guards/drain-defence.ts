import type { Guard } from './guard.ts';

const callers = 'services/identity-keys/test/callers.test.ts';
const strangers = 'services/identity-keys/test/strangers.test.ts';
const byUser = 'services/identity-keys/test/claims-by-user.test.ts';
const limits = 'services/identity-keys/test/claim-limits.test.ts';
const policy = 'services/identity-keys/test/claim-policy.test.ts';
const redisLimits = 'services/identity-keys/test/redis-limits.test.ts';
const claims = 'services/identity-keys/src/store/claims.ts';
const taking = 'services/identity-keys/src/take-bundles.ts';
const callingStanding = 'services/identity-keys/src/rpc/calling-standing.ts';
const scripts = 'services/identity-keys/src/store/redis-limits.ts';

/** I4 and I9: pools that nobody can drain unnoticed, and who may know whose devices. */
export const drainDefence: readonly Guard[] = [
  {
    name: 'device-lists-for-those-who-share',
    invariant: 'I9',
    what: 'A stranger gets the answer that a user without devices gets (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/get-devices.ts',
        find: "userIds.map((userId) => (known.has(userId) ? userId : ''))",
        replace: "userIds.map((userId) => (known.size >= 0 ? userId : ''))",
      },
    ],
    test: {
      file: strangers,
      name: 'a stranger gets the same bytes for a user with devices as for one that does not exist (grpc)',
    },
  },
  {
    name: 'active-callers-claim',
    invariant: 'I4',
    what: 'A revoked device, or one that is not registered, takes no prekeys (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/claim-prekey-bundles.ts',
        find: 'await refuseInactive(parts.standings, call);',
        replace: '',
      },
    ],
    test: { file: callers, name: 'claims nothing (grpc)' },
  },
  {
    name: 'revoked-devices-read-no-lists',
    invariant: 'I9',
    what: 'A revoked device reads no device lists and logs (check in code).',
    switchOff: [
      {
        file: callingStanding,
        find: '  refuseRevoked(caller, revokedAt ?? null);\n  return registered',
        replace: '  return registered || revokedAt',
      },
    ],
    test: {
      file: callers,
      name: 'claims nothing and reads no lists, also not of those with whom its user shares (grpc)',
    },
  },
  {
    name: 'unregistered-devices-know-their-user',
    invariant: 'I9',
    what: 'A device that is not registered reads of its own user alone, whoever its user shares a conversation with (check in code).',
    switchOff: [
      {
        file: callingStanding,
        find: 'return registered ? sharing',
        replace: 'return caller.deviceId ? sharing',
      },
    ],
    test: { file: callers, name: 'reads the list and the log of its own user, and of nobody else' },
  },
  {
    name: 'no-standing-from-before',
    invariant: 'I9',
    what: 'That a device is not registered is not taken from a look-up on its way: it counts from its registration.',
    switchOff: [
      {
        file: 'services/identity-keys/src/standings.ts',
        find: 'return isGood(standing) ? standing : ask(key, device);',
        replace: 'return standing;',
      },
    ],
    test: { file: callers, name: 'is never a no of before: who joins a look-up that came too early looks again' },
  },
  {
    name: 'no-is-never-remembered',
    invariant: 'I9',
    what: 'That two users share nothing is neither remembered nor taken from a call on its way: a conversation counts from its commit.',
    switchOff: [
      {
        file: 'services/identity-keys/src/sharing.ts',
        find: 'const open = others.filter((other) => !known.has(other));',
        replace: 'const open = others.filter((other) => !known.has(other) && !asking.has(pairOf(userId, other)));',
      },
    ],
    test: { file: strangers, name: 'does not take its no: it may have looked before the conversation began' },
  },
  {
    name: 'reasons-for-those-who-share',
    invariant: 'I9',
    what: 'Why a device has no bundle is told to those who share a conversation with its user; strangers get one answer for all (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/device-messages.ts',
        find: 'row.signed_prekey_id === null && (!known || row.not_permitted)',
        replace: 'row.signed_prekey_id === null && row.not_permitted',
      },
    ],
    test: { file: byUser, name: 'is one answer to strangers, and told to those who share a conversation (grpc)' },
  },
  {
    name: 'claim-of-one-device-list',
    invariant: 'I4',
    what: 'A claim by users takes from the devices of the list that it names, or takes nothing (compare of versions in the statement).',
    switchOff: [{ file: claims, find: 'fresh: ` AND NOT ', replace: 'fresh: ` OR ' }],
    test: {
      file: byUser,
      name: 'does not mix devices and versions of different lists: a list that moved takes nothing, at once or waiting',
    },
  },
  {
    name: 'limits-all-or-nothing',
    invariant: 'I4',
    what: 'A claim that one limit refuses is charged to none (one script in Redis).',
    switchOff: [
      {
        file: scripts,
        find: "if refusedBy > 0 then return {refusedBy, wait == math.huge and '' or string.format('%.0f', wait)} end\nfor i = 1, key do",
        replace:
          "local answer = {refusedBy, wait == math.huge and '' or string.format('%.0f', wait)}\nif wait == math.huge then return answer end\nfor i = 1, key do",
      },
      { file: scripts, find: "\nend\nreturn {0, ''}`;", replace: '\nend\nreturn answer`;' },
    ],
    test: { file: redisLimits, name: 'what is refused costs nothing in any bucket' },
  },
  {
    name: 'limit-per-caller',
    invariant: 'I4',
    what: 'A user claims a bounded number of bundles, with all its devices and over all replicas (GCRA in Redis).',
    switchOff: [
      {
        file: 'services/identity-keys/src/domain/claim-bill.ts',
        find: "scope: 'caller', rate: rates.caller,",
        replace: "scope: 'caller', rate: undefined,",
      },
    ],
    test: {
      file: limits,
      name: 'caller counts bundles, over devices and replicas, and names itself and how long to wait (grpc)',
    },
  },
  {
    name: 'limit-per-target',
    invariant: 'I4',
    what: 'Strangers together take a bounded number of bundles of a device (GCRA in Redis).',
    switchOff: [
      {
        file: 'services/identity-keys/src/domain/claim-bill.ts',
        find: 'devices.filter((device) => !known.has(device.userId))',
        replace: 'devices.filter((device) => known.has(device.userId) && device.userId === "")',
      },
    ],
    test: { file: limits, name: 'forty strangers at once, on two replicas, get as many bundles as the target gives' },
  },
  {
    name: 'retries-are-free',
    invariant: 'I4',
    what: 'What a repetition of a claim paid is given back.',
    switchOff: [{ file: taking, find: 'if (taken.repeated) await paid.refund();', replace: '' }],
    test: { file: limits, name: 'costs nothing, and is answered when the limits are reached' },
  },
  {
    name: 'retries-pass-the-limits',
    invariant: 'I4',
    what: 'A claim that was recorded is answered again also when the limits are reached.',
    switchOff: [
      {
        file: taking,
        find: '  if (payment.allowed) return payment;\n  const recorded = await recordedBefore(parts, taking);\n  if (recorded) return recorded;',
        replace: '  if (payment.allowed) return payment;',
      },
    ],
    test: { file: limits, name: 'costs nothing, and is answered when the limits are reached' },
  },
  {
    name: 'exempt-for-the-requester-alone',
    invariant: 'I4',
    what: 'A key request exempts the claim of its requester by a holder to whom it was offered, and no other (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/claim-exemption.ts',
        find: 'offered && requester?.userId === device.userId && requester.deviceId === device.deviceId',
        replace: 'offered || requester?.userId === device.userId',
      },
    ],
    test: {
      file: limits,
      name: 'is not exempt when the request is not open or offered to somebody else, by another device, or for another one',
    },
  },
  {
    name: 'exempt-three-times',
    invariant: 'I4',
    what: 'A key request exempts three claims of a holder, and no more (GCRA in Redis).',
    switchOff: [
      {
        file: 'services/identity-keys/src/claim-exemption.ts',
        find: 'if (!payment.allowed) return false;',
        replace: 'if (!payment.allowed) return true;',
      },
    ],
    test: {
      file: limits,
      name: 'is exempt three times for each holder, with free repetitions, at once or one after the other, however the request is spelt',
    },
  },
  {
    name: 'nothing-of-users-without-devices',
    invariant: 'I9',
    what: 'A claim by users tells strangers nothing of a user without active devices (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/claim-prekey-bundles.ts',
        find: 'forbidden.has(user.user_id) || !told.has(user.user_id) ?',
        replace: 'forbidden.has(user.user_id) ?',
      },
    ],
    test: {
      file: byUser,
      name: 'tells strangers nothing of a user whose devices are all revoked: it looks like one that does not exist',
    },
  },
  {
    name: 'claims-by-policy',
    invariant: 'I4',
    what: 'Where the policy wants a shared conversation or a permission, others take nothing (check in code, applied in the statement).',
    switchOff: [
      {
        file: 'services/identity-keys/src/claim-policy.ts',
        find: 'return new Set(strangers.filter((userId) => !permitted.has(userId)));',
        replace: 'return new Set(strangers.filter((userId) => permitted.has(userId) && userId === ""));',
      },
    ],
    test: {
      file: policy,
      name: 'who may not claim gets one answer for what exists and for what does not, byte for byte (grpc)',
    },
  },
  {
    name: 'closed-without-redis',
    invariant: 'I4',
    what: 'Where the deployment wants it so, claims are refused while the limits cannot be looked up.',
    switchOff: [
      {
        file: 'services/identity-keys/src/claim-limits.ts',
        find: "if (withoutRedis === 'closed')",
        replace: "if (withoutRedis === 'closed' && bill.length === 0)",
      },
    ],
    test: {
      file: limits,
      name: 'claims are refused, and recorded ones still answered; when it is back, it counts again',
    },
  },
  {
    name: 'one-drain-notice-an-hour',
    invariant: 'I4',
    what: 'A drain is told once per device and hour, over all replicas (one row per device).',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/drain-notices.ts',
        find: "   WHERE n.noticed_at <= now() - $3 * interval '1 millisecond'\n",
        replace: '   WHERE $3 > 0\n',
      },
    ],
    test: {
      file: limits,
      name: 'a drain is an event, once per device over all replicas, whether by the limit or by an empty pool',
    },
  },
];

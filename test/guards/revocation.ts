import type { Guard } from './guard.ts';

const attach = 'services/presence/src/rpc/attach.ts';
const follow = 'services/presence/src/jobs/follow-revocations.ts';
const presenceTest = 'services/presence/test/revocation.test.ts';
const sessionTest = 'services/session/test/revocation-pull.test.ts';
const conversationTest = 'services/conversation/test/revocations.test.ts';

/** I9: a revoked device is out within a stated bound, also when events are lost. */
export const revocation: readonly Guard[] = [
  {
    name: 'commit-refuses-revoked-device',
    invariant: 'I9',
    what: 'A session that covers a device which was revoked since it was checked is not committed (check in the transaction that commits).',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/refuse-revoked.ts',
        find: 'if (unexpected.length > 0) throw',
        replace: 'if (unexpected.length > 10_000) throw',
      },
    ],
    test: { file: conversationTest, name: 'at a rotation is refused with the device' },
  },
  {
    name: 'revocation-waits-for-commits',
    invariant: 'I9',
    what: 'A revocation waits for commits that looked into the list before it, so that it finds their conversations (advisory lock).',
    switchOff: [
      {
        file: 'services/conversation/src/store/revoked-devices.ts',
        find: '  await tx.query(holdBackCommits, []);\n',
        replace: '',
      },
    ],
    test: {
      file: conversationTest,
      name: 'is waited for by the revocation when it has looked into the list, so that it is found afterwards',
    },
  },
  {
    name: 'revocation-closes-the-epoch',
    invariant: 'I9',
    what: 'A revocation refuses messages under the sessions that the device has, until the rotation (the check of the database, which holds the two together, is off too).',
    switchOff: [
      {
        file: 'services/conversation/src/store/identity-changes.ts',
        find: 'SET rotation_due = 4, min_send_epoch = c.epoch + 1, writer_build',
        replace: 'SET rotation_due = 4, writer_build',
      },
      {
        file: 'services/conversation/prisma/migrations/20261123010000_device_revocations/migration.sql',
        find: 'CHECK ((rotation_due IN (2, 4)) = (min_send_epoch = epoch + 1))',
        replace: 'CHECK (true)',
      },
    ],
    test: {
      file: conversationTest,
      name: "makes a rotation due in its user's conversations and no others, and what the device could read is not sent any more",
    },
  },
  {
    name: 'revoked-device-gets-no-answers',
    invariant: 'I9',
    what: 'conversation answers a revoked device nothing: no log, no roster, no change (check before each method).',
    switchOff: [
      {
        file: 'services/conversation/src/rpc/for-active-devices.ts',
        find: "if (caller.kind === 'device' && since)",
        replace: "if (caller.kind === 'device' && since && since.getTime() < 0)",
      },
    ],
    test: { file: conversationTest, name: 'keeps the device from reading and changing anything, on both wires' },
  },
  {
    name: 'conversation-pulls-lost-revocations',
    invariant: 'I9',
    what: 'A revocation whose event was lost reaches the conversations by the pull.',
    switchOff: [
      {
        file: 'packages/events/src/revocations.ts',
        find: 'const fresh = await note(tx, told);',
        replace: 'const fresh = await note(tx, told.slice(told.length));',
      },
    ],
    test: {
      file: conversationTest,
      name: 'is pulled, and reaches the conversations like one that was told',
    },
  },
  {
    name: 'session-pulls-lost-revocations',
    invariant: 'I9',
    what: "A revocation whose event was lost reaches session's list, and so the hot read, by the pull.",
    switchOff: [
      {
        file: 'packages/events/src/revocations.ts',
        find: 'const fresh = await note(tx, told);',
        replace: 'const fresh = await note(tx, told.slice(told.length));',
      },
    ],
    test: {
      file: sessionTest,
      name: 'is completed by the pull when no event told: reads of the device are refused from then on',
    },
  },
  {
    name: 'requests-of-revoked-devices-end',
    invariant: 'I9',
    what: 'An open key request of a revoked device ends, by the local list alone.',
    switchOff: [
      {
        file: 'services/session/src/dispatch-key-request.ts',
        find: 'if (rows.requesterRevoked)',
        replace: 'if (rows.requesterRevoked && rows.now < request.requestedAt)',
      },
    ],
    test: { file: sessionTest, name: "the device's open key requests end, although its peers have not heard of it" },
  },
  {
    name: 'offers-to-revoked-devices-are-void',
    invariant: 'I9',
    what: 'A revoked device is shown no offers, also those that were made before.',
    switchOff: [
      {
        file: 'services/session/src/store/key-requests.ts',
        find: 'AND NOT EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $1 AND r.device_id = $2)',
        replace: '',
      },
    ],
    test: { file: sessionTest, name: 'what was offered to the device is void, and offered to the next holder at once' },
  },
  {
    name: 'attach-asks-for-the-device',
    invariant: 'I9',
    what: 'A device that is not registered, or revoked, is not attached.',
    switchOff: [{ file: attach, find: "if (standing.kind === 'refused') throw standing.refusal;", replace: '' }],
    test: { file: presenceTest, name: 'is not attached again, nor is one that was never registered' },
  },
  {
    name: 'revoked-stream-is-ended-elsewhere',
    invariant: 'I9',
    what: "A revoked device's stream ends on whichever gateway holds it.",
    switchOff: [
      {
        file: 'services/presence/src/gateway.ts',
        find: "if (errand === 'revoked') attachment?.end('revoked');",
        replace: '',
      },
    ],
    test: {
      file: presenceTest,
      name: "loses its stream on whichever gateway holds it, and the user's other devices keep theirs",
      hangs: true,
    },
  },
  {
    name: 'lost-revocation-ends-stream',
    invariant: 'I9',
    what: 'A stream ends though the event of the revocation was lost, by the pull of its gateway.',
    switchOff: [
      {
        file: follow,
        find: "if (device) gateway.attachments.of(device.userId, device.deviceId)?.end('revoked');",
        replace: '',
      },
    ],
    test: {
      file: presenceTest,
      name: 'loses its stream though its event was lost, with 123456 revocations before',
      hangs: true,
    },
  },
  {
    name: 'unknown-device-is-asked-for-again',
    invariant: 'I9',
    what: 'A device that attached while identity-keys could not be asked is asked for until the answer is there.',
    switchOff: [
      {
        file: 'services/presence/src/jobs/ask-again.ts',
        find: "if (standing.kind === 'refused') attachment.end(standing.why);",
        replace: '',
      },
    ],
    test: {
      file: presenceTest,
      name: 'that attached while identity-keys was away loses its stream once it can be asked',
      hangs: true,
    },
  },
  {
    name: 'erased-user-is-told-to-all-gateways',
    invariant: 'I9',
    what: "An erased user's streams end on every gateway, also when Redis has lost their entries.",
    switchOff: [
      { file: 'services/presence/src/consumers/erase-users.ts', find: 'gateway.endErased(requested);', replace: '' },
    ],
    test: {
      file: 'services/presence/test/presence.test.ts',
      name: 'loses the streams on every gateway, and has no entry, when Redis was emptied',
      hangs: true,
    },
  },
  {
    name: 'revocations-outlive-the-erasure',
    invariant: 'I9',
    what: 'The list of revocations tells of an erased user as long as the erasure is remembered: whoever reads it late misses nothing.',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/erase-own-rows.ts',
        find: "['recoveries', 'device_log', 'root_keys', 'users']",
        replace: "['recoveries', 'revocations', 'device_log', 'root_keys', 'users']",
      },
    ],
    test: {
      file: 'services/identity-keys/test/erasure.test.ts',
      name: 'leaves the revocations in their list as long as it names the user: who reads late learns of them',
    },
  },
  {
    name: 'ended-stream-leaves-no-entry',
    invariant: 'I9',
    what: 'The entry of a stream that has ended is not written again, however slowly its device reads it to the end.',
    switchOff: [
      { file: 'services/presence/src/gateway.ts', find: '.filter(({ ended }) => !ended)', replace: '' },
      { file: 'services/presence/src/gateway.ts', find: 'if (attachment.ended || this', replace: 'if (this' },
    ],
    test: {
      file: 'services/presence/test/presence.test.ts',
      name: 'whose device does not read its stream to the end gets no entry again',
    },
  },
  {
    name: 'revoked-device-gets-no-queue',
    invariant: 'I9',
    what: 'What was queued for a device when it was revoked is not given to it.',
    switchOff: [
      {
        file: 'services/presence/src/domain/attachment.ts',
        find: "if (why === 'revoked' || why === 'not-registered') this.#queue.length = 0;",
        replace: '',
      },
    ],
    test: {
      file: 'services/presence/test/presence.test.ts',
      name: 'a revoked device gets nothing of what was queued for it, and one that is only to attach elsewhere gets all of it',
    },
  },
  {
    name: 'standings-are-asked-for-in-bounds',
    invariant: 'I9',
    what: 'A crowd that attaches does not flood identity-keys: past a number, devices attach unknown and are asked for later.',
    switchOff: [
      {
        file: 'services/presence/src/device-standing.ts',
        find: "if (asking >= most) return { kind: 'unknown' };",
        replace: '',
      },
    ],
    test: {
      file: presenceTest,
      name: 'comes without it, and without waiting, to whoever attaches while as many are being asked for as may be',
    },
  },
  {
    name: 'stream-ends-with-its-token',
    invariant: 'I9',
    what: 'A stream does not outlive the token that opened it.',
    switchOff: [
      {
        file: 'services/presence/src/domain/attachments.ts',
        find: "if (attachment.tokenExpiresAtMs <= now) attachment.end('token-expired');",
        replace: 'void attachment;',
      },
    ],
    test: {
      file: presenceTest,
      name: 'a stream ends when its token expires, and goes on with a fresh one',
      hangs: true,
    },
  },
];

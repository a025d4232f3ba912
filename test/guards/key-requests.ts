import type { Guard } from './guard.ts';

const migration = 'services/session/prisma/migrations/20261101000000_sessions/migration.sql';
const store = 'services/session/src/store/key-requests.ts';
const fulfilling = 'services/session/src/accept-fulfilments.ts';
const sql = 'services/session/test/straight-sql.test.ts';
const fulfilment = 'services/session/test/fulfilment.test.ts';
const properties = 'services/session/test/key-request.property.test.ts';
const parties = 'must name requester, holder and attempt, and be signed by the registered key';

const unsigned = {
  file: fulfilling,
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is a text of the source
  find: 'if (!held.get(result)) return signatureInvalid(`${result.sent.path}.signature`);',
  replace: '',
};

/** I6, no lost request; I7, one accepted envelope per attempt. */
export const keyRequests: readonly Guard[] = [
  {
    name: 'one-open-request',
    invariant: 'I6',
    what: 'A device has one open request for a session (partial unique index).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE UNIQUE INDEX key_requests_one_open ON',
        replace: 'CREATE INDEX key_requests_one_open ON',
      },
    ],
    test: { file: sql, name: 'refuses a second open request of a device for a session' },
  },
  {
    name: 'request-ends-with-reason',
    invariant: 'I6',
    what: 'A request cannot end without when and why, nor say why without having ended (check).',
    switchOff: [
      {
        file: migration,
        find: `CHECK ((state IN ('WAITING_FOR_HOLDER', 'OFFERED')) = (ended_at IS NULL)
    AND (ended_at IS NULL) = (ended_because IS NULL))`,
        replace: 'CHECK (true)',
      },
    ],
    test: { file: sql, name: 'refuses a request that ended without saying why, or says why without having ended' },
  },
  {
    name: 'ended-request-stays-ended',
    invariant: 'I6',
    what: 'Nothing moves a request that has ended (state machine).',
    switchOff: [
      {
        file: 'services/session/src/domain/key-request.ts',
        find: 'if (!isOpen(request.state)) return request;',
        replace: '',
      },
    ],
    test: { file: properties, name: 'never leaves an end, never loses its next look, and counts attempts up' },
  },
  {
    name: 'stale-decision-is-void',
    invariant: 'I6',
    what: 'A decision on a request that somebody else changed meanwhile writes nothing (compare-and-set on its version).',
    switchOff: [
      {
        file: store,
        find: 's.key_request_id = k.key_request_id AND s.was = k.version',
        replace: 's.key_request_id = k.key_request_id AND s.was > 0',
      },
    ],
    test: { file: sql, name: 'a decision on a request that has changed since is void' },
  },
  {
    name: 'sweep-finds-due-requests',
    invariant: 'I6',
    what: 'With every event lost, the sweep still brings each request to its end.',
    switchOff: [
      {
        file: 'services/session/src/jobs/sweep-key-requests.ts',
        find: 'await claimDueKeyRequests(db, requestsAtOnce, claimLeaseMs);',
        replace: '(await claimDueKeyRequests(db, requestsAtOnce, claimLeaseMs)).slice(requestsAtOnce);',
      },
    ],
    test: {
      file: 'services/session/test/sweep.test.ts',
      name: 'with every event lost, a request still comes to its end',
      hangs: true,
    },
  },
  {
    name: 'waiting-request-resumes',
    invariant: 'I6',
    what: 'When a holder attaches, the requests that wait for it go on at once.',
    switchOff: [
      {
        file: 'services/session/src/consumers/resume-for-holder.ts',
        find: 'if (!device) return;',
        replace: 'if (device) return;',
      },
    ],
    test: {
      file: fulfilment,
      name: 'waits when nobody is online, says so, wants a holder, and goes on when one attaches',
      hangs: true,
    },
  },
  {
    name: 'request-waits-for-holder',
    invariant: 'I6',
    what: 'A request is not given up because nobody who could help is online (state machine).',
    switchOff: [
      {
        file: 'services/session/src/domain/key-request.ts',
        find: "  if (askable.length > 0) return end('attempts_exhausted');\n",
        replace: "  if (request.attempt >= 0) return end('attempts_exhausted');\n",
      },
    ],
    test: {
      file: properties,
      name: 'never gives a request up while somebody who can help has not been asked, within the attempts',
    },
  },
  {
    name: 'outbox-until-stored',
    invariant: 'I6',
    what: 'An event leaves the outbox only once JetStream has stored it.',
    switchOff: [
      {
        file: 'packages/events/src/relay.ts',
        find: 'return rows.length === 0 ? { published: [] } : publishInOrder(bus, rows);',
        replace: 'return { ...(await publishInOrder(bus, rows)), published: rows.map(({ seq }) => seq) };',
      },
    ],
    test: {
      file: 'packages/events/test/unstored.test.ts',
      name: 'an event that JetStream does not store stays in the outbox, and is published when it does',
    },
  },
  {
    name: 'event-has-one-effect',
    invariant: 'I6',
    what: 'An event that is delivered twice has one effect (inbox row in the transaction of the handler).',
    switchOff: [
      {
        file: 'packages/events/src/consumer.ts',
        find: 'if (await receiveOnce(tx, consumer.name, event.id)) await run(event, tx);',
        replace: 'await receiveOnce(tx, consumer.name, event.id); await run(event, tx);',
      },
    ],
    test: {
      file: 'packages/events/test/relay.test.ts',
      name: 'a second publication that NATS no longer recognizes has no second effect',
    },
  },
  {
    name: 'one-envelope-per-attempt',
    invariant: 'I7',
    what: 'An attempt of a request has one envelope, whoever it is for (unique constraint).',
    switchOff: [
      {
        file: migration,
        find: 'CONSTRAINT envelopes_one_per_attempt UNIQUE (key_request_id, attempt)',
        replace: 'CONSTRAINT envelopes_one_per_attempt CHECK (true)',
      },
    ],
    test: { file: sql, name: 'refuses a second envelope of one attempt of a request, whoever it is for' },
  },
  {
    name: 'later-envelopes-have-a-request',
    invariant: 'I7',
    what: 'An envelope of a later attempt belongs to a request (check).',
    switchOff: [
      {
        file: migration,
        find: 'CHECK ((attempt = 0) = (key_request_id IS NULL))',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: sql, name: 'refuses a later envelope that no request asked for' },
  },
  {
    name: 'fulfilled-by-an-attempt',
    invariant: 'I7',
    what: 'A request is FULFILLED exactly when it names the attempt that it accepted (check).',
    switchOff: [
      {
        file: migration,
        find: "CHECK ((state = 'FULFILLED') = (accepted_attempt IS NOT NULL))",
        replace: 'CHECK (true)',
      },
    ],
    test: {
      file: sql,
      name: 'refuses a fulfilled request without its accepted attempt, and an accepted attempt of another end',
    },
  },
  {
    name: 'fulfilment-finds-request-open',
    invariant: 'I7',
    what: 'Of many envelopes for one attempt the first is accepted and the others are told so (check under the lock of the request; behind it the unique constraint keeps them out, as a fault).',
    switchOff: [
      {
        file: fulfilling,
        find: 'if (!isOpen(request.state)) throw keyRequestEnded(request, attempt);',
        replace: '',
      },
    ],
    test: { file: fulfilment, name: 'is accepted once of many at the same time' },
  },
  {
    name: 'only-who-was-offered',
    invariant: 'I7',
    what: 'An envelope is taken only from a device that was offered the request in this attempt (the row of the offer).',
    switchOff: [
      {
        file: store,
        find: 'o.attempt = asked.attempt AND o.user_id = $3 AND o.device_id = $4',
        replace: 'o.attempt = asked.attempt AND $3::text IS NOT NULL AND $4::text IS NOT NULL',
      },
    ],
    test: { file: fulfilment, name: 'is refused from a device that was not offered the request, holder or not' },
  },
  {
    name: 'envelope-names-its-parties',
    invariant: 'I7',
    what: 'An envelope names the requester as recipient, the caller as sealer, and its attempt (check in code).',
    switchOff: [
      {
        file: fulfilling,
        find: 'checkParties(sent, offered.request.requester, holder);',
        replace: '',
      },
    ],
    test: { file: fulfilment, name: parties },
  },
  {
    name: 'envelope-by-registered-keys',
    invariant: 'I7',
    what: "The sealer's keys in an envelope are the ones that identity-keys has of the caller (check in code; the signature, verified under the registered key, is off too).",
    switchOff: [
      {
        file: fulfilling,
        find: 'if (!equalBytes(envelope.sealerSigningKey, registered.signingKey))',
        replace: 'if (registered.signingKey.length === 0)',
      },
      unsigned,
    ],
    test: { file: fulfilment, name: parties },
  },
  {
    name: 'envelope-is-signed',
    invariant: 'I7',
    what: 'An envelope that is sent in is signed by its sealer, for this session and header (signature verification).',
    switchOff: [unsigned],
    test: { file: fulfilment, name: parties },
  },
  {
    name: 'wrong-key-is-detected',
    invariant: 'I7',
    what: 'The recipient notices a session key that is not the one the header commits to (key commitment).',
    switchOff: [
      {
        file: 'packages/crypto/src/envelope.ts',
        find: 'if (!equalBytes(keyCommitment(sessionKey, session), session.header.keyCommitment))',
        replace: 'if (sessionKey.length === 0)',
      },
    ],
    test: {
      file: 'packages/crypto/test/envelope.test.ts',
      name: 'with another session key than the header commits to is told as that',
    },
  },
  {
    name: 'rejected-sealer-is-passed-over',
    invariant: 'I7',
    what: 'After a rejection another holder is asked while there is one, not the one whose envelope was wrong.',
    switchOff: [
      {
        file: 'services/session/src/holder-views.ts',
        find: 'const rejected = rejections.get(key)?.length ?? 0;',
        replace: 'const rejected = rejections.size < 0 ? 1 : 0;',
      },
    ],
    test: { file: fulfilment, name: 'does not ask the sealer of a rejected envelope again, and counts attempts on' },
  },
];

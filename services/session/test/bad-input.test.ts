import { randomUUID } from 'node:crypto';
import { create, type DescMethodUnary } from '@bufbuild/protobuf';
import { TimestampSchema } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { DeclineReason, KeyRequestKind, KeyRequestRole, SessionService, SignedHeaderSchema } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, makeSession, reseal } from './people.ts';
import { call, refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld();
}, 60_000);
afterAll(() => world.stop());

const alice = createPerson('alice');
const device = alice.addDevice();
const made = makeSession({ initiator: device, covered: [device] });
const envelope = reseal(made, device, device, 1);
const session = { conversationId: randomUUID(), sessionId: 's' };
const { method } = SessionService;

/** One more than an attempt can be. */
const tooLarge = 2 ** 31;
const certifiedAt = (seconds: bigint) => ({
  sealerCertificate: { ...envelope.sealerCertificate, certifiedAt: create(TimestampSchema, { seconds }) },
});
const placeToken = (at: string) => Buffer.from(`${at} ${randomUUID()}`).toString('base64url');

type Bad = [method: DescMethodUnary, input: object, field: string];
const forDevices: Bad[] = [
  [method.getInitialSession, {}, 'conversation_id'],
  [method.getInitialSession, { ...session, conversationId: 'no-uuid' }, 'conversation_id'],
  [method.getInitialSession, { ...session, sessionId: 'a b' }, 'session_id'],
  [method.getInitialSession, { ...session, sessionId: 'x'.repeat(129) }, 'session_id'],
  [method.requestKey, { ...session, kind: KeyRequestKind.MISSING }, 'request_id'],
  [method.requestKey, { ...session, requestId: randomUUID() }, 'kind'],
  [method.requestKey, { ...session, requestId: randomUUID(), kind: 77 }, 'kind'],
  [method.requestKey, { requestId: randomUUID(), kind: KeyRequestKind.MISSING }, 'conversation_id'],
  [method.fulfillKeyRequest, { requestId: randomUUID(), keyRequestId: 'x', attempt: 1, envelope }, 'key_request_id'],
  [method.fulfillKeyRequest, { requestId: randomUUID(), keyRequestId: randomUUID(), envelope }, 'attempt'],
  [method.fulfillKeyRequest, { requestId: randomUUID(), keyRequestId: randomUUID(), attempt: 1 }, 'envelope'],
  [
    method.fulfillKeyRequest,
    {
      requestId: randomUUID(),
      keyRequestId: randomUUID(),
      attempt: 1,
      envelope: { ...envelope, kemCiphertext: new Uint8Array(3) },
    },
    'envelope.kem_ciphertext',
  ],
  [
    method.requestKey,
    { ...session, requestId: randomUUID(), kind: KeyRequestKind.REJECTED, rejectedAttempt: tooLarge },
    'rejected_attempt',
  ],
  [
    method.fulfillKeyRequest,
    { requestId: randomUUID(), keyRequestId: randomUUID(), attempt: tooLarge, envelope },
    'attempt',
  ],
  ...(
    [
      ['attempt', { attempt: tooLarge }],
      ['sealer_certificate.certified_at', certifiedAt(253_370_764_800n)],
      ['sealer_certificate.certified_at', certifiedAt(-1n)],
    ] as const
  ).map(([field, changes]): Bad => {
    const request = { requestId: randomUUID(), keyRequestId: randomUUID(), attempt: 1 };
    return [method.fulfillKeyRequest, { ...request, envelope: { ...envelope, ...changes } }, `envelope.${field}`];
  }),
  [
    method.declineOffer,
    { keyRequestId: randomUUID(), attempt: tooLarge, reason: DeclineReason.NOT_TRUSTED },
    'attempt',
  ],
  [method.ackKey, { ...session, attempt: tooLarge }, 'attempt'],
  [method.ackKey, { ...session, attempt: 2 ** 32 - 1 }, 'attempt'],
  [method.declineOffer, { keyRequestId: '', attempt: 1, reason: DeclineReason.NOT_TRUSTED }, 'key_request_id'],
  [method.declineOffer, { keyRequestId: randomUUID(), reason: DeclineReason.NOT_TRUSTED }, 'attempt'],
  [method.declineOffer, { keyRequestId: randomUUID(), attempt: 1 }, 'reason'],
  [method.ackKey, { sessionId: 's' }, 'conversation_id'],
  [method.cancelKeyRequest, { keyRequestId: 'no-uuid' }, 'key_request_id'],
  [method.listKeyRequests, {}, 'role'],
  [method.listKeyRequests, { role: KeyRequestRole.HOLDER, page: { size: 201 } }, 'page.size'],
  [method.listKeyRequests, { role: KeyRequestRole.REQUESTER, page: { token: 'never issued' } }, 'page.token'],
  [
    method.listKeyRequests,
    { role: KeyRequestRole.REQUESTER, page: { token: placeToken('999999999999999') } },
    'page.token',
  ],
];

const request = made.request;
const upload = request.session;
const forConversation: Bad[] = [
  [method.storeSession, {}, 'conversation_id'],
  [method.storeSession, { ...request, initiator: undefined }, 'initiator'],
  [method.storeSession, { ...request, rosterDevices: [] }, 'roster_devices'],
  [method.storeSession, { ...request, session: { ...upload, envelopes: [] } }, 'session.envelopes'],
  [
    method.storeSession,
    {
      ...request,
      session: {
        ...upload,
        signedHeader: create(SignedHeaderSchema, { header: new Uint8Array([1, 2, 3]), signature: new Uint8Array(64) }),
      },
    },
    'session.signed_header.header',
  ],
  [
    method.storeSession,
    { ...request, session: { ...upload, envelopes: [...(upload?.envelopes ?? []), ...(upload?.envelopes ?? [])] } },
    'session.envelopes[1].recipient',
  ],
  [method.discardSession, { ...session, sessionId: '' }, 'session_id'],
];

describe.each(['grpc', 'web'] as const)('bad input on the %s wire', (wire) => {
  it.each(forDevices.map(([desc, input, field]) => [desc.name, field, desc, input] as const))(
    '%s is INVALID_ARGUMENT with %s',
    async (_name, field, desc, input) => {
      const refusal = await refusalOf(call(world.as(device, wire), desc, input));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
    },
  );
});

describe('bad input of services', () => {
  it.each(forConversation.map(([desc, input, field]) => [desc.name, field, desc, input] as const))(
    '%s is INVALID_ARGUMENT with %s',
    async (_name, field, desc, input) => {
      const refusal = await refusalOf(call(world.asConversation, desc, input));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
    },
  );
});

import { randomUUID } from 'node:crypto';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import {
  ConversationKind,
  ConversationService,
  KeyRequestKind,
  KeyRequestRole,
  KeyRequestState,
  MemberRole,
  SessionHeaderSchema,
  SessionService,
  SignedHeaderSchema,
} from '@keytrail/contracts';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import pg from 'pg';
import type { Cast, Stage } from './stage.ts';

/** A session without its ephemeral key, by RPC and by straight SQL; and a device that no root key certifies. */
export async function theOldBug(stage: Stage, cast: Cast) {
  await withoutEphemeralKeyByRpc(stage, cast);
  await withoutEphemeralKeyBySql(stage, cast);
  await uncertifiedDevice(stage, cast);
}

function rpcAs(stage: Stage, userId: string, deviceId: string) {
  const authorization = async () => `Bearer ${await stage.constellation.issuer.token({ userId, deviceId })}`;
  const session = createGrpcTransport({ target: stage.constellation.grpcTarget('session'), authorization });
  const conversation = createGrpcTransport({ target: stage.constellation.grpcTarget('conversation'), authorization });
  return {
    session: createClient(SessionService, session),
    conversation: createClient(ConversationService, conversation),
  };
}

async function withoutEphemeralKeyByRpc(stage: Stage, { conversationId, sessionId }: Cast): Promise<void> {
  const alice = rpcAs(stage, 'alice', 'phone');
  const stored = await alice.session.getInitialSession({ conversationId, sessionId });
  const { signedHeader, envelope } = stored;
  if (!signedHeader || !envelope?.sealerCertificate) throw new Error('the stored session has no header or envelope');
  const header = fromBinary(SessionHeaderSchema, signedHeader.header);
  header.initiatorEphemeralKey = new Uint8Array();
  const refusal = await alice.conversation
    .createConversation({
      requestId: randomUUID(),
      kind: ConversationKind.GROUP,
      members: [{ userId: 'alice', role: MemberRole.ADMIN }],
      initialSession: {
        signedHeader: create(SignedHeaderSchema, {
          header: toBinary(SessionHeaderSchema, header),
          signature: signedHeader.signature,
        }),
        initiatorCertificate: envelope.sealerCertificate,
        envelopes: [envelope],
      },
    })
    .then(
      () => undefined,
      (error: unknown) => readRefusal(error),
    );
  stage.say(
    `by RPC: ${refusal?.reason} ${refusal?.fields.map((field) => `${field.field}: ${field.description}`).join('; ')}`,
  );
  stage.check(
    'a session without its ephemeral key is refused, and the field is named',
    refusal?.fields.some((field) => `${field.field} ${field.description}`.includes('initiator_ephemeral_key')) === true,
  );
}

async function withoutEphemeralKeyBySql(stage: Stage, { conversationId, sessionId }: Cast): Promise<void> {
  const database = new pg.Client({ connectionString: stage.constellation.databaseUrls.session });
  await database.connect();
  const attempt = (sql: string) =>
    database.query(sql, [conversationId, sessionId]).then(
      () => 'accepted',
      (error: Error) => error.message,
    );
  try {
    const insert = await attempt(
      `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, header, header_signature, header_hash,
         initiator_identity_key, initiator_signing_key, initiator_ephemeral_key, initiator_root_key, initiator_suite, initiator_certified_at,
         initiator_certificate_signature, key_commitment, envelopes_expected, withholdings_expected, content_digest, writer_build, created_traceparent)
       SELECT conversation_id, session_id || '.without', kind, epoch, initiator_user_id, initiator_device_id, header, header_signature, header_hash,
         initiator_identity_key, initiator_signing_key, NULL, initiator_root_key, initiator_suite, initiator_certified_at,
         initiator_certificate_signature, key_commitment, envelopes_expected, withholdings_expected, content_digest, writer_build, created_traceparent
       FROM sessions WHERE conversation_id = $1 AND session_id = $2`,
    );
    stage.say(`by SQL: ${insert}`);
    stage.check('the database refuses to insert one', insert.includes('sessions_native_is_complete'));
    const update = await attempt(
      'UPDATE sessions SET initiator_ephemeral_key = NULL WHERE conversation_id = $1 AND session_id = $2',
    );
    stage.say(`by SQL: ${update}`);
    stage.check('the database refuses to take it away', update !== 'accepted');
  } finally {
    await database.end();
  }
}

/** The device is put into the database behind the service's back, under bob's root key, which never signed it. */
async function uncertifiedDevice(stage: Stage, { conversationId, sessionId }: Cast): Promise<void> {
  const mallory = stage.device('mallory', 'phantom');
  await mallory.register();
  const database = new pg.Client({ connectionString: stage.constellation.databaseUrls['identity-keys'] });
  await database.connect();
  await database.query(
    `INSERT INTO device_log (user_id, version, kind, previous_hash, recorded_at, root_key, device_id, identity_key, signing_key,
                             certified_at, certificate_signature)
     SELECT u.user_id, u.device_list_version + 1, 1, u.log_head, d.added_at, u.root_key, d.device_id, d.identity_key, d.signing_key,
            d.certified_at, d.certificate_signature
       FROM users u, devices d WHERE u.user_id = 'bob' AND d.user_id = 'mallory'`,
  );
  await database.query(
    `UPDATE devices SET user_id = 'bob', certificate_root_key = listed.root_key, added_in_version = listed.device_list_version,
                        certified_in_version = listed.device_list_version
       FROM users listed WHERE devices.user_id = 'mallory' AND listed.user_id = 'bob'`,
  );
  await database.end();
  stage.say(
    'a device bob/phantom was put into the database and its log by hand; its certificate is not by bob’s root key',
  );

  const phantom = rpcAs(stage, 'bob', 'phantom');
  const { keyRequest } = await phantom.session.requestKey({
    requestId: randomUUID(),
    conversationId,
    sessionId,
    kind: KeyRequestKind.MISSING,
  });
  for (;;) {
    const { keyRequests } = await phantom.session.listKeyRequests({
      role: KeyRequestRole.REQUESTER,
      includeEnded: true,
    });
    const request = keyRequests.find((each) => each.keyRequestId === keyRequest?.keyRequestId);
    if (request?.state === KeyRequestState.UNFULFILLABLE) {
      stage.say(`its request ended UNFULFILLABLE: ${request.endedBecause}`);
      break;
    }
    if (request?.state === KeyRequestState.FULFILLED) throw new Error('a holder gave a key to an uncertified device');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const refusal = await phantom.session.getInitialSession({ conversationId, sessionId }).then(
    () => undefined,
    (error: unknown) => readRefusal(error),
  );
  stage.check('every holder that was asked declined, and the device has no key', refusal?.miss !== undefined);
}

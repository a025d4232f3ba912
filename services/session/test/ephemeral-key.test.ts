import { create, toBinary } from '@bufbuild/protobuf';
import { SessionHeaderSchema, SignedHeaderSchema } from '@keytrail/contracts';
import { headerText } from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createPerson, makeSession } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({}, { consumers: false, sweep: false });
});
afterAll(() => world?.stop());

it('a session whose header lacks the ephemeral key is refused with the field', async () => {
  const initiator = createPerson('alice').addDevice();
  const other = createPerson('bob').addDevice();
  for (const key of [new Uint8Array(), new Uint8Array(32)]) {
    const { request } = makeSession({ initiator, covered: [initiator, other] });
    const { session } = request;
    if (!session?.signedHeader) throw new Error('no session');
    const { header } = makeSession({ initiator, covered: [initiator, other] }).session;
    const lacking = toBinary(
      SessionHeaderSchema,
      create(SessionHeaderSchema, {
        ...header,
        conversationId: request.conversationId,
        initiatorEphemeralKey: key,
      }),
    );
    const signature = primitives.ed25519.sign(initiator.signingKey.privateKey, headerText(lacking));
    session.signedHeader = create(SignedHeaderSchema, { header: lacking, signature });
    expect(await refusalOf(world.asConversation.storeSession(request))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'session.signed_header.header' },
    });
  }
  const { rows } = await world.sql.query('SELECT FROM sessions');
  expect(rows).toEqual([]);
});

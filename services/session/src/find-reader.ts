import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { DescribeConversationResponse, ExplainKeyRequest } from '@keytrail/contracts';
import { invalidField, readRefusal, refuse } from '@keytrail/rpc';
import { pseudonym } from '@keytrail/telemetry';
import type { DeviceId } from './domain/device.ts';
import type { Answer } from './domain/explain-miss.ts';
import type { Asked } from './gather-key-facts.ts';
import type { OperatorPeers } from './operator-peers.ts';
import type { Parts } from './parts.ts';
import { readInvolvedDevices } from './store/key-facts.ts';

type Named = Pick<ExplainKeyRequest, 'userId' | 'deviceId' | 'userPseudonym' | 'devicePseudonym'>;

/**
 * The device that an operator asks about, by its ids or by the pseudonyms that traces show. Users are looked for among the members of the conversation,
 * past ones too, among those who asked for its keys, and then among all; devices among those of the user. Throws INVALID_FIELD when neither is given,
 * NOT_FOUND_OR_NOT_PERMITTED when nobody there has the pseudonym, EXPLANATION_INCOMPLETE when a peer could have known and could not be asked.
 */
export async function findReader(
  { db, operatorPeers }: Pick<Parts, 'db' | 'operatorPeers'>,
  asked: Asked,
  named: Named,
  conversation: Answer<DescribeConversationResponse | undefined>,
): Promise<DeviceId> {
  if (named.userId === '' && named.userPseudonym === '') throw invalidField('user_id', 'is needed, or user_pseudonym');
  if (named.deviceId === '' && named.devicePseudonym === '')
    throw invalidField('device_id', 'is needed, or device_pseudonym');
  if (named.userId !== '' && named.deviceId !== '') return { userId: named.userId, deviceId: named.deviceId };
  const involved = await readInvolvedDevices(db, asked);
  const userId = named.userId || (await findUser(operatorPeers, named.userPseudonym, involved, conversation));
  const deviceId = named.deviceId || (await findDevice(operatorPeers, userId, named.devicePseudonym, involved));
  return { userId, deviceId };
}

/** Who never was a member is no less a reader who missed: identity-keys knows every user. */
async function findUser(
  peers: OperatorPeers,
  wanted: string,
  involved: readonly DeviceId[],
  conversation: Answer<DescribeConversationResponse | undefined>,
): Promise<string> {
  const members = conversation.known ? (conversation.value?.memberships ?? []) : [];
  const users = new Set([...members, ...involved].map(({ userId }) => userId));
  const found = [...users].find((userId) => pseudonym(userId) === wanted);
  if (found !== undefined) return found;
  try {
    return (await peers.identityKeys.findDevices({ userPseudonym: wanted })).userId;
  } catch (error) {
    if (readRefusal(error).reason !== 'NOT_FOUND_OR_NOT_PERMITTED') throw incomplete('identity-keys');
  }
  if (!conversation.known) throw incomplete('conversation');
  throw refuse(
    'NOT_FOUND_OR_NOT_PERMITTED',
    'neither a member, past or present, nor any user who ever registered has this pseudonym: was its trace written under another KEYTRAIL_PSEUDONYM_KEY?',
    { metadata: { user_pseudonym: wanted } },
  );
}

async function findDevice(
  peers: OperatorPeers,
  userId: string,
  wanted: string,
  involved: readonly DeviceId[],
): Promise<string> {
  const own = involved.filter((device) => device.userId === userId).map(({ deviceId }) => deviceId);
  const here = own.find((deviceId) => pseudonym(deviceId) === wanted);
  if (here !== undefined) return here;
  const { devices, erasedAt } = await peers.identityKeys.findDevices({ userId }).catch(() => {
    throw incomplete('identity-keys');
  });
  const registered = devices.find(({ device }) => device && pseudonym(device.deviceId) === wanted)?.device;
  if (registered) return registered.deviceId;
  if (erasedAt)
    throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'the user was erased, so that nothing is left to explain', {
      metadata: { user_pseudonym: pseudonym(userId), erased_at: timestampDate(erasedAt).toISOString() },
    });
  throw refuse(
    'NOT_FOUND_OR_NOT_PERMITTED',
    'the user has no device with this pseudonym; one that never registered is asked about by its id',
  );
}

function incomplete(peer: 'conversation' | 'identity-keys') {
  return refuse(
    'EXPLANATION_INCOMPLETE',
    'whose pseudonym this is could not be found out, as a peer could not be asked',
    {
      metadata: { peer },
      retryAfterMs: 1000,
    },
  );
}

import type { DescribeConversationResponse, ExplainKeyRequest } from '@keytrail/contracts';
import { invalidField, refuse } from '@keytrail/rpc';
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
 * past ones too, and among those who asked for its keys; devices among those of the user. Throws INVALID_FIELD when neither is given,
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
  const userId = named.userId || findUser(named.userPseudonym, involved, conversation);
  const deviceId = named.deviceId || (await findDevice(operatorPeers, userId, named.devicePseudonym, involved));
  return { userId, deviceId };
}

function findUser(
  wanted: string,
  involved: readonly DeviceId[],
  conversation: Answer<DescribeConversationResponse | undefined>,
): string {
  const members = conversation.known ? (conversation.value?.memberships ?? []) : [];
  const users = new Set([...members, ...involved].map(({ userId }) => userId));
  const found = [...users].find((userId) => pseudonym(userId) === wanted);
  if (found !== undefined) return found;
  if (!conversation.known) throw incomplete('conversation');
  throw refuse(
    'NOT_FOUND_OR_NOT_PERMITTED',
    'nobody who is or was in the conversation has this pseudonym: was its trace written under another KEYTRAIL_PSEUDONYM_KEY?',
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
  const { devices } = await peers.identityKeys.findDevices({ userId }).catch(() => {
    throw incomplete('identity-keys');
  });
  const registered = devices.find(({ device }) => device && pseudonym(device.deviceId) === wanted)?.device;
  if (registered) return registered.deviceId;
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

import { type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import type { Call } from '@keytrail/rpc';
import { type Database, onceByRequestId, RequestIdReused, type Transaction } from '@keytrail/storage';
import { type DeviceId, deviceKey } from './domain/device.ts';
import { requestIdReused } from './refusals.ts';

/** A request that is answered once, and the device that asks. */
export interface AskedRequest<I extends DescMessage> {
  readonly schema: I;
  readonly request: MessageShape<I> & { readonly requestId: string };
  readonly call: Call;
  readonly device: DeviceId;
}

/** Does the work and remembers the answer in one transaction, or repeats the first answer to this request id. Throws REQUEST_ID_REUSED. */
export async function answerOnce<I extends DescMessage, O extends DescMessage>(
  db: Database,
  asked: AskedRequest<I>,
  answer: O,
  work: (tx: Transaction) => Promise<MessageShape<O>>,
): Promise<MessageShape<O>> {
  const { requestId } = asked.request;
  const identity = {
    caller: deviceKey(asked.device),
    method: asked.call.method,
    requestId,
    content: toBinary(asked.schema, asked.request),
  };
  try {
    const { response } = await db.transaction((tx) =>
      onceByRequestId(tx, identity, async () => toBinary(answer, await work(tx))),
    );
    return fromBinary(answer, response);
  } catch (error) {
    throw error instanceof RequestIdReused ? requestIdReused(requestId) : error;
  }
}

/**
 * The answer that was given to this request before, if any: it stands, also when the request would be refused now. For refusals only, as it
 * takes a transaction. Throws REQUEST_ID_REUSED.
 */
export async function earlierAnswer<I extends DescMessage, O extends DescMessage>(
  db: Database,
  asked: AskedRequest<I>,
  answer: O,
): Promise<MessageShape<O> | undefined> {
  try {
    return await answerOnce(db, asked, answer, () => {
      throw new NotAskedBefore();
    });
  } catch (error) {
    if (error instanceof NotAskedBefore) return undefined;
    throw error;
  }
}

class NotAskedBefore extends Error {}

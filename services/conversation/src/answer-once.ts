import { type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import {
  type Database,
  onceByRequestId,
  type RequestIdentity,
  RequestIdReused,
  type Transaction,
} from '@keytrail/storage';
import { requestIdReused } from './refusals.ts';

/** A request that is answered once: who asked what, by which id. */
export interface AskedRequest {
  readonly userId: string;
  readonly method: string;
  readonly requestId: string;
  /** The request as it came. */
  readonly content: Uint8Array;
}

/** The request of a device; request ids of different users never meet. */
export function askedRequest<D extends DescMessage>(
  schema: D,
  request: MessageShape<D> & { readonly requestId: string },
  call: { readonly method: string },
  userId: string,
): AskedRequest {
  return { userId, method: call.method, requestId: request.requestId, content: toBinary(schema, request) };
}

/** Does the work and remembers the answer in one transaction, or repeats the first answer. Throws REQUEST_ID_REUSED. */
export async function answerOnce<D extends DescMessage>(
  db: Database,
  asked: AskedRequest,
  answer: D,
  work: (tx: Transaction) => Promise<MessageShape<D>>,
): Promise<MessageShape<D>> {
  try {
    const { response } = await db.transaction((tx) =>
      onceByRequestId(tx, identityOf(asked), async () => toBinary(answer, await work(tx))),
    );
    return fromBinary(answer, response);
  } catch (error) {
    throw error instanceof RequestIdReused ? requestIdReused(asked.requestId) : error;
  }
}

/** The answer that was given to this request before, if any. Throws REQUEST_ID_REUSED. */
export async function earlierAnswer<D extends DescMessage>(
  db: Database,
  asked: AskedRequest,
  answer: D,
): Promise<MessageShape<D> | undefined> {
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

function identityOf({ userId, method, requestId, content }: AskedRequest): RequestIdentity {
  return { caller: userId, method, requestId, content };
}

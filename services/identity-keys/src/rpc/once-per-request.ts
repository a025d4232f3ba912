import { type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { type Call, refuse } from '@keytrail/rpc';
import { type Database, onceByRequestId, RequestIdReused, type Transaction } from '@keytrail/storage';
import { callerKey } from './caller-key.ts';

interface Mutation<I extends DescMessage, O extends DescMessage> {
  readonly input: I;
  readonly output: O;
  readonly request: MessageShape<I> & { readonly requestId: string };
}

/** Runs `work` in a transaction, once per caller and request id; a repetition gets the first answer. Throws REQUEST_ID_REUSED. */
export async function oncePerRequest<I extends DescMessage, O extends DescMessage>(
  db: Database,
  call: Call,
  { input, output, request }: Mutation<I, O>,
  work: (tx: Transaction) => Promise<MessageShape<O>>,
): Promise<{ response: MessageShape<O>; repeated: boolean }> {
  const { requestId } = request;
  const identity = { caller: callerKey(call), method: call.method, requestId, content: toBinary(input, request) };
  try {
    const { response, repeated } = await db.transaction((tx) =>
      onceByRequestId(tx, identity, async () => toBinary(output, await work(tx))),
    );
    return { response: fromBinary(output, response), repeated };
  } catch (error) {
    if (!(error instanceof RequestIdReused)) throw error;
    throw refuse('REQUEST_ID_REUSED', 'the request id was used before with other content', {
      metadata: { request_id: requestId },
    });
  }
}

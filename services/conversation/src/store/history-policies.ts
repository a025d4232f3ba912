import type { HistoryPolicy } from '@keytrail/contracts';
import { type Queryable, statement } from '@keytrail/storage';
import type { PolicyStart } from '../domain/entitlement.ts';

const starts = statement(
  'epochs_beginning_policies',
  `SELECT conversation_id, epoch, history_policy FROM epochs
   WHERE conversation_id = ANY($1::uuid[]) AND begins_policy ORDER BY conversation_id, epoch`,
);

/** From which epochs on each conversation's epochs have which history policy, in their order. */
export async function historyPoliciesOf(
  db: Queryable,
  conversationIds: readonly string[],
): Promise<(conversationId: string) => readonly PolicyStart[]> {
  const rows = await db.query<{ conversation_id: string; epoch: bigint; history_policy: HistoryPolicy }>(starts, [
    conversationIds,
  ]);
  const found = Map.groupBy(rows, (row) => row.conversation_id);
  return (conversationId) =>
    (found.get(conversationId) ?? []).map((row) => ({ fromEpoch: row.epoch, policy: row.history_policy }));
}

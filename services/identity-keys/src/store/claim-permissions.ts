import { type Queryable, statement, type Transaction } from '@keytrail/storage';

const permitted = statement(
  'claim_permissions_read',
  `SELECT target_user_id FROM claim_permissions
    WHERE user_id = $1 AND target_user_id = ANY ($2::text[]) AND expires_at > now()`,
);

/** Of the targets, those whose prekeys the user has a permission to claim now. */
export async function permittedTargets(
  db: Queryable,
  userId: string,
  targets: readonly string[],
): Promise<ReadonlySet<string>> {
  const rows = await db.query<{ target_user_id: string }>(permitted, [userId, targets]);
  return new Set(rows.map((row) => row.target_user_id));
}

const grant = statement(
  'claim_permission_grant',
  `INSERT INTO claim_permissions (user_id, target_user_id, expires_at, granted_by) VALUES ($1, $2, $3, $4)
   ON CONFLICT (user_id, target_user_id) DO UPDATE SET expires_at = excluded.expires_at, granted_by = excluded.granted_by, granted_at = now()`,
);
const withdraw = statement(
  'claim_permission_withdraw',
  'DELETE FROM claim_permissions WHERE user_id = $1 AND target_user_id = $2',
);

/** Sets until when a user may claim from another one; without a time the permission is withdrawn. */
export async function setClaimPermission(
  tx: Transaction,
  permission: { userId: string; targetUserId: string; expiresAt: Date | undefined; grantedBy: string },
): Promise<void> {
  const { userId, targetUserId, expiresAt, grantedBy } = permission;
  if (expiresAt === undefined) await tx.query(withdraw, [userId, targetUserId]);
  else await tx.query(grant, [userId, targetUserId, expiresAt, grantedBy]);
}

const purge = statement(
  'claim_permissions_purge',
  `DELETE FROM claim_permissions WHERE (user_id, target_user_id) IN
     (SELECT user_id, target_user_id FROM claim_permissions WHERE expires_at < now() LIMIT $1)
   RETURNING 1`,
);

/** Removes permissions that are over; returns how many. */
export async function purgeClaimPermissions(db: Queryable, batch: number): Promise<number> {
  return (await db.query(purge, [batch])).length;
}

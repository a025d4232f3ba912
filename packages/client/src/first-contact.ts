import type { ClaimedUser, PrekeyBundle } from '@keytrail/contracts';
import { type Primitives, type Ref, transcript } from '@keytrail/crypto';
import { uuidOf } from './bytes.ts';
import type { Calls } from './calls.ts';
import { RefusalError, SessionRefusedError } from './errors.ts';
import type { Operation } from './tracing.ts';

/** A user who shares no conversation with this device yet: GetDevices says nothing, so all of its devices are claimed from. */
export interface FirstContact {
  readonly user: ClaimedUser;
  /** Of each device that the user has; without a bundle none could be had. */
  readonly devices: readonly { readonly device: Ref; readonly bundle: PrekeyBundle | undefined }[];
}

const usersPerClaim = 200;

/**
 * Claims from all devices of users, in the order of the users. The claim id follows from seed and users: a repeated claim is answered with the
 * same bundles, and with the device lists as they were then.
 *
 * @throws SessionRefusedError (`roster`) when the answer is about other users, RefusalError.
 */
export async function claimFirstContacts(
  { calls, primitives }: { readonly calls: Calls; readonly primitives: Primitives },
  operation: Operation,
  userIds: readonly string[],
  claimSeed: string,
): Promise<FirstContact[]> {
  async function claim(group: readonly string[]): Promise<FirstContact[]> {
    const claimId = uuidOf(primitives.sha256(transcript('keytrail/client/claim-users', claimSeed, ...group)), 8);
    try {
      const { results, users } = await calls.call(operation, (options) =>
        calls.identityKeys.claimPrekeyBundles({ claimId, userIds: [...group] }, options),
      );
      if (users.length !== group.length || users.some(({ userId }, i) => userId !== group[i])) {
        throw new SessionRefusedError('roster', 'a claim was answered for other users than were asked for');
      }
      return users.map((user) => ({
        user,
        devices: results.flatMap(({ device, bundle }) =>
          device?.userId === user.userId
            ? [{ device: { userId: device.userId, deviceId: device.deviceId }, bundle }]
            : [],
        ),
      }));
    } catch (error) {
      const tooMany = error instanceof RefusalError && error.reason === 'LIMIT_EXCEEDED';
      if (!tooMany || error.retryAfterMs !== undefined || group.length === 1) throw error;
      const half = Math.ceil(group.length / 2);
      return [...(await claim(group.slice(0, half))), ...(await claim(group.slice(half)))];
    }
  }

  const groups: string[][] = [];
  for (let from = 0; from < userIds.length; from += usersPerClaim)
    groups.push(userIds.slice(from, from + usersPerClaim));
  return (await Promise.all(groups.map(claim))).flat();
}

import type { Ref } from '@keytrail/crypto';
import type { Database } from '@keytrail/storage';
import { LRUCache } from 'lru-cache';
import { readStanding, type Standing } from './store/standings.ts';

/** What calling devices are here. */
export interface Standings {
  /** That a device is registered, not revoked, and its user not erased, may be as old as `rememberedMs`; all else is what stands now. */
  of(device: Ref): Promise<Standing>;
}

/** Asks the database about each calling device once within `rememberedMs`, as long as nothing stands against it. */
export function createStandings(db: Database, { rememberedMs }: { readonly rememberedMs: number }): Standings {
  // From the question on: an answer is older than its arrival.
  const asked = new LRUCache<string, Promise<Standing>>({ max: 50_000, ttl: rememberedMs });

  async function ask(key: string, device: Ref): Promise<Standing> {
    const answer = readStanding(db.pipelined, device);
    asked.set(key, answer);
    const forget = () => {
      if (asked.peek(key) === answer) asked.delete(key);
    };
    answer.then((standing) => isGood(standing) || forget(), forget);
    return answer;
  }

  return {
    async of(device) {
      // A space is in no id.
      const key = `${device.userId} ${device.deviceId}`;
      const remembered = asked.get(key);
      if (remembered === undefined) return ask(key, device);
      const standing = await remembered;
      // A no may have looked before the device was registered.
      return isGood(standing) ? standing : ask(key, device);
    },
  };
}

function isGood({ erased, registered, revokedAt }: Standing): boolean {
  return registered && !erased && revokedAt === undefined;
}

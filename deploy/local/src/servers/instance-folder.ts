import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdtempSync, realpathSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname } from 'node:path';
import type { ServerKind } from './server.ts';

/** Whom a server runs as. */
export interface Identity {
  readonly uid: number;
  readonly gid: number;
}

/** A new folder that nobody but the server's user may read; with an identity, one that this user can reach. */
export function makeInstanceFolder(kind: ServerKind, identity?: Identity): string {
  const temporary = [tmpdir(), '/tmp', '/var/tmp'].find(
    (folder) => identity === undefined || canReach(folder, identity),
  );
  if (temporary === undefined)
    throw new Error(`no temporary folder that user ${identity?.uid} can reach: set TMPDIR to one`);
  const folder = mkdtempSync(`${realpathSync(temporary)}/keytrail-${kind}-`);
  chmodSync(folder, 0o700);
  if (identity !== undefined) chownSync(folder, identity.uid, identity.gid);
  return folder;
}

/**
 * The unprivileged user for a server that refuses to run as root; undefined when we are not root.
 * `postgres` where it exists, else `nobody`.
 */
export function unprivilegedIdentity(): Identity | undefined {
  if (process.getuid?.() !== 0) return undefined;
  for (const user of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = ['-u', '-g'].map((flag) =>
        Number(execFileSync('id', [flag, user], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })),
      );
      if (uid !== undefined && gid !== undefined && uid > 0) return { uid, gid };
    } catch {
      // No such user: the next one.
    }
  }
  throw new Error('running as root, and there is neither a user postgres nor a user nobody to run PostgreSQL as');
}

/** Whether this user may enter every folder on the way, and read and enter or run what lies at its end. */
export function canReach(path: string, identity: Identity): boolean {
  for (let place = realpathSync(path); ; place = dirname(place)) {
    const stat = statSync(place);
    const shift = stat.uid === identity.uid ? 6 : stat.gid === identity.gid ? 3 : 0;
    if (((stat.mode >> shift) & 1) === 0) return false;
    if (place === '/') return true;
  }
}

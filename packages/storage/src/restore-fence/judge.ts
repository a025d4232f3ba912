import type { OutsideRecord } from './outside.ts';

/** What the database says of itself, and where it is. */
export interface FenceRow {
  readonly incarnation: string;
  readonly position: bigint;
  /** Where it was when it was last looked at: `system identifier/timeline/oid`. */
  readonly place: string;
  readonly closed: boolean;
  /** Where it is. */
  readonly here: string;
  /** When its server was started. */
  readonly server_started: string;
  /** Restores that no operator has accepted. */
  readonly unaccepted: number;
}

/** Where this process saw the database last. */
export interface Seen {
  readonly incarnation: string;
  readonly position: bigint;
}

/** Whether a switch of the timeline, as by promoting a standby, may have lost what was committed. */
export type TimelineSwitch = 'may-lose' | 'loses-nothing';

export interface Evidence {
  readonly row: FenceRow;
  /** `unknown` while the store outside cannot be asked and this process remembers nothing of it. */
  readonly outside: OutsideRecord | undefined | 'unknown';
  readonly seen: Seen | undefined;
  readonly timelineSwitch: TimelineSwitch;
}

export type Verdict =
  | { readonly kind: 'ok' }
  /** Nothing was lost, but what is known of the place, here or outside, is to be written anew. */
  | { readonly kind: 'adopt'; readonly because: string }
  | { readonly kind: 'restored'; readonly because: string; readonly expected: bigint }
  /** A restore that was noticed is not dealt with yet. */
  | { readonly kind: 'closed' }
  /** It cannot be told without the store outside. */
  | { readonly kind: 'undecided'; readonly because: string };

const undecided: Verdict = { kind: 'undecided', because: 'the store outside the database cannot be asked' };

/**
 * Whether the database went back in time. `row` must be read after `outside`. What lies outside cannot be newer than a database that did not go
 * back; a database ahead of it means that the store outside lost something, which costs nothing.
 */
export function judge({ row, outside, seen, timelineSwitch }: Evidence): Verdict {
  if (row.closed) return { kind: 'closed' };
  const confirmed = outside !== 'unknown' && outside ? outside.confirmed : 0n;
  const sawThis = seen !== undefined && seen.incarnation === row.incarnation;
  const expected = sawThis && seen.position > confirmed ? seen.position : confirmed;
  const restored = (because: string): Verdict => ({ kind: 'restored', because, expected });

  if (outside !== 'unknown' && outside?.endedBy !== undefined)
    return restored('it has an incarnation that ended with an earlier restore');
  if (row.position < expected) return restored(`it is at position ${row.position} and had reached ${expected}`);
  if (row.here !== row.place) {
    const [there, here] = [placeOf(row.place), placeOf(row.here)];
    if (there.server !== here.server) return restored('it is on another server');
    if (there.database !== here.database) return restored('it is another database of the server');
    if (here.timeline < there.timeline) return restored('its server went back to an earlier timeline');
    if (timelineSwitch === 'may-lose')
      return restored('its server went on in another timeline, which may have lost the last commits');
    if (outside === 'unknown' && !sawThis) return undecided;
    return { kind: 'adopt', because: 'its server went on in another timeline, where nothing is lost' };
  }
  if (outside === 'unknown') return sawThis ? { kind: 'ok' } : undecided;
  if (outside === undefined && seen !== undefined && !sawThis)
    return restored('it has an incarnation of which nothing is known outside, and had another one');
  if (outside === undefined) return { kind: 'adopt', because: 'nothing is known of it outside' };
  if (outside.place !== row.here)
    return { kind: 'adopt', because: 'it knows its place, and the store outside has another one' };
  if (row.position > outside.reserved) return { kind: 'adopt', because: 'the store outside is behind it' };
  return { kind: 'ok' };
}

function placeOf(place: string) {
  const [server = '', timeline = '', database = ''] = place.split('/');
  return { server, timeline: Number.parseInt(timeline, 16), database };
}

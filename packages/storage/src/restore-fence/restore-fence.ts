import type { Logger } from '@keytrail/telemetry';
import type { Database, Transaction } from '../database.ts';
import { type FenceRow, judge, type Seen, type TimelineSwitch } from './judge.ts';
import { OutsideMovedOn, type OutsideState, type OutsideStore } from './outside.ts';
import { advanceFence, closeFence, holdFence, moveFence, nextIncarnation, openFence, readFence } from './rows.ts';

/** What a statement names to `pass_restore_fence`: the database that this process knows. */
export interface FencePass extends Seen {
  readonly serverStarted: string;
}

export interface RestoreFence {
  /** Undefined while the database is known to have gone back, or that cannot be ruled out. */
  readonly pass: FencePass | undefined;
  /** In words: `open`, or why it is not. */
  readonly state: string;
  /** Whether it was looked at since the process started; before, as while the database is away, nothing is known of a restore. */
  readonly looked: boolean;
  /** Whether the store outside answered when the fence was last looked at. */
  readonly outsideKnown: boolean;
  /** Restores that no operator had accepted when the fence was last looked at. */
  readonly unaccepted: number;
  /**
   * Looks where the database stands, deals with a restore, and lets the position grow. A look begins after the call, and is shared by those who
   * call until it begins. Throws what the database says.
   */
  look(): Promise<void>;
}

export interface RestoreFenceOptions {
  readonly db: Database;
  readonly outside: OutsideStore;
  readonly log: Logger;
  readonly timelineSwitch: TimelineSwitch;
  /**
   * Voids what must not be handed out twice, in the transaction that opens the fence again. It runs again when that transaction fails, and must
   * be good for being done twice.
   */
  readonly recover?: (tx: Transaction) => Promise<void>;
}

/** Positions that the database may go on for while the store outside cannot be written. */
const block = 3_600n;
const attempts = 5;

export function createRestoreFence({ db, outside, log, timelineSwitch, recover }: RestoreFenceOptions): RestoreFence {
  let seen: Seen | undefined;
  let pass: FencePass | undefined;
  let state = 'not looked at yet';
  let looked = false;
  let outsideKnown = false;
  let unaccepted = 0;
  let current: Promise<void> = Promise.resolve();
  let next: Promise<void> | undefined;

  async function look(): Promise<void> {
    for (let attempt = 0; attempt < attempts; attempt += 1) {
      const { incarnation } = await readFence(db);
      // Before the row that it is compared with: the outside never tells what the database has not committed.
      const known = await ask(incarnation);
      const row = await readFence(db);
      unaccepted = row.unaccepted;
      if (row.incarnation !== incarnation) continue;
      looked = true;
      if (await settle(row, known)) return;
    }
    throw new Error('the fence was written by others again and again');
  }

  async function ask(incarnation: string): Promise<OutsideState | undefined> {
    try {
      const known = await outside.read(incarnation);
      if (!outsideKnown && seen) log.info('the store outside the database answers again');
      outsideKnown = true;
      return known;
    } catch (error) {
      if (outsideKnown || !seen)
        log.warn(
          { err: error },
          'the store outside the database cannot be asked: what this process saw last is gone by',
        );
      outsideKnown = false;
      return undefined;
    }
  }

  /** False when it has to be looked at again. */
  async function settle(row: FenceRow, known: OutsideState | undefined): Promise<boolean> {
    const verdict = judge({ row, outside: known ? known.record : 'unknown', seen, timelineSwitch });
    switch (verdict.kind) {
      case 'ok':
        admit(row);
        await goOn(row, known);
        return true;
      case 'adopt':
        if (row.position > 0n || row.place !== row.here)
          log.warn(
            { because: verdict.because, place: row.here, position: String(row.position) },
            'the place of the database is noted anew',
          );
        if (row.place !== row.here) await moveFence(db, row);
        if (known && !(await write(row, known, row.position))) return false;
        admit(row);
        return true;
      case 'undecided':
        pass = undefined;
        state = `undecided: ${verdict.because}`;
        return true;
      case 'restored': {
        pass = undefined;
        state = `closed: ${verdict.because}`;
        const evidence = {
          because: verdict.because,
          position: String(row.position),
          expected: String(verdict.expected),
          place: row.here,
        };
        if (await closeFence(db, row, verdict)) log.error(evidence, 'the database went back in time');
        await deal(row);
        return false;
      }
      case 'closed':
        pass = undefined;
        if (!state.startsWith('closed')) state = 'closed: a restore is being dealt with';
        await deal(row);
        return false;
    }
  }

  function admit({ incarnation, position, server_started: serverStarted }: FenceRow): void {
    seen = { incarnation, position };
    pass = { ...seen, serverStarted };
    state = 'open';
  }

  /** One step forward, told outside first where the reserved block ends, and again once it is committed. */
  async function goOn(row: FenceRow, known: OutsideState | undefined): Promise<void> {
    const reserved = known?.record?.reserved ?? lastReserved(row);
    let revised = known;
    if (row.position >= reserved) {
      if (!known) return;
      const revision = await write(row, known, row.position);
      if (!revision) return;
      revised = { ...known, revision };
    }
    const position = await advanceFence(db, row);
    if (position === undefined) return;
    admit({ ...row, position });
    if (revised) await write(row, revised, position);
  }

  let reservation: { readonly incarnation: string; readonly reserved: bigint } | undefined;
  const lastReserved = ({ incarnation, position }: FenceRow) =>
    reservation?.incarnation === incarnation ? reservation.reserved : position;

  /** The new revision; undefined when another replica wrote meanwhile, or the store went away. */
  async function write(
    row: FenceRow,
    { record, revision }: OutsideState,
    confirmed: bigint,
  ): Promise<number | undefined> {
    const reserved = confirmed + block;
    try {
      const written = await outside.write(
        { ...record, incarnation: row.incarnation, place: row.here, confirmed, reserved },
        revision,
      );
      reservation = { incarnation: row.incarnation, reserved };
      return written;
    } catch (error) {
      if (error instanceof OutsideMovedOn) return undefined;
      outsideKnown = false;
      log.warn({ err: error }, 'the store outside the database cannot be written');
      return undefined;
    }
  }

  /** By one replica: who holds the row. What lies outside is told before anybody can go on with the database. */
  async function deal({ here }: FenceRow): Promise<void> {
    const begun = performance.now();
    const dealt = await db.transaction(async (tx) => {
      const { incarnation: ended, position, closed } = await holdFence(tx);
      if (!closed) return false;
      const incarnation = await nextIncarnation(tx);
      await overwrite(ended, (record) => ({
        place: here,
        confirmed: position,
        reserved: position,
        ...record,
        incarnation: ended,
        endedBy: incarnation,
      }));
      await overwrite(incarnation, () => ({
        incarnation,
        place: here,
        confirmed: position,
        reserved: position + block,
      }));
      // Last, so that nobody waits for the store outside while it holds what others read.
      await recover?.(tx);
      await openFence(tx, incarnation, here);
      return true;
    });
    if (dealt) log.warn({ durationMs: Math.round(performance.now() - begun) }, 'the restore is dealt with');
  }

  async function overwrite(
    incarnation: string,
    become: (record: OutsideState['record']) => NonNullable<OutsideState['record']>,
  ) {
    for (let attempt = 1; ; attempt += 1) {
      const { record, revision } = await outside.read(incarnation);
      try {
        await outside.write(become(record), revision);
        return;
      } catch (error) {
        if (!(error instanceof OutsideMovedOn) || attempt === attempts) throw error;
      }
    }
  }

  return {
    get pass() {
      return pass;
    },
    get state() {
      return state;
    },
    get looked() {
      return looked;
    },
    get outsideKnown() {
      return outsideKnown;
    },
    get unaccepted() {
      return unaccepted;
    },
    look() {
      if (next) return next;
      const begin = () => {
        next = undefined;
        return look();
      };
      next = current.then(begin, begin);
      current = next.catch(() => {});
      return next;
    },
  };
}

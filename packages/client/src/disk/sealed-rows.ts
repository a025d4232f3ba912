import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { equalBytes } from '../bytes.ts';
import { KeyStoreClosedError, KeyStoreDamagedError } from './key-store-errors.ts';
import { decodePlain, encodePlain } from './plain-data.ts';
import type { RowSeal, SealedRow } from './row-seal.ts';
import { readingFile } from './store-file.ts';

/** What can be done with rows, by kind and name. */
export interface Rows {
  get<T>(kind: string, name: string): T | undefined;
  /** `listed`: found by `list`, too. */
  put(kind: string, name: string, value: unknown, listed?: 'listed'): void;
  remove(kind: string, name: string): void;
}

interface Change {
  readonly apply: () => void;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
}

const noGrouping = new Uint8Array();
const sumId = new Uint8Array(32);

/**
 * Rows whose names and values only the holder of the data key can read, and which nobody else can change, exchange, or take out: the sum of all
 * of them is kept with them. Changes that come together are one transaction, each whole or not at all.
 */
export class SealedRows implements Rows {
  readonly #path: string;
  readonly #db: DatabaseSync;
  readonly #seal: RowSeal;
  readonly #find: StatementSync;
  readonly #list: StatementSync;
  readonly #write: StatementSync;
  readonly #delete: StatementSync;
  readonly #writeSum: StatementSync;
  #sum = new Uint8Array(32);
  #waiting: Change[] = [];
  #closed = false;

  constructor(path: string, db: DatabaseSync, seal: RowSeal) {
    this.#path = path;
    this.#db = db;
    this.#seal = seal;
    this.#find = db.prepare('SELECT id, grouping, value FROM stored WHERE id = ?');
    this.#list = db.prepare('SELECT id, grouping, value FROM stored WHERE grouping = ? AND length(grouping) > 0');
    this.#write = db.prepare('INSERT OR REPLACE INTO stored (id, grouping, value) VALUES (?, ?, ?)');
    this.#delete = db.prepare('DELETE FROM stored WHERE id = ?');
    this.#writeSum = db.prepare('INSERT OR REPLACE INTO sum (only, value) VALUES (1, ?)');
  }

  /** For a file that is being made. */
  static begin(db: DatabaseSync, seal: RowSeal): void {
    db.prepare('INSERT INTO sum (only, value) VALUES (1, ?)').run(seal.seal(sumId, noGrouping, new Uint8Array(32)));
  }

  /** Reads everything once. @throws KeyStoreDamagedError (`changed`). */
  verify(): void {
    const kept = readingFile(this.#path, () => this.#db.prepare('SELECT value FROM sum').get()?.value);
    const sum = kept && this.#seal.open({ id: sumId, grouping: noGrouping, value: kept as Uint8Array });
    const found = new Uint8Array(32);
    readingFile(this.#path, () => {
      for (const row of this.#db.prepare('SELECT id, grouping, value FROM stored').iterate()) {
        addTo(found, this.#seal.summand(row as unknown as SealedRow));
      }
    });
    if (!sum || !equalBytes(sum, found)) throw new KeyStoreDamagedError(this.#path, 'changed');
    this.#sum = found;
  }

  get<T>(kind: string, name: string): T | undefined {
    const row = this.#row(this.#seal.id(kind, name));
    return row && (this.#opened(row) as T);
  }

  /** All rows of a kind that were put as `listed`, in no order. */
  list<T>(kind: string): T[] {
    this.#checkOpen();
    const rows = readingFile(this.#path, () => this.#list.all(this.#seal.grouping(kind)));
    return rows.map((row) => this.#opened(row as unknown as SealedRow) as T);
  }

  put(kind: string, name: string, value: unknown, listed?: 'listed'): void {
    const id = this.#seal.id(kind, name);
    const grouping = listed ? this.#seal.grouping(kind) : noGrouping;
    this.#takeFromSum(id);
    const row = { id, grouping, value: this.#seal.seal(id, grouping, encodePlain(value)) };
    addTo(this.#sum, this.#seal.summand(row));
    this.#write.run(row.id, row.grouping, row.value);
  }

  remove(kind: string, name: string): void {
    const id = this.#seal.id(kind, name);
    if (this.#takeFromSum(id)) this.#delete.run(id);
  }

  /** Resolves when it is on the disk. */
  change<T>(work: (rows: Rows) => T): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#closed) return reject(new KeyStoreClosedError());
      let result: T;
      const apply = () => {
        result = work(this);
      };
      if (this.#waiting.push({ apply, done: () => resolve(result), failed: reject }) === 1) {
        setImmediate(() => this.#commit());
      }
    });
  }

  /** What was asked for is done first. */
  close(): void {
    if (this.#closed) return;
    this.#commit();
    this.#closed = true;
    this.#db.close();
  }

  #commit(): void {
    const changes = this.#waiting;
    this.#waiting = [];
    if (changes.length === 0) return;
    const before = this.#sum.slice();
    const applied: Change[] = [];
    try {
      readingFile(this.#path, () => {
        this.#db.exec('BEGIN IMMEDIATE');
        for (const change of changes) if (this.#apply(change)) applied.push(change);
        this.#writeSum.run(this.#seal.seal(sumId, noGrouping, this.#sum));
        this.#db.exec('COMMIT');
      });
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      this.#sum = before;
      for (const change of changes) change.failed(error);
      return;
    }
    for (const change of applied) change.done();
  }

  /** One that fails leaves nothing behind, and the others as they are. */
  #apply(change: Change): boolean {
    const before = this.#sum.slice();
    this.#db.exec('SAVEPOINT one');
    try {
      change.apply();
      this.#db.exec('RELEASE one');
      return true;
    } catch (error) {
      this.#db.exec('ROLLBACK TO one; RELEASE one');
      this.#sum = before;
      change.failed(error);
      return false;
    }
  }

  #row(id: Uint8Array): SealedRow | undefined {
    this.#checkOpen();
    return readingFile(this.#path, () => this.#find.get(id)) as unknown as SealedRow | undefined;
  }

  #takeFromSum(id: Uint8Array): boolean {
    const row = this.#row(id);
    if (row) addTo(this.#sum, this.#seal.summand(row));
    return row !== undefined;
  }

  #opened(row: SealedRow): unknown {
    const plain = this.#seal.open(row);
    if (plain === undefined) throw new KeyStoreDamagedError(this.#path, 'changed');
    return decodePlain(plain);
  }

  #checkOpen(): void {
    if (this.#closed) throw new KeyStoreClosedError();
  }
}

/** XOR: adding a summand once more takes it out. */
function addTo(sum: Uint8Array, summand: Uint8Array): void {
  for (let at = 0; at < sum.length; at += 1) sum[at] = (sum[at] ?? 0) ^ (summand[at] ?? 0);
}

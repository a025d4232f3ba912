/** Another client, of this process or another one, has the store open. */
export class KeyStoreInUseError extends Error {
  override readonly name = 'KeyStoreInUseError';
  readonly path: string;

  constructor(path: string) {
    super(`the key store ${path} is in use`);
    this.path = path;
  }
}

/** What was given does not open the store: another passphrase or key, or the part of the file that they open was changed. */
export class WrongPassphraseError extends Error {
  override readonly name = 'WrongPassphraseError';

  constructor() {
    super('this passphrase or key does not open the key store');
  }
}

/**
 * - `not-a-store`: the file is something else, or empty
 * - `malformed`: the file is not whole: cut off, or overwritten in places
 * - `changed`: rows were changed, exchanged, taken out or brought back by somebody who does not have the key
 */
export type KeyStoreProblem = 'not-a-store' | 'malformed' | 'changed';

/** The file is not as this store left it. Nothing of it is used. */
export class KeyStoreDamagedError extends Error {
  override readonly name = 'KeyStoreDamagedError';
  readonly path: string;
  readonly problem: KeyStoreProblem;

  constructor(path: string, problem: KeyStoreProblem, cause?: unknown) {
    super(`the key store ${path} is damaged (${problem})`, { cause });
    this.path = path;
    this.problem = problem;
  }
}

/** The file was written by a later version of this package. */
export class KeyStoreNewerError extends Error {
  override readonly name = 'KeyStoreNewerError';
  readonly path: string;
  readonly version: number;

  constructor(path: string, version: number) {
    super(`the key store ${path} has version ${version}, which this package does not know`);
    this.path = path;
    this.version = version;
  }
}

/** The store was closed. */
export class KeyStoreClosedError extends Error {
  override readonly name = 'KeyStoreClosedError';

  constructor() {
    super('the key store is closed');
  }
}

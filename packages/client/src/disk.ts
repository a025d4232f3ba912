export type { StoreSecret } from './disk/data-key.ts';
export { type DiskKeyStore, type DiskKeyStoreOptions, openDiskKeyStore } from './disk/disk-key-store.ts';
export {
  KeyStoreClosedError,
  KeyStoreDamagedError,
  KeyStoreInUseError,
  KeyStoreNewerError,
  type KeyStoreProblem,
  WrongPassphraseError,
} from './disk/key-store-errors.ts';

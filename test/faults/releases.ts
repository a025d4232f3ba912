import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, toBinary } from '@bufbuild/protobuf';
import { base64Decode, base64Encode } from '@bufbuild/protobuf/wire';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import type { servicesWithDatabase } from '@keytrail/local/constellation';
import { migrationNames } from '@keytrail/storage';
import { copyCheckout } from '../guards/checkout-copy.ts';
import type { Edit } from '../guards/guard.ts';

type Service = (typeof servicesWithDatabase)[number];

/** Another release of Keytrail: a copy of this tree, which services can be started from (`process.restart({ cwd: release.folder })`). */
export interface Release extends Disposable {
  readonly folder: string;
  /** The folder of a service's migrations in this release. */
  migrationsOf(service: Service): string;
  /** What the migrations were made of: left out, and added. */
  readonly leftOut: Readonly<Partial<Record<Service, string>>>;
  remove(): void;
}

export interface ReleaseOptions {
  /** Names the copy; one at a time has it. */
  readonly name: string;
  /** Release N-1: the newest migration of these services is left out. */
  readonly withoutNewestOf?: readonly Service[];
  /** Release N+1: migrations that this tree does not have, after all that it has. */
  readonly migrations?: readonly { readonly service: Service; readonly name: string; readonly sql: string }[];
  /** Further changes of the code: each `find` must stand exactly once in its file. */
  readonly edits?: readonly Edit[];
}

/** Makes a release out of the tree as it is now. Without a git folder its build is named after the digest of its sources. */
export function makeRelease({ name, withoutNewestOf = [], migrations = [], edits = [] }: ReleaseOptions): Release {
  const copy = copyCheckout(name, 'releases');
  const migrationsOf = (service: Service) => join(copy.folder, 'services', service, 'prisma', 'migrations');
  try {
    const leftOut: Partial<Record<Service, string>> = {};
    for (const service of withoutNewestOf) {
      const newest = migrationNames(migrationsOf(service)).at(-1);
      if (newest === undefined) throw new Error(`${service} has no migrations`);
      leftOut[service] = newest;
      rmSync(join(migrationsOf(service), newest), { recursive: true });
    }
    for (const { service, name: migration, sql } of migrations) {
      const newest = migrationNames(migrationsOf(service)).at(-1) ?? '';
      if (migration <= newest) throw new Error(`${migration} does not come after ${newest}`);
      mkdirSync(join(migrationsOf(service), migration));
      writeFileSync(join(migrationsOf(service), migration, 'migration.sql'), sql);
    }
    copy.edit(edits);
    return { folder: copy.folder, migrationsOf, leftOut, remove: copy.remove, [Symbol.dispose]: copy.remove };
  } catch (error) {
    copy.remove();
    throw error;
  }
}

/** The contracts of a release as those of the next one, with a message more; returns how to take it back. */
export function growContracts({ folder }: Pick<Release, 'folder'>): () => void {
  const file = join(folder, 'packages/contracts/src/gen/keytrail/presence/v1/events_pb.ts');
  const before = readFileSync(file, 'utf8');
  const [, descriptor = ''] = /fileDesc\("([^"]+)"/.exec(before) ?? [];
  // What is appended to a message in binary is added to its lists.
  const more = create(FileDescriptorProtoSchema, { messageType: [{ name: 'OfALaterRelease' }] });
  const grown = Buffer.concat([base64Decode(descriptor), toBinary(FileDescriptorProtoSchema, more)]);
  writeFileSync(file, before.replace(descriptor, base64Encode(grown, 'std_raw')));
  return () => writeFileSync(file, before);
}

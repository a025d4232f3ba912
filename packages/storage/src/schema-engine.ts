import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { PrismaPg } from '@prisma/adapter-pg';
import { bindMigrationAwareSqlAdapterFactory } from '@prisma/driver-adapter-utils';
import * as glue from '@prisma/schema-engine-wasm/schema_engine_bg';
import pg from 'pg';
import type { LocalMigration } from './migration-history.ts';
import { dropUnfinishedIndex } from './unfinished-index.ts';

/** Prisma's schema engine as WebAssembly over one connection. */
export interface SchemaEngine {
  /** Applies what is missing, in order; returns the names. */
  apply(migrations: readonly LocalMigration[]): Promise<string[]>;
  /** The engine's own view of the histories. */
  diagnose(migrations: readonly LocalMigration[]): Promise<glue.DiagnoseMigrationHistoryOutput>;
  close(): Promise<void>;
}

/** A migration that PostgreSQL refused, and later ones were not tried. Nothing of it remains but an index built CONCURRENTLY, unfinished, which nothing reads. */
export class MigrationFailed extends Error {
  readonly migration: string;

  constructor(migration: string, cause: Error) {
    super(`migration ${migration} failed: ${cause.message}`, { cause });
    this.name = 'MigrationFailed';
    this.migration = migration;
  }
}

const filters = { externalTables: [], externalEnums: [] };
let instantiated = false;

/** `lockTimeoutMs` bounds how long each statement waits for a lock. */
export async function openSchemaEngine(url: string, lockTimeoutMs?: number): Promise<SchemaEngine> {
  instantiate();
  // One connection: the engine's advisory lock belongs to a session, and has to guard the statements that follow it.
  const pool = new pg.Pool({
    connectionString: url,
    max: 1,
    ...(lockTimeoutMs !== undefined && { lock_timeout: lockTimeoutMs }),
  });
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  const adapters = new WholeScripts(pool);
  const engine = await glue.SchemaEngine.new(
    { datamodels: undefined },
    () => {},
    bindMigrationAwareSqlAdapterFactory(adapters) as never,
  );
  return {
    async apply(migrations) {
      try {
        const answer = await engine.applyMigrations({ migrationsList: migrationsList(migrations), filters });
        return answer.appliedMigrationNames;
      } catch (error) {
        if (!adapters.failed) throw error;
        const { script, cause } = adapters.failed;
        throw new MigrationFailed(migrations.find(({ sql }) => sql === script)?.name ?? 'unknown', cause);
      }
    },
    diagnose: (migrations) =>
      engine.diagnoseMigrationHistory({
        migrationsList: migrationsList(migrations),
        optInToShadowDatabase: false,
        filters,
      }),
    close: () => pool.end(),
  };
}

/**
 * The adapter splits a script at every semicolon, which breaks function bodies and strings, and runs the pieces one by
 * one. PostgreSQL takes a script whole, as one transaction: a migration applies entirely or not at all, and one that is a single
 * CREATE INDEX CONCURRENTLY runs without a transaction, as it must.
 */
class WholeScripts extends PrismaPg {
  failed: { script: string; cause: Error } | undefined;
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    super(pool);
    this.#pool = pool;
  }

  override async connect() {
    const adapter = await super.connect();
    adapter.executeScript = async (script) => {
      try {
        await dropUnfinishedIndex(this.#pool, script);
        await this.#pool.query(script);
      } catch (cause) {
        this.failed = { script, cause: cause as Error };
        throw cause;
      }
    };
    return adapter;
  }
}

// Node cannot import the .wasm file, so the module is instantiated by hand and handed to its glue code.
function instantiate(): void {
  if (instantiated) return;
  const { WebAssembly } = globalThis as unknown as { WebAssembly: WebAssemblyApi };
  const glueFile = createRequire(import.meta.url).resolve('@prisma/schema-engine-wasm/schema_engine_bg');
  const wasm = new WebAssembly.Module(readFileSync(path.join(path.dirname(glueFile), 'schema_engine_bg.wasm')));
  // The engine leaves the timer of its lock behind; it must not keep a finished process alive for ten seconds.
  const imports = Object.entries(glue).map(([name, value]) =>
    name.startsWith('__wbg_setTimeout')
      ? [name, (...timer: unknown[]) => (value as unknown as StartTimer)(...timer).unref()]
      : [name, value],
  );
  const { exports } = new WebAssembly.Instance(wasm, { './schema_engine_bg.js': Object.fromEntries(imports) });
  (glue as unknown as { __wbg_set_wasm(exports: object): void }).__wbg_set_wasm(exports);
  exports.__wbindgen_start?.();
  instantiated = true;
}

type StartTimer = (...timer: unknown[]) => NodeJS.Timeout;

// The part of WebAssembly used here; its types come with the DOM library only.
interface WebAssemblyApi {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: object) => { exports: { __wbindgen_start?: () => void } };
}

function migrationsList(migrations: readonly LocalMigration[]): glue.MigrationList {
  return {
    baseDir: '.',
    lockfile: { path: 'migration_lock.toml', content: 'provider = "postgresql"\n' },
    shadowDbInitScript: '',
    migrationDirectories: migrations.map(({ name, sql }) => ({
      path: name,
      migrationFile: { path: 'migration.sql', content: { tag: 'ok' as const, value: sql } },
    })),
  };
}

import { fileURLToPath } from 'node:url';
import {
  askDatabase,
  type CheckCode,
  checkStatementTimeoutMs,
  type DatabaseCheck,
  databaseAnswers,
  databaseRestored,
  readRows,
  runDatabaseCheck,
} from '@keytrail/diagnosis';
import { type Database, isDatabaseError, openDatabase, schemaReadiness } from '@keytrail/storage';
import { describeError } from '@keytrail/telemetry';
import { databaseChecks as conversation } from '../../../../services/conversation/src/checks/index.ts';
import { databaseChecks as identityKeys } from '../../../../services/identity-keys/src/checks/index.ts';
import { databaseChecks as session } from '../../../../services/session/src/checks/index.ts';
import type { Environment, ServiceName } from '../connection.ts';
import { UsageError } from '../exit-codes.ts';
import type { Place } from './finding.ts';

/** The very statements that the services run. */
const checksOf: Partial<Record<ServiceName, readonly DatabaseCheck[]>> = {
  'identity-keys': identityKeys,
  session,
  conversation,
};

function checkOf(code: CheckCode, service: ServiceName): DatabaseCheck | undefined {
  return [databaseRestored, ...(checksOf[service] ?? [])].find((each) => each.code === code);
}

/** The environment variable with the URL of a service's database. */
export function databaseVariable(service: ServiceName): string {
  return `KEYTRAIL_DATABASE_URL_${service.toUpperCase().replace('-', '_')}`;
}

/** The URLs that were given, by service: `--database-url <service>=<url>`, else the environment. Throws UsageError, without the URL. */
export function databaseUrls(given: readonly string[], environment: Environment): Map<ServiceName, string> {
  const urls = new Map<ServiceName, string>();
  const known = Object.keys(checksOf) as ServiceName[];
  for (const service of known) {
    const url = environment[databaseVariable(service)];
    if (url) urls.set(service, url);
  }
  for (const text of given) {
    const service = known.find((name) => text.startsWith(`${name}=`));
    if (!service) throw new UsageError(`--database-url: give <service>=<url>, the service of ${known.join(', ')}`);
    urls.set(service, text.slice(service.length + 1));
  }
  for (const [service, url] of urls)
    if (!/^postgres(ql)?:$/.test(URL.parse(url)?.protocol ?? ''))
      throw new UsageError(`the database URL of ${service} is none: give postgres://…`);
  return urls;
}

/** Databases that the doctor reads by itself. */
export interface Databases {
  has(service: ServiceName): boolean;
  /** Whether it could tell of a check, were it given. */
  couldTell(code: CheckCode, service: ServiceName): boolean;
  /** Undefined for a check that is not about rows. Never throws: what cannot be found out is unknown. */
  run(code: CheckCode, service: ServiceName, subjects?: readonly string[]): Promise<Place | undefined>;
  /** Whether any of them answered, if only that it lets nobody in. */
  answered(): boolean;
  close(): Promise<void>;
}

export function openDatabases(urls: ReadonlyMap<ServiceName, string>): Databases {
  const opened = new Map<ServiceName, Database>();
  const away = new Set<ServiceName>();
  let answered = false;
  const open = (service: ServiceName): Database => {
    let db = opened.get(service);
    if (!db) {
      const url = urls.get(service) as string;
      db = openDatabase({ url, service: 'doctor', connections: 1, statementTimeoutMs: checkStatementTimeoutMs });
      opened.set(service, db);
    }
    return db;
  };
  return {
    has: (service) => urls.has(service),
    couldTell: (code, service) =>
      service in checksOf && (code === 'DATABASE' || code === 'MIGRATIONS' || checkOf(code, service) !== undefined),
    async run(code, service, subjects = []) {
      if (!urls.has(service)) return undefined;
      const where = `database of ${service}`;
      const tell = (asked: readonly string[], ask: () => Promise<Omit<Place, 'where'>>) =>
        told(where, asked, async () => {
          try {
            const outcome = await ask();
            answered ||= !away.has(service);
            return outcome;
          } catch (error) {
            answered ||= isOfPostgres(error);
            throw error;
          }
        });
      if (code === 'DATABASE') {
        // What answers, and is not as it should be, is read all the same: a standby has the rows, too.
        const whenAway = (error: Error) => {
          away.add(service);
          answered ||= isOfPostgres(error);
        };
        return tell([databaseAnswers.statement.text], () => askDatabase(open(service), whenAway));
      }
      if (code === 'MIGRATIONS') {
        const asked: string[] = [];
        return tell(asked, () => compareMigrations(open(service), service, asked));
      }
      const check = checkOf(code, service);
      if (!check) return undefined;
      if (away.has(service))
        return { where, status: 'unknown', summary: 'the database does not answer', hint: 'see DATABASE' };
      return tell([check.statement.text], () => runDatabaseCheck(open(service), check, subjects));
    },
    answered: () => answered,
    async close() {
      await Promise.all([...opened.values()].map((db) => db.close().catch(() => {})));
    },
  };
}

/** Whether PostgreSQL itself says so, and not the way there. */
function isOfPostgres(error: unknown): boolean {
  return isDatabaseError(error) || isDatabaseError((error as Error).cause);
}

/** `asked`: the texts of its statements, also those that it adds while it runs. */
async function told(where: string, asked: readonly string[], run: () => Promise<Omit<Place, 'where'>>): Promise<Place> {
  const from = performance.now();
  const rest = () => ({ ...(asked.length > 0 && { sql: asked.join(';\n') }), durationMs: performance.now() - from });
  try {
    return { where, ...(await run()), ...rest() };
  } catch (error) {
    const { message } = describeError(error);
    return {
      where,
      status: 'unknown',
      summary: `it could not be found out: ${message}`,
      hint: 'see DATABASE',
      ...rest(),
    };
  }
}

/** The migrations of this command's own tree against those of the database. */
async function compareMigrations(db: Database, service: ServiceName, asked: string[]): Promise<Omit<Place, 'where'>> {
  const folder = fileURLToPath(new URL(`../../../../services/${service}/prisma/migrations`, import.meta.url));
  const { ready, why } = await schemaReadiness(({ text }) => {
    asked.push(text);
    return readRows(db, text, []);
  }, folder);
  if (ready && !why) return { status: 'ok', summary: 'the database has the migrations of this command’s build' };
  return {
    status: ready ? 'warn' : 'fail',
    summary: why ?? 'the database does not fit this command’s build',
    hint: 'keytrail migrate status tells more; the comparison is with the tree that this command runs from',
  };
}

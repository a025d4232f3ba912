import pg from 'pg';

export interface ServiceDatabase {
  /** A role that may create roles and databases. */
  readonly adminUrl: string;
  /** Name of the database. */
  readonly name: string;
  readonly role: string;
  readonly password: string;
}

// Serializes concurrent callers on one server: CREATE ROLE and CREATE DATABASE have no IF NOT EXISTS.
const lock = 0x6b65_7972;

/**
 * Creates a database of its own with a role of its own that owns it; no other role may connect to it. Idempotent: an
 * existing role gets the password, an existing database its owner. Returns the URL for the role.
 */
export async function createServiceDatabase({ adminUrl, name, role, password }: ServiceDatabase): Promise<string> {
  const admin = new pg.Client({ connectionString: adminUrl });
  admin.on('error', () => {});
  await admin.connect();
  try {
    await admin.query('SELECT pg_advisory_lock($1)', [lock]);
    const [owner, database, secret] = [
      pg.escapeIdentifier(role),
      pg.escapeIdentifier(name),
      pg.escapeLiteral(password),
    ];
    const roles = await admin.query('SELECT FROM pg_roles WHERE rolname = $1', [role]);
    await admin.query(`${roles.rowCount ? 'ALTER' : 'CREATE'} ROLE ${owner} LOGIN PASSWORD ${secret}`);
    await admin.query(`DO $$ BEGIN
      IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT %I TO %I', ${pg.escapeLiteral(role)}, current_user);
      END IF;
    END $$`);
    const databases = await admin.query('SELECT FROM pg_database WHERE datname = $1', [name]);
    await admin.query(
      databases.rowCount
        ? `ALTER DATABASE ${database} OWNER TO ${owner}`
        : `CREATE DATABASE ${database} OWNER ${owner} TEMPLATE template0 ENCODING 'UTF8'`,
    );
    await admin.query(`REVOKE ALL ON DATABASE ${database} FROM PUBLIC`);
  } finally {
    await admin.end();
  }
  const url = new URL(adminUrl);
  url.username = encodeURIComponent(role);
  url.password = encodeURIComponent(password);
  url.pathname = `/${encodeURIComponent(name)}`;
  return url.href;
}
